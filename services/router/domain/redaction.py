"""Keeping values out of prediction events: their columns leave as NaN, zero or empty text."""

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from services.router.domain.signature import Signature
from services.router.domain.tensor import DATA_TYPES, Kind, Tensor, element_count, pack_bytes, unpack_bytes

# A zero would look like a value where there is a NaN to say that there is none.
_NANS: Final[Mapping[str, bytes]] = {
    "FP16": struct.pack("<e", float("nan")),
    "FP32": struct.pack("<f", float("nan")),
    "FP64": struct.pack("<d", float("nan")),
    "BF16": struct.pack("<f", float("nan"))[2:],
}


def redacted(signature: Signature, names: Collection[str], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return input tensors without the values of the named features; an input that is so named loses all of them.

    `inputs` are as the signature has them, rows first.
    """
    return tuple(_blank(tensor, _columns(signature, names, tensor)) for tensor in inputs)


def _columns(signature: Signature, names: Collection[str], tensor: Tensor) -> Collection[int]:
    """Return the columns to empty; columns are counted over all elements of a row."""
    if tensor.name in names:
        return range(element_count(tensor.shape[1:]))
    return [spec.column for spec in signature.features if spec.tensor == tensor.name and spec.name in names]


def _blank(tensor: Tensor, columns: Collection[int]) -> Tensor:
    if not columns:
        return tensor
    width = element_count(tensor.shape[1:])
    data_type = DATA_TYPES[tensor.data_type]
    elements = [row * width + column for row in range(tensor.shape[0]) for column in columns]
    if data_type.kind is Kind.BYTES:
        texts = unpack_bytes(tensor.data, tensor.shape[0] * width)
        for element in elements:
            texts[element] = b""
        return Tensor(tensor.name, tensor.data_type, tensor.shape, pack_bytes(texts))
    size = data_type.size_bytes
    blank = _NANS.get(tensor.data_type, bytes(size))
    data = bytearray(tensor.data)
    for element in elements:
        data[element * size : (element + 1) * size] = blank
    return Tensor(tensor.name, tensor.data_type, tensor.shape, bytes(data))
