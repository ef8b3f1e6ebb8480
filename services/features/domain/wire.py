"""Values as bytes: the wire form of the contract's FeatureValue, which is what the online store keeps too.

A read then copies bytes from the store into its answer and decodes nothing. The form is protobuf's, so it never
changes: one oneof field each, double 1, int64 2 (two's complement varint), string 3, bool 4, list 5, null 6.
"""

import struct
from typing import Final

from services.common.wire_pieces import varint
from services.features.domain.definitions import FeatureType, Scalar, Value

NULL: Final = b"\x30\x00"
_LIST: Final = 0x2A
_TAGS: Final = {FeatureType.DOUBLE: 0x09, FeatureType.INT64: 0x10, FeatureType.STRING: 0x1A, FeatureType.BOOL: 0x20}
_DOUBLE: Final = struct.Struct("<d")
_TRUE: Final = b"\x20\x01"
_FALSE: Final = b"\x20\x00"
_MASK: Final = 2**64 - 1


def encode(value: Value) -> bytes:
    """Return a value's wire form; its Python type decides the kind."""
    if isinstance(value, tuple):
        elements = [encode(element) for element in value]
        body = b"".join([b"\x0a" + varint(len(element)) + element for element in elements])
        return b"\x2a" + varint(len(body)) + body
    return NULL if value is None else _encode_scalar(value)


def decode(data: bytes) -> Value:
    """Return the value of a wire form; ValueError when the bytes are none."""
    try:
        return _decode(data)
    except (IndexError, struct.error) as error:
        raise ValueError(f"{len(data)} bytes are not a feature value") from error


def tag_of(scalar: FeatureType, *, is_list: bool) -> int:
    """Return the first byte of every value of a type that is not null."""
    return _LIST if is_list else _TAGS[scalar]


def _encode_scalar(value: Scalar) -> bytes:
    # bool before int: True is an int to Python.
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, float):
        return b"\x09" + _DOUBLE.pack(value)
    if isinstance(value, int):
        return b"\x10" + varint(value & _MASK)
    text = value.encode()
    return b"\x1a" + varint(len(text)) + text


def _decode(data: bytes) -> Value:
    tag = data[0]
    if tag == 0x09:
        return float(_DOUBLE.unpack(data[1:])[0])
    if tag == 0x30:
        return None
    number, start = _read_varint(data, 1)
    if tag == 0x10:
        return number - 2**64 if number >= 2**63 else number
    if tag == 0x20:
        return bool(number)
    if start + number != len(data):
        raise ValueError(f"{len(data)} bytes hold a value of {number}")
    if tag == 0x1A:
        return data[start:].decode()
    if tag == _LIST:
        return _decode_list(data, start)
    raise ValueError(f"no value begins with {tag:#04x}")


def _decode_list(data: bytes, position: int) -> tuple[Scalar, ...]:
    found: list[Scalar] = []
    while position < len(data):
        length, start = _read_varint(data, position + 1)
        element = _decode(data[start : start + length])
        if data[position] != 0x0A or element is None or isinstance(element, tuple):
            raise ValueError("a list holds something else than numbers, texts or truth values")
        found.append(element)
        position = start + length
    return tuple(found)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
