"""Whether a value that somebody sends is of its type, and keys as they are kept."""

import math
from collections.abc import Mapping
from typing import Any, Final

from services.common.errors import echo
from services.features.domain.definitions import Entity, FeatureType, Scalar, Value
from services.features.domain.ports import ValueType

KEY_LIMIT_BYTES: Final = 512
LIST_LIMIT: Final = 100_000
_INT64: Final = range(-(2**63), 2**63)
_WANT: Final[Mapping[FeatureType, str]] = {
    FeatureType.DOUBLE: "a finite number",
    FeatureType.INT64: "a whole number from -2^63 to 2^63 - 1",
    FeatureType.STRING: "a text",
    FeatureType.BOOL: "true or false",
}
_PYTHON: Final[Mapping[FeatureType, type]] = {
    FeatureType.DOUBLE: float,
    FeatureType.INT64: int,
    FeatureType.STRING: str,
    FeatureType.BOOL: bool,
}


class WrongValue(Exception):
    """A value is not of its type; the text says what was wanted and what came."""


def checked(value: Any, wanted: ValueType) -> Value:
    """Return a value as its type keeps it: whole numbers become floats of a DOUBLE, 3.0 becomes 3 of an INT64.

    Raises WrongValue.
    """
    if value is None:
        if wanted.nullable:
            return None
        raise WrongValue(f"want {_describe_type(wanted)}, got null")
    if not wanted.is_list:
        return value if type(value) is str and wanted.scalar is FeatureType.STRING else _scalar(value, wanted)
    if not isinstance(value, tuple):
        raise _wrong(value, wanted)
    if len(value) > LIST_LIMIT:
        raise WrongValue(f"want at most {LIST_LIMIT} values, got {len(value)}")
    return tuple([_scalar(element, wanted) for element in value])


def canonical_key(key: str, entity: Entity) -> str:
    """Return an entity's key as it is kept; raises WrongValue for one that is malformed or of the wrong type."""
    size_bytes = len(key) if key.isascii() else len(key.encode())
    if not 0 < size_bytes <= KEY_LIMIT_BYTES:
        raise WrongValue(f"want a key of 1 to {KEY_LIMIT_BYTES} bytes, got {size_bytes}")
    if entity.key_type is FeatureType.INT64 and not is_int64_key(key):
        raise WrongValue(f"want an INT64 key, decimal without leading zeros, got {echo(key)}")
    return key


def is_int64_key(key: str) -> bool:
    """Return whether a text is the one form of a whole number that keys have."""
    digits = key.removeprefix("-")
    if len(digits) > 19 or not (digits.isascii() and digits.isdecimal()):
        return False
    return str(int(key)) == key and int(key) in _INT64


def _scalar(value: Any, wanted: ValueType) -> Scalar:
    scalar, kind = wanted.scalar, type(value)
    if kind is _PYTHON[scalar] and (kind is not float or math.isfinite(value)):
        return value  # type: ignore[no-any-return]
    if scalar is FeatureType.DOUBLE and kind is int:
        return float(value)
    if scalar is FeatureType.INT64 and kind is float and value.is_integer() and int(value) in _INT64:
        return int(value)
    raise _wrong(value, wanted)


def _wrong(value: Any, wanted: ValueType) -> WrongValue:
    return WrongValue(f"want {_describe_type(wanted)}, got {describe(value)}")


def _describe_type(wanted: ValueType) -> str:
    text = f"a list of {wanted.scalar.value} values" if wanted.is_list else _WANT[wanted.scalar]
    return f"{text} or null" if wanted.nullable else text


def describe(value: Any) -> str:
    """Return a foreign value as it may stand in an error."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {echo(value)}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    return "null" if value is None else "nothing"
