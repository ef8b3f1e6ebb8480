"""Views whose features are computed from the values of the request: nothing is asked of the store."""

from collections.abc import Sequence
from typing import Final

from services.common.errors import Violation
from services.common.refusals import InvalidRequest
from services.features.domain.catalog import CompiledFeature, CompiledView
from services.features.domain.failure import INVALID_VALUE
from services.features.domain.on_demand import BadRequestValues, IntegerOverflow, compile_source
from services.features.domain.ports import Column, ReadRow, Reply, Request, Status, ValueType
from services.features.domain.value_check import checked
from services.features.domain.wire import encode

_VIOLATION_LIMIT: Final = 20


class OnDemandReader:
    """See `ports.ViewReader`: computes, and asks nothing. A value is of now: its age is 0, its times are the read's."""

    entities: Sequence[str] = ()

    def __init__(self, view: CompiledView, features: Sequence[CompiledFeature]) -> None:
        self.features = tuple(feature.spec.name for feature in features)
        self._plan = compile_source(view.definition)
        self._defaults = []
        for feature in features:
            spec = feature.spec
            assert spec.type is not None, "a definition in the catalog is sound"
            self._defaults.append(encode(checked(spec.default, ValueType(spec.type, nullable=True))))

    def ask(self, rows: Sequence[ReadRow], as_of_us: int) -> Sequence[Request]:
        """Return nothing to send."""
        return ()

    def answer(self, rows: Sequence[ReadRow], replies: Sequence[Reply], as_of_us: int) -> Sequence[Column]:
        """Return the columns; null is MISSING. Raises InvalidRequest that names every wrong request value."""
        try:
            computed = self._plan.evaluate(self.features, [row.request_values for row in rows])
        except BadRequestValues as bad:
            wrong = [
                Violation(f"rows[{rows[row].index}].request_values.{name}", text) for row, name, text in bad.values
            ]
            raise InvalidRequest(wrong[:_VIOLATION_LIMIT], INVALID_VALUE) from None
        except IntegerOverflow as overflow:
            field = f"rows[{rows[overflow.row_index].index}].request_values"
            where = f"{overflow.feature} at character {overflow.position}"
            text = f"want values whose result fits into INT64, got an overflow of {where}"
            raise InvalidRequest([Violation(field, text)], INVALID_VALUE) from None
        return [_column(values, default, as_of_us) for values, default in zip(computed, self._defaults, strict=True)]


def _column(values: Sequence[float | int | str | bool | None], default: bytes, as_of_us: int) -> Column:
    missing = [value is None for value in values]
    times = [0 if gone else as_of_us for gone in missing]
    return Column(
        values=[default if value is None else encode(value) for value in values],
        statuses=[int(Status.MISSING if gone else Status.PRESENT) for gone in missing],
        ages_ms=[-1 if gone else 0 for gone in missing],
        event_times_us=times,
        known_ats_us=list(times),
    )
