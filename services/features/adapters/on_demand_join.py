"""On-demand features of rows: computed from the rows' own columns by the expressions that online reads use."""

import pyarrow as pa

from services.common.errors import Violation
from services.common.refusals import InvalidRequest
from services.features.adapters.arrow_values import WrongColumn, arrow_type, values_of
from services.features.domain.definitions import FeatureType
from services.features.domain.on_demand import IntegerOverflow, OnDemandPlan
from services.features.domain.point_in_time import OnDemandView


class OnDemandColumns:
    """The columns of one on-demand view."""

    def __init__(self, view: OnDemandView) -> None:
        self._view = view
        self._inputs = {each.name: each.type or FeatureType.DOUBLE for each in view.inputs}
        self._plan = OnDemandPlan(
            self._inputs,
            {feature.name: text for feature, text in zip(view.features, view.expressions, strict=True)},
            {feature.name: feature.type for feature in view.features},
        )

    def needed(self, output: str) -> list[str]:
        """Return the names of the inputs that one column is computed from, sorted."""
        return self._plan.needed(feature.name for feature in self._view.features if feature.output == output)

    def compute(self, rows: pa.RecordBatch, *, from_text: bool = False) -> dict[str, pa.Array]:
        """Return the columns for some rows; raises InvalidRequest for an input that is missing or of the wrong type."""
        names = self._plan.needed(feature.name for feature in self._view.features)
        columns = {name: self._input(rows, name, from_text=from_text).to_pylist() for name in names}
        found = {}
        for feature in self._view.features:
            try:
                values = self._plan.expressions[feature.name].evaluate(columns, len(rows))
            except IntegerOverflow as error:
                raise InvalidRequest([Violation(f"features.{self._view.view}.{feature.name}", str(error))]) from None
            found[feature.output] = pa.array(values, arrow_type(feature.type))
        return found

    def _input(self, rows: pa.RecordBatch, name: str, *, from_text: bool) -> pa.Array:
        index = rows.schema.get_field_index(name)
        if index < 0:
            have = ", ".join(rows.schema.names)[:200]
            raise InvalidRequest([Violation("rows", f'want a column "{name}" for {self._view.view}, got {have}')])
        try:
            column, wrong = values_of(rows.column(index), self._inputs[name], is_list=False, from_text=from_text)
        except WrongColumn as error:
            raise InvalidRequest([Violation("rows", f'column "{name}": {error}')]) from None
        if wrong.any():
            row = int(wrong.argmax())
            got = str(rows.column(index)[row])[:64]
            raise InvalidRequest([Violation("rows", f'column "{name}": want {self._inputs[name].value}, got {got}')])
        return column
