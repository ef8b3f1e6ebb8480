"""Tensors and their descriptions, between `interlock.types.v1` and the domain."""

from typing import Final

from interlock.types.v1 import tensor_pb2 as types_pb

from services.inference.domain.tensor import DATATYPES, Tensor, TensorSpec

NUMBERS: Final[dict[str, int]] = {name: number for number, name in enumerate(DATATYPES) if name}


def datatype_from_proto(number: int) -> str:
    """Return the OIP datatype, or an empty string for a number that is none of ours."""
    return DATATYPES[number] if 0 < number < len(DATATYPES) else ""


def spec_from_proto(spec: types_pb.TensorSpec) -> TensorSpec:
    """Return the description of a tensor; the registry has checked it."""
    return TensorSpec(spec.name, datatype_from_proto(spec.data_type), tuple(spec.shape))


def tensor_from_proto(tensor: types_pb.Tensor) -> Tensor:
    """Return a tensor with its values."""
    return Tensor(tensor.name, datatype_from_proto(tensor.data_type), tuple(tensor.shape), tensor.data)


def tensor_to_proto(tensor: Tensor) -> types_pb.Tensor:
    """Return the message of a tensor with its values."""
    return types_pb.Tensor(
        name=tensor.name,
        data_type=types_pb.DataType.ValueType(NUMBERS[tensor.datatype]),
        shape=tensor.shape,
        data=tensor.data,
    )
