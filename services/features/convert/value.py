"""Single values of the contract as Python has them, and back."""

from typing import Any, Final

from google.protobuf import struct_pb2
from interlock.types.v1 import feature_value_pb2 as pb

from services.features.domain.definitions import Value

ILLEGAL: Final = object()
"""Stands for what is no value: nothing at all, a list in a list, a list that holds null."""


def value_from_proto(message: pb.FeatureValue) -> Any:
    """Return the value, or ILLEGAL; a list is a tuple."""
    kind = message.WhichOneof("kind")
    if kind == "null_value":
        return None
    if kind == "list_value":
        elements = tuple(value_from_proto(element) for element in message.list_value.values)
        return ILLEGAL if any(not isinstance(each, float | int | str) for each in elements) else elements
    return ILLEGAL if kind is None else getattr(message, kind)


def value_to_proto(value: Value) -> pb.FeatureValue:
    """Return the contract's value."""
    if value is None:
        return pb.FeatureValue(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, tuple):
        return pb.FeatureValue(list_value=pb.FeatureValueList(values=map(value_to_proto, value)))
    # bool is an int in Python, so the truth values go first.
    for python, field in ((bool, "bool_value"), (int, "int64_value"), (float, "double_value")):
        if isinstance(value, python):
            return pb.FeatureValue(**{field: value})  # type: ignore[arg-type]
    return pb.FeatureValue(string_value=str(value))
