"""Columns of foreign tables as ours: values, keys and times of the types that definitions name.

Strict conversion refuses the first wrong value by name; lenient conversion says which rows are wrong.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.domain.definitions import FeatureType

_ARROW: Final = {
    FeatureType.DOUBLE: pa.float64(),
    FeatureType.INT64: pa.int64(),
    FeatureType.STRING: pa.string(),
    FeatureType.BOOL: pa.bool_(),
}
_MICROSECONDS: Final = pa.timestamp("us")
_UTC_MICROSECONDS: Final = pa.timestamp("us", "UTC")
_NO_ZONE: Final = "want time stamps with a zone, or time_zone to be given; got time stamps without one"
Bools = npt.NDArray[np.bool_]


class WrongColumn(Exception):
    """A column cannot be what is wanted of it; the text says want and got."""


def arrow_type(kind: FeatureType, *, is_list: bool = False) -> pa.DataType:
    """Return the Arrow type of a value."""
    return pa.list_(_ARROW[kind]) if is_list else _ARROW[kind]


def check_zone(zone: str) -> None:
    """Raise WrongColumn unless `zone` is an IANA zone that this machine knows."""
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise WrongColumn(f'want an IANA zone such as "America/New_York", got "{zone[:64]}"') from None


def values_of(column: pa.Array, kind: FeatureType, *, is_list: bool, from_text: bool) -> tuple[pa.Array, Bools]:
    """Return a column as values, null where they are wrong, and which are wrong.

    Whole numbers are numbers, and numbers without a fraction are whole. Text is a number or truth value only
    `from_text`, as in CSV; there an empty field is null.
    """
    column, wanted = _plain(column), arrow_type(kind, is_list=is_list)
    if pa.types.is_floating(column.type):
        # What many tools write where there is no number.
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if column.type == wanted or pa.types.is_null(column.type):
        return _finite(column.cast(wanted), np.zeros(len(column), np.bool_))
    if not _may_become(column.type, kind, is_list=is_list, from_text=from_text):
        raise WrongColumn(f"want {_words(kind, is_list=is_list)}, got {column.type}")
    if pa.types.is_string(column.type) and kind is not FeatureType.STRING:
        stripped = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(stripped, ""), pa.scalar(None, pa.string()), stripped)
    values, wrong = _cast(column, lambda values: values.cast(wanted))
    return _finite(values, wrong)


def times_of(column: pa.Array, zone: str, *, latest: bool = False) -> tuple[pa.Array, Bools]:
    """Return a column of time stamps as int64 microseconds since 1970 UTC, and which are wrong.

    Stamps without a zone are local times of `zone`; without one they are refused. A local time that the end of summer
    time brings twice is the first of the two, or the second if `latest`; one that its begin skips is taken as the
    moment of the change. So a row sees no more than it may if its own time is the first and the known-at time the last.
    """
    column = _plain(column)
    if pa.types.is_null(column.type):
        return column.cast(pa.int64()), np.zeros(len(column), np.bool_)
    if pa.types.is_string(column.type):
        return _cast(column, lambda texts: _parsed(texts, zone, latest=latest))
    if pa.types.is_date(column.type):
        column = column.cast(_MICROSECONDS)
    if not pa.types.is_timestamp(column.type):
        raise WrongColumn(f"want time stamps, got {column.type}")
    return _cast(column, lambda stamps: _to_utc(stamps, zone, latest=latest))


def keys_of(column: pa.Array, kind: FeatureType, *, from_text: bool = False) -> tuple[pa.Array, Bools]:
    """Return a column of keys as text or whole numbers, and which are wrong; null is not wrong here.

    A key is text or a whole number as its entity says: text is never read as a number, except `from_text`.
    """
    column = _plain(column)
    if kind is FeatureType.STRING and not pa.types.is_string(column.type) and not pa.types.is_null(column.type):
        raise WrongColumn(f"want text, got {column.type}")
    return values_of(column, kind, is_list=False, from_text=from_text)


def _plain(column: pa.Array) -> pa.Array:
    """Return the column without dictionary, view or large encoding."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def _may_become(found: pa.DataType, kind: FeatureType, *, is_list: bool, from_text: bool) -> bool:
    if is_list:
        lists = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return lists and _may_become(found.value_type, kind, is_list=False, from_text=False)
    if pa.types.is_string(found):
        return from_text or kind is FeatureType.STRING
    if kind in (FeatureType.DOUBLE, FeatureType.INT64):
        return bool(pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found))
    # Databases without truth values have 0 and 1.
    return from_text and kind is FeatureType.BOOL and bool(pa.types.is_integer(found))


def _words(kind: FeatureType, *, is_list: bool) -> str:
    return f"a list of {kind.value}" if is_list else kind.value


def _finite(values: pa.Array, wrong: Bools) -> tuple[pa.Array, Bools]:
    """Return the values without what is not a finite number, which no feature may be."""
    if not pa.types.is_floating(values.type):
        return values, wrong
    finite = pc.is_finite(values).fill_null(True)
    if pc.all(finite).as_py() is not False:
        return values, wrong
    return pc.if_else(finite, values, pa.scalar(None, values.type)), wrong | ~finite.to_numpy(zero_copy_only=False)


def _cast(column: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> tuple[pa.Array, Bools]:
    """Convert a column at once, and value by value only when one of them is wrong."""
    try:
        return convert(column), np.zeros(len(column), np.bool_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    pieces = [_cast_one(column.slice(index, 1), convert) for index in range(len(column))]
    wrong = np.fromiter((piece is None for piece in pieces), np.bool_, len(pieces))
    kind = next((piece.type for piece in pieces if piece is not None), None)
    if kind is None:
        kind = convert(column.slice(0, 0)).type
    return pa.concat_arrays([pa.nulls(1, kind) if piece is None else piece for piece in pieces]), wrong


def _cast_one(value: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> pa.Array | None:
    try:
        return convert(value)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _to_utc(stamps: pa.Array, zone: str, *, latest: bool) -> pa.Array:
    if stamps.type.tz is not None:
        return pc.cast(stamps, _UTC_MICROSECONDS, safe=False).cast(pa.int64())
    if not zone and stamps.null_count < len(stamps):
        raise WrongColumn(_NO_ZONE)
    local = pc.cast(stamps, _MICROSECONDS, safe=False)
    side = "latest" if latest else "earliest"
    return pc.assume_timezone(local, zone or "UTC", ambiguous=side, nonexistent="latest").cast(pa.int64())


def _parsed(texts: pa.Array, zone: str, *, latest: bool) -> pa.Array:
    """Read ISO 8601; each text may carry an offset or leave it to `zone`."""
    texts = pc.utf8_trim_whitespace(texts)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    try:
        return _to_utc(texts.cast(_MICROSECONDS), zone, latest=latest)
    except pa.ArrowInvalid:
        pass
    return pa.array(
        [None if value is None else _parse(value, zone, latest=latest) for value in texts.to_pylist()], pa.int64()
    )


def _parse(value: str, zone: str, *, latest: bool) -> int:
    try:
        stamp = datetime.fromisoformat(value)
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from None
    kind = _MICROSECONDS if stamp.tzinfo is None else _UTC_MICROSECONDS
    found: int = _to_utc(pa.array([stamp], kind), zone, latest=latest)[0].as_py()
    return found
