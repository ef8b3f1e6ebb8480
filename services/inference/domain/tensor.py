"""Element types, tensor descriptions and the row arithmetic on raw bytes.

A tensor travels as one little-endian, row-major buffer, so joining requests along the batch dimension is joining
buffers, and splitting an answer is slicing. Only BYTES tensors need a walk to find the borders of rows: each element is
a 4-byte little-endian length and that many bytes. This module is shared with the worker process and imports nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

BYTES: Final = "BYTES"
LENGTH_PREFIX_BYTES: Final = 4

ITEM_SIZE: Final[dict[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
}
"""Bytes of one element by OIP datatype; BYTES has no fixed size."""

DATATYPES: Final[tuple[str, ...]] = (
    "",
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
    "BF16",
)
"""OIP datatypes by their number in `interlock.types.v1.DataType`, which is OIP's own too."""


class BrokenTensor(ValueError):
    """Raw bytes that are not the tensor they claim to be; the text says what was wanted and what came."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that a model takes or gives: OIP datatype, and the shape with -1 for any size, batch first."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    trailing: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The shape of one row."""
    row_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of one row where every row has as many and any bytes will do; else 0."""

    def __post_init__(self) -> None:
        trailing = self.shape[1:]
        fixed = self.datatype in ITEM_SIZE and self.datatype != "BOOL" and min(trailing, default=1) > 0
        object.__setattr__(self, "trailing", trailing)
        object.__setattr__(self, "row_bytes", prod(trailing) * ITEM_SIZE[self.datatype] if fixed else 0)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with its values; `data` is little-endian and row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


def element_count(shape: Sequence[int], limit: int) -> int:
    """Return the product of the sizes, or `limit + 1` as soon as it is passed; sizes must not be negative.

    Plain integers: a product that wraps around would pass a check that it should fail.
    """
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count > limit:
            return limit + 1
    return count


def row_size_bytes(datatype: str, trailing: Sequence[int]) -> int:
    """Return the bytes of one row of a tensor of fixed element size."""
    return ITEM_SIZE[datatype] * prod(trailing)


def bytes_row_borders(data: bytes, rows: int, elements_per_row: int, *, utf8: bool = False) -> list[int]:
    """Return the `rows + 1` offsets between the rows of a BYTES tensor.

    Raises `BrokenTensor` when a length prefix runs past the end, when elements are missing or left over, or, with
    `utf8`, when an element is not a UTF-8 text.
    """
    borders = [0]
    offset, size, wanted = 0, len(data), rows * elements_per_row
    if wanted * LENGTH_PREFIX_BYTES > size:
        raise BrokenTensor(f"want {wanted} elements, each with a 4-byte length, got {size} bytes")
    for index in range(rows):
        for element in range(index * elements_per_row, (index + 1) * elements_per_row):
            offset = _next_element(data, offset, size, element, utf8=utf8)
        borders.append(offset)
    if offset != size:
        raise BrokenTensor(f"want {wanted} elements, got {size - offset} bytes more")
    return borders


def _next_element(data: bytes, offset: int, size: int, element: int, *, utf8: bool) -> int:
    start = offset + LENGTH_PREFIX_BYTES
    end = start + int.from_bytes(data[offset:start], "little")
    if start > size or end > size:
        raise BrokenTensor(f"element {element} ends at byte {end}, got {size} bytes")
    if utf8:
        _check_text(data[start:end], element)
    return end


def _check_text(value: bytes, element: int) -> None:
    if value.isascii():
        return
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenTensor(f"element {element}: want UTF-8 text, got byte 0x{value[error.start]:02x}") from None


def row_borders(datatype: str, shape: Sequence[int], data: bytes, *, utf8: bool = False) -> Sequence[int]:
    """Return the offsets between the rows of a tensor, first and last included.

    Raises `BrokenTensor` when the bytes do not hold exactly what datatype and shape say.
    """
    rows, trailing = shape[0], shape[1:]
    if datatype == BYTES:
        return bytes_row_borders(data, rows, prod(trailing), utf8=utf8)
    row_bytes = row_size_bytes(datatype, trailing)
    if row_bytes * rows != len(data):
        raise BrokenTensor(f"want {row_bytes * rows} bytes for shape {list(shape)} of {datatype}, got {len(data)}")
    return range(0, len(data) + 1, row_bytes) if row_bytes else [0] * (rows + 1)
