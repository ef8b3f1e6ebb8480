"""On-demand features: checked expressions made into Python functions that run over columns of request values.

The function comes from `expression_code`. One evaluator serves reads of one row, batches and offline joins, so they agree
to the bit.

Null in, null out, except: `coalesce` takes its first value that is not null, `if` takes its last branch for a null
condition, and `and`, `or` are decided by one side where they can be (Kleene). Division by zero, the logarithm of what
is not above zero, and a result too large for DOUBLE are null. A whole number that does not fit into INT64 raises
IntegerOverflow: it is the request that is wrong.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Final, cast

from services.common.errors import Violation, echo
from services.features.domain.definitions import FeatureType, FeatureView, OnDemandSource, Scalar, Value
from services.features.domain.expression import RESERVED_WORDS, ExpressionError, Node, parse_expression
from services.features.domain.expression_code import compile_tree
from services.features.domain.ports import ValueType
from services.features.domain.value_check import WrongValue, checked

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)

Column = Sequence[Scalar | None]


class IntegerOverflow(Exception):
    """A whole number does not fit into INT64 in row `row_index` at character `position` of the feature's expression."""

    def __init__(self, row_index: int, position: int, feature: str = "") -> None:
        super().__init__(f"row {row_index}: {feature} does not fit into INT64 at character {position}")
        self.row_index = row_index
        self.position = position
        self.feature = feature


class BadRequestValues(Exception):
    """Request values are missing or of the wrong type: row, name, and what was wanted and came, for every one."""

    def __init__(self, values: Iterable[tuple[int, str, str]]) -> None:
        self.values = tuple(sorted(values))
        super().__init__(f"{len(self.values)} request values are wrong")


_MISSING: Final = cast("None", object())


class CompiledExpression:
    """An expression ready to run; stateless, for any number of threads.

    `inputs` are the names that it uses, sorted.
    """

    def __init__(self, text: str, inputs: Mapping[str, FeatureType], result: FeatureType) -> None:
        """Raises ExpressionError: the first thing that is wrong with the text."""
        root = parse_expression(text, inputs, result)
        self.text = text
        self.type = result
        self.inputs = tuple(sorted({str(node.value) for node in _walk(root) if node.kind == "input"}))
        self._run = compile_tree(root, self.inputs)

    def evaluate(self, columns: Mapping[str, Column], row_count: int) -> list[Scalar | None]:
        """Return the value of each row from columns of that length, each with values of its input's type or None.

        Numbers must be finite. Raises IntegerOverflow.
        """
        rows: Iterable[Sequence[Scalar | None]] = repeat((), row_count)
        if self.inputs:
            rows = zip(*(columns[name] for name in self.inputs), strict=True)
        out: list[Scalar | None] = []

        def overflow(position: int) -> None:
            raise IntegerOverflow(len(out), position)

        self._run(rows, out.append, overflow)
        return out


