"""Counts the parts of a message before it is parsed: an empty part takes two bytes on the wire and a hundred in memory."""

from typing import Final

from services.common.errors import MALFORMED_REQUEST, InvalidArgument

PART_LIMIT: Final = 1 << 17
"""Fields that a message may hold at its top, each element of a list and each entry of a map for itself."""
_LEAST_PART_BYTES: Final = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MORE: Final = 0x80
_VARINT_LIMIT_BYTES: Final = 10


def check_part_count(payload: bytes, limit: int = PART_LIMIT) -> None:
    """Raise InvalidArgument for a message of more than `limit` parts; what is no message the parser will find."""
    size_bytes = len(payload)
    at = parts = 0
    try:
        # As long as the rest may hold too many; at the end of the message it cannot.
        while size_bytes - at > (limit - parts) * _LEAST_PART_BYTES:
            parts += 1
            if parts > limit:
                raise InvalidArgument(
                    f"want a message of at most {limit} elements at its top, got more", reason=MALFORMED_REQUEST
                )
            kind = payload[at] & 7
            at = _after_varint(payload, at)
            if kind == _BYTES:
                length = payload[at]
                if length < _MORE:
                    at += 1 + length
                else:
                    start, at = at, _after_varint(payload, at)
                    at += sum((byte & 0x7F) << 7 * place for place, byte in enumerate(payload[start:at]))
            elif kind == _VARINT:
                at = _after_varint(payload, at)
            else:
                at += 8 if kind == _FIXED64 else 4 if kind == _FIXED32 else 0
    except IndexError:
        return


def _after_varint(payload: bytes, at: int) -> int:
    for place in range(at, at + _VARINT_LIMIT_BYTES):
        if not payload[place] & _MORE:
            return place + 1
    raise IndexError
