"""Element types and dense tensors as raw little-endian bytes, in the words of the Open Inference Protocol."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final

from services.common.tensor_limits import DIMENSION_LIMIT, RANK_LIMIT
from services.router.domain.rejection import Reject

LENGTH_PREFIX_BYTES: Final = 4
ELEMENT_LIMIT: Final = 2**28


class Kind(Enum):
    """What an element is."""

    BOOL = "bool"
    WHOLE = "whole number"
    FLOAT = "number"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class DataType:
    """An element type: its OIP name, kind, bytes per element (0 = variable), struct code and legal range."""

    name: str
    kind: Kind
    size_bytes: int
    code: str
    low: float = -math.inf
    high: float = math.inf


def _whole(name: str, size_bytes: int, code: str, low: int, high: int) -> DataType:
    return DataType(name, Kind.WHOLE, size_bytes, code, low, high)


def _float(name: str, size_bytes: int, code: str, high: float) -> DataType:
    return DataType(name, Kind.FLOAT, size_bytes, code, -high, high)


_FP32_MAX: Final = 3.4028234663852886e38
_FP64_MAX: Final = 1.7976931348623157e308
_BF16_MAX: Final = 3.3895313892515355e38

# BF16 has no struct code: it is packed as the two high-order bytes of a single-precision number.
DATA_TYPES: Final = {
    data_type.name: data_type
    for data_type in (
        DataType("BOOL", Kind.BOOL, 1, "?"),
        _whole("UINT8", 1, "B", 0, 2**8 - 1),
        _whole("UINT16", 2, "H", 0, 2**16 - 1),
        _whole("UINT32", 4, "I", 0, 2**32 - 1),
        _whole("UINT64", 8, "Q", 0, 2**64 - 1),
        _whole("INT8", 1, "b", -(2**7), 2**7 - 1),
        _whole("INT16", 2, "h", -(2**15), 2**15 - 1),
        _whole("INT32", 4, "i", -(2**31), 2**31 - 1),
        _whole("INT64", 8, "q", -(2**63), 2**63 - 1),
        _float("FP16", 2, "e", 65504.0),
        _float("FP32", 4, "f", _FP32_MAX),
        _float("FP64", 8, "d", _FP64_MAX),
        _float("BF16", 2, "", _BF16_MAX),
        DataType("BYTES", Kind.BYTES, 0, ""),
    )
}


_length_prefix: Final = struct.Struct("<I").pack
RAW_ONLY: Final = frozenset({"FP16", "BF16"})


# Made for each request; a frozen one costs twice the time.
@dataclass(slots=True)
class Tensor:
    """One dense tensor: row-major, little-endian, batch dimension first; BYTES elements carry a 4-byte length each."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    data: bytes


def no_typed_form(data_type: str) -> str:
    """Return why a type cannot travel as typed values."""
    return f"want {data_type} as raw bytes, got typed values: {data_type} has no typed or JSON form, use the binary one"


def element_count(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape; `Reject` for a rank, a size or a product beyond the limits.

    Nothing is allocated and nothing can overflow: the shape is a caller's word until the bytes agree with it.
    """
    if len(shape) > RANK_LIMIT:
        raise Reject(f"want at most {RANK_LIMIT} dimensions, got {len(shape)}")
    count = 1
    for size in shape:
        if not 0 <= size <= DIMENSION_LIMIT:
            raise Reject(f"want every dimension from 0 to {DIMENSION_LIMIT}, got {size}")
        count *= size
        if count > ELEMENT_LIMIT:
            raise Reject(f"want at most {ELEMENT_LIMIT} elements, got the shape {show_shape(shape)}")
    return count


def show_shape(shape: Sequence[int]) -> str:
    """Return a shape as text, cut when it is long."""
    shown = ",".join(str(size) for size in shape[:8])
    return f"[{shown},...]" if len(shape) > 8 else f"[{shown}]"


def check_raw(data_type: DataType, count: int, data: bytes) -> None:
    """Refuse (`Reject`) bytes that are not exactly `count` elements of the type."""
    if data_type.kind is Kind.BYTES:
        bytes_offsets(data, count)
        return
    want = count * data_type.size_bytes
    if len(data) != want:
        raise Reject(f"want {want} bytes for {count} elements of {data_type.name}, got {len(data)}")
    if data_type.kind is Kind.BOOL and data.translate(None, b"\x00\x01"):
        raise Reject("want every BOOL byte to be 0 or 1, got another value")


def bytes_offsets(data: bytes, count: int) -> list[int]:
    """Return where each of `count` BYTES elements begins, and at the end the length of `data`; `Reject` when wrong."""
    if count * LENGTH_PREFIX_BYTES > len(data):
        raise Reject(f"want at least {count * LENGTH_PREFIX_BYTES} bytes for {count} BYTES elements, got {len(data)}")
    offsets = [0]
    position = 0
    for index in range(count):
        start = position + LENGTH_PREFIX_BYTES
        position = start + int.from_bytes(data[position:start], "little")
        if position > len(data) or start > len(data):
            raise Reject(f"want BYTES elements inside {len(data)} bytes, got element {index} running past the end")
        offsets.append(position)
    if position != len(data):
        raise Reject(f"want {count} BYTES elements to fill the data, got {len(data) - position} bytes more")
    return offsets


def row_offsets(tensor: Tensor) -> list[int]:
    """Return where each row of a tensor begins in its data, and at the end the length; `Reject` when they disagree."""
    rows = tensor.shape[0]
    row_elements = element_count(tensor.shape[1:])
    data_type = DATA_TYPES[tensor.data_type]
    check_raw(data_type, rows * row_elements, tensor.data)
    if data_type.kind is Kind.BYTES:
        offsets = bytes_offsets(tensor.data, rows * row_elements)
        return offsets[::row_elements] if row_elements else [0] * (rows + 1)
    size = row_elements * data_type.size_bytes
    return [row * size for row in range(rows + 1)]


def slice_rows(tensor: Tensor, first: int, last: int, offsets: Sequence[int]) -> Tensor:
    """Return rows `first` to `last`, exclusive, of a tensor whose `row_offsets` are given."""
    data = tensor.data[offsets[first] : offsets[last]]
    return Tensor(tensor.name, tensor.data_type, (last - first, *tensor.shape[1:]), data)


def join_rows(pieces: Sequence[Tensor]) -> Tensor:
    """Return the rows of all pieces, which agree in name, type and trailing shape, as one tensor."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    rows = sum(piece.shape[0] for piece in pieces)
    return Tensor(first.name, first.data_type, (rows, *first.shape[1:]), b"".join(piece.data for piece in pieces))


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """Return BYTES elements in raw form, each after its length."""
    return b"".join([_length_prefix(len(element)) + element for element in elements])


def unpack_bytes(data: bytes, count: int) -> list[bytes]:
    """Return the `count` elements of a BYTES tensor without their lengths; `Reject` when the data does not fit."""
    offsets = bytes_offsets(data, count)
    return [data[start + LENGTH_PREFIX_BYTES : end] for start, end in pairwise(offsets)]