class OnDemandPlan:
    """All expressions of a view, by feature name."""

    def __init__(
        self, inputs: Mapping[str, FeatureType], expressions: Mapping[str, str], types: Mapping[str, FeatureType]
    ) -> None:
        """Compile them; raises ExpressionError for the first that is wrong."""
        self.inputs = dict(inputs)
        self.expressions = {
            feature: CompiledExpression(text, inputs, types[feature]) for feature, text in expressions.items()
        }

    def needed(self, features: Iterable[str]) -> list[str]:
        """Return the names of the request values that these features are computed from, sorted."""
        return sorted({name for feature in features for name in self.expressions[feature].inputs})

    def columns(self, rows: Sequence[Mapping[str, Value]], names: Iterable[str]) -> dict[str, Column]:
        """Return the named request values as columns, each of its input's type.

        A row may bring more than is named, for other views. Raises BadRequestValues for one that is missing or has
        another type; null is a value.
        """
        bad: list[tuple[int, str, str]] = []
        columns: dict[str, Column] = {}
        for name in names:
            column = cast("Column", [row.get(name, _MISSING) for row in rows])
            columns[name] = column if _has_type(column, self.inputs[name]) else self._convert(name, column, bad)
        if bad:
            raise BadRequestValues(bad)
        return columns

    def _convert(self, name: str, column: Sequence[object], bad: list[tuple[int, str, str]]) -> Column:
        want = ValueType(self.inputs[name], nullable=True)
        converted: list[Scalar | None] = []
        for index, value in enumerate(column):
            try:
                converted.append(cast("Scalar | None", checked(value, want)))
            except WrongValue as wrong:
                bad.append((index, name, str(wrong)))
        return converted

    def evaluate(self, features: Sequence[str], rows: Sequence[Mapping[str, Value]]) -> list[list[Scalar | None]]:
        """Return one column for each feature; None is missing. Raises BadRequestValues and IntegerOverflow."""
        columns = self.columns(rows, self.needed(features))
        results = []
        for feature in features:
            try:
                results.append(self.expressions[feature].evaluate(columns, len(rows)))
            except IntegerOverflow as overflow:
                raise IntegerOverflow(overflow.row_index, overflow.position, feature) from None
        return results


def compile_source(view: FeatureView) -> OnDemandPlan:
    """Return the expressions of a sound on-demand view, ready to run."""
    inputs, expressions, types = _parts(view)
    return OnDemandPlan(inputs, expressions, types)


def check_expressions(view: FeatureView, path: str = "") -> Iterator[Violation]:
    """Yield what is wrong with the inputs and expressions of an on-demand view; `path` stands before every field.

    Every feature has one expression, of its type; the first error of each is told, with its position.
    """
    inputs, expressions, types = _parts(view)
    for name in sorted(RESERVED_WORDS.intersection(inputs)):
        yield Violation(
            f"{path}on_demand_source.inputs", f"want a name that is no word of expressions, got {echo(name)}"
        )
    for feature in view.features:
        if feature.is_list:
            yield Violation(
                f"{path}features[{echo(feature.name)}].is_list", "want false for an on-demand feature, got true"
            )
        if feature.name not in expressions:
            yield Violation(f"{path}on_demand_source.expressions", f"want one for {echo(feature.name)}, got none")
    for feature_name, text in sorted(expressions.items()):
        field = f"{path}on_demand_source.expressions[{echo(feature_name)}]"
        if feature_name not in types:
            yield Violation(field, f"want the name of a feature with a type, got {echo(feature_name)}")
            continue
        try:
            CompiledExpression(text, inputs, types[feature_name])
        except ExpressionError as error:
            yield Violation(field, str(error))


def _parts(view: FeatureView) -> tuple[dict[str, FeatureType], Mapping[str, str], dict[str, FeatureType]]:
    """Return inputs, expressions and types of features; those without a legal type are left out."""
    source = view.source
    if not isinstance(source, OnDemandSource):
        return {}, {}, {}
    inputs = {field.name: field.type for field in source.inputs if field.type is not None}
    types = {feature.name: feature.type for feature in view.features if feature.type is not None}
    return inputs, source.expressions, types


_PYTHON_TYPES: Final = {
    FeatureType.DOUBLE: float,
    FeatureType.INT64: int,
    FeatureType.STRING: str,
    FeatureType.BOOL: bool,
}


def _has_type(column: Column, want: FeatureType) -> bool:
    """Return whether nothing of it needs a look of its own: the fast way for columns of many rows."""
    if any(kind is not _PYTHON_TYPES[want] for kind in set(map(type, column))):
        return False
    if want is FeatureType.DOUBLE:
        return all(map(math.isfinite, cast("Sequence[float]", column)))
    if want is FeatureType.INT64:
        whole = cast("Sequence[int]", column)
        return not column or (min(whole) >= INT64_MIN and max(whole) <= INT64_MAX)
    return True


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for operand in node.operands:
        yield from _walk(operand)
