"""Single values of features."""

from google.protobuf import struct_pb2
from interlock.types.v1 import feature_value_pb2 as pb

from services.monitor.domain.version_info import Scalar


def scalar_from_proto(value: pb.FeatureValue) -> Scalar | None:
    """Return a plain value; None for null, a list or nothing."""
    kind = value.WhichOneof("kind")
    if kind in ("double_value", "int64_value", "string_value", "bool_value"):
        found: Scalar = getattr(value, kind)
        return found
    return None


def scalar_to_proto(value: Scalar | None) -> pb.FeatureValue:
    """Return a value of the contract."""
    match value:
        case None:
            return pb.FeatureValue(null_value=struct_pb2.NULL_VALUE)
        case bool():
            return pb.FeatureValue(bool_value=value)
        case int():
            return pb.FeatureValue(int64_value=value)
        case float():
            return pb.FeatureValue(double_value=value)
        case str():
            return pb.FeatureValue(string_value=value)
