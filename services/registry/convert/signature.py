"""Signatures from the contract; whether they are sound is the domain's question."""

from google.protobuf.message import Message
from interlock.types.v1 import feature_value_pb2, signature_pb2, tensor_pb2

from services.common.stamp import duration_from_proto, enum_from_proto
from services.registry.domain.signature import (
    REQUEST_SOURCE,
    DataType,
    FeatureSpec,
    FeatureType,
    MissingPolicy,
    PredictionSpec,
    Scalar,
    Signature,
    Task,
    TensorSpec,
    ViolationPolicy,
)

_SCALAR_KINDS = ("double_value", "int64_value", "string_value", "bool_value")


def signature_from_proto(message: signature_pb2.Signature) -> Signature:
    """Return the signature as it was given, sound or not."""
    return Signature(
        inputs=tuple(_tensor_spec(tensor) for tensor in message.inputs),
        outputs=tuple(_tensor_spec(tensor) for tensor in message.outputs),
        features=tuple(_feature(feature) for feature in message.features),
        prediction=_prediction(message.prediction) if message.HasField("prediction") else None,
    )


def data_type_from_proto(number: int) -> DataType | None:
    """Return the element type, None when it is not given or not known."""
    return enum_from_proto(DataType, tensor_pb2.DataType, "DATA_TYPE_", number)


def _tensor_spec(message: tensor_pb2.TensorSpec) -> TensorSpec:
    return TensorSpec(message.name, data_type_from_proto(message.data_type), tuple(message.shape))


def _feature(message: signature_pb2.FeatureSpec) -> FeatureSpec:
    has_default = message.HasField("default_value")
    default = _scalar(message.default_value) if has_default else None
    return FeatureSpec(
        name=message.name,
        type=enum_from_proto(FeatureType, signature_pb2.FeatureType, "FEATURE_TYPE_", message.type),
        tensor=message.tensor,
        column=message.column,
        source=message.source or REQUEST_SOURCE,
        nullable=message.nullable,
        default=default,
        illegal_default=has_default and default is None,
        minimum=_optional(message, "minimum"),
        maximum=_optional(message, "maximum"),
        allowed=tuple(_scalar(value) for value in message.allowed_values),
        # Not given means REFUSE, for both.
        violation_policy=enum_from_proto(
            ViolationPolicy,
            signature_pb2.ViolationPolicy,
            "VIOLATION_POLICY_",
            message.violation_policy or signature_pb2.VIOLATION_POLICY_REFUSE,
        ),
        missing_policy=enum_from_proto(
            MissingPolicy,
            signature_pb2.MissingPolicy,
            "MISSING_POLICY_",
            message.missing_policy or signature_pb2.MISSING_POLICY_REFUSE,
        ),
        max_age=duration_from_proto(message.max_age) if message.HasField("max_age") else None,
        description=message.description,
    )


def _scalar(message: feature_value_pb2.FeatureValue) -> Scalar | None:
    kind = message.WhichOneof("kind")
    if kind not in _SCALAR_KINDS:
        return None
    value: Scalar = getattr(message, kind)
    return value


def _optional(message: Message, field: str) -> float | None:
    if not message.HasField(field):
        return None
    value: float = getattr(message, field)
    return value


def _prediction(message: signature_pb2.PredictionSpec) -> PredictionSpec:
    return PredictionSpec(
        task=enum_from_proto(Task, signature_pb2.Task, "TASK_", message.task),
        tensor=message.tensor,
        labels=tuple(message.labels),
        threshold=_optional(message, "threshold"),
    )
