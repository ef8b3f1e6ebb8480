"""Turns numpy arrays into the contract's tensors and back."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from interlock.types.v1 import tensor_pb2

_DATA_TYPES: dict[str, "tensor_pb2.DataType.ValueType"] = {
    "bool": tensor_pb2.DATA_TYPE_BOOL,
    "uint8": tensor_pb2.DATA_TYPE_UINT8,
    "uint16": tensor_pb2.DATA_TYPE_UINT16,
    "uint32": tensor_pb2.DATA_TYPE_UINT32,
    "uint64": tensor_pb2.DATA_TYPE_UINT64,
    "int8": tensor_pb2.DATA_TYPE_INT8,
    "int16": tensor_pb2.DATA_TYPE_INT16,
    "int32": tensor_pb2.DATA_TYPE_INT32,
    "int64": tensor_pb2.DATA_TYPE_INT64,
    "float16": tensor_pb2.DATA_TYPE_FP16,
    "float32": tensor_pb2.DATA_TYPE_FP32,
    "float64": tensor_pb2.DATA_TYPE_FP64,
}
_DTYPES = {data_type: np.dtype(name).newbyteorder("<") for name, data_type in _DATA_TYPES.items()}
_LENGTH = struct.Struct("<I")


def tensor_to_proto(name: str, array: npt.NDArray[Any]) -> tensor_pb2.Tensor:
    """Packs an array; an array of objects must hold texts or bytes and becomes BYTES.

    Raises:
        ValueError: the element type has no counterpart in the contract.
    """
    if array.dtype.kind in "OSU":
        data = b"".join(_pack_element(element) for element in array.ravel())
        return tensor_pb2.Tensor(name=name, data_type=tensor_pb2.DATA_TYPE_BYTES, shape=array.shape, data=data)
    data_type = _DATA_TYPES.get(array.dtype.name)
    if data_type is None:
        raise ValueError(f"tensor {name!r}: want one of {', '.join(_DATA_TYPES)} or texts, got {array.dtype}")
    data = np.ascontiguousarray(array, dtype=_DTYPES[data_type]).tobytes()
    return tensor_pb2.Tensor(name=name, data_type=data_type, shape=array.shape, data=data)


def tensor_from_proto(tensor: tensor_pb2.Tensor) -> npt.NDArray[Any]:
    """Unpacks a tensor; BYTES becomes an array of bytes objects. Numbers share the message's memory and are read-only.

    Raises:
        ValueError: the data does not fill the shape, or the element type has no numpy counterpart.
    """
    if tensor.data_type == tensor_pb2.DATA_TYPE_BYTES:
        elements = np.empty(len(texts := _unpack_elements(tensor)), dtype=object)
        elements[:] = texts
        return elements.reshape(tuple(tensor.shape))
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise ValueError(f"tensor {tensor.name!r}: no numpy type for data type {tensor.data_type}")
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tuple(tensor.shape))


def _pack_element(element: object) -> bytes:
    if not isinstance(element, str | bytes):
        raise ValueError(f"want texts or bytes, got {type(element).__name__}")  # noqa: TRY004  one error for one cause
    raw = element.encode() if isinstance(element, str) else element
    return _LENGTH.pack(len(raw)) + raw


def _unpack_elements(tensor: tensor_pb2.Tensor) -> list[bytes]:
    elements, position, data = [], 0, tensor.data
    while position < len(data):
        if position + _LENGTH.size > len(data):
            raise ValueError(f"tensor {tensor.name!r}: data ends inside a length")
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            raise ValueError(f"tensor {tensor.name!r}: data ends inside an element")
        elements.append(data[position : position + length])
        position += length
    return elements
