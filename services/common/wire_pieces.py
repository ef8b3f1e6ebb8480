"""Protobuf messages put together from the bytes of their parts, for values too large to be copied into a message.

The Python library copies a value when it is set, and twice whenever the message that holds it becomes a part of another.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message

_LENGTH_DELIMITED: Final = 2
_SHORT: Final = tuple(bytes((number,)) for number in range(0x80))


def tag_of(message: type[Message], field: str) -> bytes:
    """Return what stands before the length of a field that holds bytes, a text or a message."""
    return varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


def field_pieces(tag: bytes, value: Sequence[bytes]) -> list[bytes]:
    """Return a field in pieces, from the pieces of its value."""
    return [tag + varint(sum(map(len, value))), *value]


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 0x80:
        return _SHORT[number]
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
