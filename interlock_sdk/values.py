"""Plain Python values and times as the contract has them, and back."""

from collections.abc import Mapping
from datetime import datetime
from typing import TypeAlias

from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.types.v1 import feature_value_pb2 as pb

Value: TypeAlias = "float | int | str | bool | list[Value] | None"


def value_to_proto(value: Value) -> pb.FeatureValue:
    """Packs a plain value. Raises TypeError for any other type."""
    match value:
        case None:
            return pb.FeatureValue(null_value=struct_pb2.NULL_VALUE)
        case bool():  # before int: True is an int
            return pb.FeatureValue(bool_value=value)
        case int():
            return pb.FeatureValue(int64_value=value)
        case float():
            return pb.FeatureValue(double_value=value)
        case str():
            return pb.FeatureValue(string_value=value)
        case list():
            return pb.FeatureValue(list_value=pb.FeatureValueList(values=[value_to_proto(item) for item in value]))
    raise TypeError(f"want a number, text, truth value, list or None, got {type(value).__name__}")


def values_to_proto(values: Mapping[str, Value]) -> dict[str, pb.FeatureValue]:
    """Packs values by feature name. Raises TypeError naming the feature of another type."""
    packed = {}
    for name, value in values.items():
        try:
            packed[name] = value_to_proto(value)
        except TypeError as error:
            raise TypeError(f"feature {name!r}: {error}") from None
    return packed


def value_from_proto(value: pb.FeatureValue) -> Value:
    """Unpacks a value; one that is not set is None."""
    match value.WhichOneof("kind"):
        case "double_value":
            return value.double_value
        case "int64_value":
            return value.int64_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "list_value":
            return [value_from_proto(item) for item in value.list_value.values]
    return None


def timestamp(time: datetime) -> Timestamp:
    """Packs a time. Raises ValueError for one without a zone."""
    if time.tzinfo is None:
        raise ValueError(f"want a time with a zone, got {time}")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
