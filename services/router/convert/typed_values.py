"""Typed values of tensors, from JSON lists and from protobuf fields, as raw bytes and back."""

import math
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

from services.common.wording import describe
from services.router.domain.reading import unpack_numbers
from services.router.domain.rejection import Reject
from services.router.domain.tensor import (
    DATA_TYPES,
    RAW_ONLY,
    DataType,
    Kind,
    Tensor,
    element_count,
    no_typed_form,
    pack_bytes,
    show_shape,
    unpack_bytes,
)

_ELEMENT_TYPES: Final[dict[Kind, frozenset[type]]] = {
    Kind.BOOL: frozenset({bool}),
    Kind.WHOLE: frozenset({int}),
    Kind.FLOAT: frozenset({float, int}),
    Kind.BYTES: frozenset({str}),
}
_WANTED: Final = {
    Kind.BOOL: "true or false",
    Kind.WHOLE: "whole numbers",
    Kind.FLOAT: "numbers",
    Kind.BYTES: "texts",
}


def raw_from_json(data_type_name: str, shape: Sequence[int], data: object) -> bytes:
    """Return a JSON tensor's elements, nested like the shape or flat, as raw bytes; `Reject` when they do not fit."""
    data_type = typed_data_type(data_type_name)
    count = element_count(shape)
    if not isinstance(data, list):
        raise Reject(f"want a list of values in data, got {describe(data)}")
    flat = _flat(data, shape)
    if len(flat) != count:
        raise Reject(f"want {count} values for the shape {show_shape(shape)}, got {len(flat)}")
    _check_types(data_type, flat)
    if data_type.kind is Kind.BYTES:
        return pack_bytes([text.encode() for text in flat])
    return raw_from_numbers(data_type, flat)


def raw_from_numbers(data_type: DataType, values: Sequence[Any]) -> bytes:
    """Return numbers or truth values as raw bytes; `Reject` for one outside of the type's range."""
    try:
        return struct.pack(f"<{len(values)}{data_type.code}", *values)
    except (struct.error, OverflowError):
        wrong = next(value for value in values if not data_type.low <= value <= data_type.high)
        want = f"{data_type.low:g} to {data_type.high:g}" if data_type.kind is Kind.FLOAT else _span(data_type)
        raise Reject(f"want {data_type.name} values from {want}, got {describe(wrong)}") from None


def json_from_raw(tensor: Tensor) -> list[Any]:
    """Return a tensor's elements as a flat list for JSON; numbers that are not finite become null.

    `Reject` when the type has no JSON form or BYTES are not UTF-8.
    """
    data_type = typed_data_type(tensor.data_type)
    count = math.prod(tensor.shape)
    if data_type.kind is Kind.BYTES:
        return [_text(element) for element in unpack_bytes(tensor.data, count)]
    values = unpack_numbers(data_type.code, count, tensor.data)
    if data_type.kind is Kind.FLOAT and not all(map(math.isfinite, values)):
        return [value if math.isfinite(value) else None for value in values]
    return list(values)


def typed_data_type(name: str) -> DataType:
    """Return a type that has a typed form; `Reject` for an unknown one, and for FP16 and BF16."""
    if name in RAW_ONLY:
        raise Reject(no_typed_form(name))
    if name not in DATA_TYPES:
        raise Reject(f"want a datatype of the protocol, such as FP32, got {describe(name)}")
    return DATA_TYPES[name]


def _flat(data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Return the values of a nested list whose form is the shape, or of a list that is flat already."""
    if not data or not isinstance(data[0], list):
        return data
    level = data
    for depth in range(len(shape)):
        if len(level) != math.prod(shape[: depth + 1]):
            raise Reject(f"want lists nested like the shape {show_shape(shape)}, got another form at depth {depth + 1}")
        if depth + 1 == len(shape):
            return level
        level = _inner(level, shape[depth + 1], depth)
    return level


def _inner(level: Iterable[Any], size: int, depth: int) -> list[Any]:
    children = list(level)
    for child in children:
        if not isinstance(child, list) or len(child) != size:
            raise Reject(f"want lists of {size} values at depth {depth + 2} of data, got {describe(child)}")
    return list(chain.from_iterable(children))


def _check_types(data_type: DataType, flat: Sequence[Any]) -> None:
    wanted = _ELEMENT_TYPES[data_type.kind]
    if not wanted.issuperset(map(type, flat)):
        wrong = next(value for value in flat if type(value) not in wanted)
        raise Reject(f"want {_WANTED[data_type.kind]} for {data_type.name}, got {describe(wrong)}")


def _span(data_type: DataType) -> str:
    return f"{int(data_type.low)} to {int(data_type.high)}"


def _text(element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise Reject("the BYTES of the answer are not UTF-8 text; ask for the output in binary form") from None
