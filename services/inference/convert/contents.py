"""Typed contents of the Open Inference Protocol to raw bytes. Raw is the fast form; this one exists for convenience."""

import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

from inference import grpc_service_pb2 as oip

from services.inference.domain.tensor import BYTES

_FIELDS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_ALL_FIELDS: Final = tuple(dict.fromkeys(_FIELDS.values()))
_CODES: Final[Mapping[str, str]] = {
    "BOOL": "B",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}


class UnusableContents(ValueError):
    """Typed contents that do not make the tensor; the text says what was wanted and what came."""


def raw_from_contents(datatype: str, contents: oip.InferTensorContents, elements: int) -> bytes:
    """Return the raw form of `elements` typed values. Raises `UnusableContents`.

    Lengths are compared before a value is touched: a list costs many times its size on the wire.
    """
    field = _FIELDS.get(datatype)
    if field is None:
        raise UnusableContents(f"want {datatype} in raw_input_contents, there is no typed form of it")
    foreign = [name for name in _ALL_FIELDS if name != field and len(getattr(contents, name))]
    if foreign:
        raise UnusableContents(f"want {datatype} values in contents.{field}, got some in contents.{foreign[0]}")
    values = getattr(contents, field)
    if len(values) != elements:
        raise UnusableContents(f"want {elements} values in contents.{field}, got {len(values)}")
    return _join_bytes(values) if datatype == BYTES else _pack(datatype, values)


def _pack(datatype: str, values: Sequence[Any]) -> bytes:
    try:
        packed = array(_CODES[datatype], values)
    except OverflowError:
        low, high = _bounds(datatype)
        wrong = next(value for value in values if not low <= value <= high)
        raise UnusableContents(f"want {datatype} values from {low} to {high}, got {wrong}") from None
    return packed.tobytes()


def _bounds(datatype: str) -> tuple[int, int]:
    bits = 8 * struct.calcsize(_CODES[datatype])
    return (0, (1 << bits) - 1) if datatype.startswith("U") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def _join_bytes(values: Sequence[bytes]) -> bytes:
    parts = []
    for value in values:
        parts.append(len(value).to_bytes(4, "little"))
        parts.append(value)
    return b"".join(parts)
