"""Reading one feature of one row: type, limits, null and missing, by rules fixed when the version was compiled."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from services.common.errors import Violation
from services.common.wording import describe
from services.router.domain.rejection import Reject
from services.router.domain.signature import FeatureSpec, FeatureType, MissingPolicy, ViolationPolicy
from services.router.domain.tensor import DataType, Kind

MISSING: Final = object()
_SHOWN_VALUES: Final = 8

_TYPES: Final[dict[FeatureType, frozenset[type]]] = {
    FeatureType.DOUBLE: frozenset({float, int}),
    FeatureType.INT64: frozenset({int}),
    FeatureType.STRING: frozenset({str}),
    FeatureType.BOOL: frozenset({bool}),
}
_FITS: Final[dict[FeatureType, frozenset[Kind]]] = {
    FeatureType.DOUBLE: frozenset({Kind.FLOAT}),
    FeatureType.INT64: frozenset({Kind.WHOLE, Kind.FLOAT}),
    FeatureType.STRING: frozenset({Kind.BYTES}),
    FeatureType.BOOL: frozenset({Kind.BOOL, Kind.WHOLE, Kind.FLOAT}),
}
_NUMERIC: Final = frozenset({FeatureType.DOUBLE, FeatureType.INT64})


class UnsupportedSignature(Exception):
    """Says why rows cannot be made for a signature."""


@dataclass(slots=True)
class RowNotes:
    """What is found out about one row while it is read."""

    violations: list[Violation] = field(default_factory=list)
    flagged: list[str] = field(default_factory=list)
    falling: list[str] = field(default_factory=list)
    """Missing features whose policy is that the route's fallback answers."""
    defaulted: bool = False


class FeatureReader:
    """Turns what a caller sent for one feature into what the column of the tensor takes."""

    __slots__ = ("_allowed", "_high", "_low", "_ranged", "_spec", "_target", "_types", "default", "name")

    def __init__(self, spec: FeatureSpec, target: DataType) -> None:
        if target.kind not in _FITS[spec.type]:
            raise UnsupportedSignature(f"feature {spec.name}: a {spec.type.value} does not fit into {target.name}")
        self.name = spec.name
        self._spec = spec
        self._target = target
        self._types = _TYPES[spec.type]
        self._ranged = spec.type in _NUMERIC
        self._low = max(target.low, -math.inf if spec.minimum is None else spec.minimum)
        self._high = min(target.high, math.inf if spec.maximum is None else spec.maximum)
        self._allowed = frozenset(spec.allowed)
        self.default = self._stand_in()

    def read(self, value: Any, notes: RowNotes) -> Any:
        """Return the value for the column; what is wrong with it goes into `notes` and None comes back."""
        # What `_is_legal` says, without the call: this runs for each feature of each row.
        if (
            type(value) in self._types
            and (not self._ranged or self._low <= value <= self._high)
            and (not self._allowed or value in self._allowed)
        ):
            return value
        try:
            return self._read_unusual(value, notes)
        except Reject as reject:
            notes.violations.append(Violation(f"features.{self.name}", str(reject)))
            return None

    def _read_unusual(self, value: Any, notes: RowNotes) -> Any:
        if value is MISSING:
            return self._when_missing(notes)
        if value is None:
            return self._when_null()
        typed = self._typed(value)
        if self._is_legal(typed):
            return typed
        if self._spec.policy is ViolationPolicy.REFUSE:
            raise Reject(f"want {self._limits()}, got {describe(value)}")
        used = self._clipped(typed) if self._spec.policy is ViolationPolicy.CLIP else typed
        notes.flagged.append(self.name)
        return self._fitting(used)

    def _when_missing(self, notes: RowNotes) -> Any:
        if self._spec.missing is MissingPolicy.DEFAULT and self.default is not None:
            notes.defaulted = True
            return self.default
        if self._spec.missing is MissingPolicy.FALLBACK:
            notes.falling.append(self.name)
            return None
        raise Reject(f"want {self._want()}, got nothing: the feature is required")

    def _when_null(self) -> Any:
        if self._spec.nullable:
            if self._target.kind is Kind.FLOAT:
                return math.nan
            if self.default is not None:
                return self.default
        raise Reject(f"want {self._want()}, got null")

    def _stand_in(self) -> Any:
        """Return what stands in for a missing value: the default, null where it is legal and there is none, or nothing."""
        if self._spec.default is None:
            return math.nan if self._spec.nullable and self._target.kind is Kind.FLOAT else None
        try:
            return self._fitting(self._typed(self._spec.default))
        except Reject as reject:
            raise UnsupportedSignature(f"feature {self.name}: default value: {reject}") from None

    def _typed(self, value: Any) -> Any:
        if self._spec.type is FeatureType.INT64 and isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) not in self._types:
            raise Reject(f"want {self._want()}, got {describe(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise Reject(f"want a finite number, got {describe(value)}")
        return value if self._spec.policy is not ViolationPolicy.REFUSE else self._fitting(value)

    def _fitting(self, value: Any) -> Any:
        if self._ranged and not self._target.low <= value <= self._target.high:
            raise Reject(f"want a number that fits into {self._target.name}, got {describe(value)}")
        return value

    def _is_legal(self, value: Any) -> bool:
        # One comparison does range, NaN and infinity: each of them makes it false.
        in_range = not self._ranged or self._low <= value <= self._high
        return in_range and (not self._allowed or value in self._allowed)

    def _clipped(self, value: Any) -> Any:
        if not self._ranged or (self._spec.minimum is None and self._spec.maximum is None):
            raise Reject(f"want {self._limits()}, got {describe(value)}")
        nearest = min(max(value, self._low), self._high)
        if self._allowed and nearest not in self._allowed:
            raise Reject(f"want {self._limits()}, got {describe(value)}")
        # Limits are doubles; a whole-number column takes whole numbers only, and inside the limits.
        if self._spec.type is FeatureType.INT64:
            return math.ceil(nearest) if value < nearest else math.floor(nearest)
        return nearest

    def _want(self) -> str:
        return f"a {self._spec.type.value}" + (" or null" if self._spec.nullable else "")

    def _limits(self) -> str:
        if self._allowed:
            shown = ", ".join(describe(value).removeprefix("the text ") for value in self._spec.allowed[:_SHOWN_VALUES])
            more = f" or one of {len(self._allowed) - _SHOWN_VALUES} more" if len(self._allowed) > _SHOWN_VALUES else ""
            return f"one of {shown}{more}"
        low, high = self._spec.minimum, self._spec.maximum
        if low is not None and high is not None:
            return f"a {self._spec.type.value} from {low:g} to {high:g}"
        if low is not None:
            return f"a {self._spec.type.value} of at least {low:g}"
        return f"a {self._spec.type.value} of at most {high:g}" if high is not None else self._want()


class FetchedColumn:
    """Keeps a column free for a value that is fetched, and refuses one that the caller sends for it."""

    __slots__ = ("_source", "name")

    def __init__(self, spec: FeatureSpec) -> None:
        self.name = spec.name
        self._source = spec.source

    def read(self, value: Any, notes: RowNotes) -> None:
        """Note a value that came with the request."""
        if value is not MISSING:
            want = (
                f"want no value, as it is fetched from {self._source} for the keys in entities, got {describe(value)}"
            )
            notes.violations.append(Violation(f"features.{self.name}", want))
