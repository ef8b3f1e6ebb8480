"""Reads the tensors of a signature from an ONNX model."""

import onnx
from interlock.types.v1 import tensor_pb2
from onnx import TensorProto

_DATA_TYPES: dict[int, "tensor_pb2.DataType.ValueType"] = {
    TensorProto.BOOL: tensor_pb2.DATA_TYPE_BOOL,
    TensorProto.UINT8: tensor_pb2.DATA_TYPE_UINT8,
    TensorProto.UINT16: tensor_pb2.DATA_TYPE_UINT16,
    TensorProto.UINT32: tensor_pb2.DATA_TYPE_UINT32,
    TensorProto.UINT64: tensor_pb2.DATA_TYPE_UINT64,
    TensorProto.INT8: tensor_pb2.DATA_TYPE_INT8,
    TensorProto.INT16: tensor_pb2.DATA_TYPE_INT16,
    TensorProto.INT32: tensor_pb2.DATA_TYPE_INT32,
    TensorProto.INT64: tensor_pb2.DATA_TYPE_INT64,
    TensorProto.FLOAT16: tensor_pb2.DATA_TYPE_FP16,
    TensorProto.BFLOAT16: tensor_pb2.DATA_TYPE_BF16,
    TensorProto.FLOAT: tensor_pb2.DATA_TYPE_FP32,
    TensorProto.DOUBLE: tensor_pb2.DATA_TYPE_FP64,
    TensorProto.STRING: tensor_pb2.DATA_TYPE_BYTES,
}


def onnx_tensor_specs(artifact: bytes) -> tuple[list[tensor_pb2.TensorSpec], list[tensor_pb2.TensorSpec]]:
    """Gives the input and the output tensors of a serialised model, in its order. Free dimensions are -1.

    Raises:
        ValueError: an input or output is no tensor, or of an element type that cannot travel.
    """
    graph = onnx.load_model_from_string(artifact).graph
    initialised = {initializer.name for initializer in graph.initializer}
    inputs = [_spec(value) for value in graph.input if value.name not in initialised]
    return inputs, [_spec(value) for value in graph.output]


def _spec(value: onnx.ValueInfoProto) -> tensor_pb2.TensorSpec:
    tensor = value.type.tensor_type
    data_type = _DATA_TYPES.get(tensor.elem_type)
    if data_type is None:
        raise ValueError(f"{value.name!r}: want a tensor of numbers, truth values or texts")
    shape = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return tensor_pb2.TensorSpec(name=value.name, data_type=data_type, shape=shape)
