"""Signatures of the contract as the domain's."""

from typing import Final

from interlock.types.v1 import signature_pb2, tensor_pb2

from services.router.convert.feature_value import value_from_proto
from services.router.domain.signature import (
    REQUEST_SOURCE,
    FeatureSpec,
    FeatureType,
    MissingPolicy,
    PredictionSpec,
    Signature,
    TensorSpec,
    ViolationPolicy,
)

_PREFIX: Final = "DATA_TYPE_"
_TYPES: Final = {
    signature_pb2.FEATURE_TYPE_DOUBLE: FeatureType.DOUBLE,
    signature_pb2.FEATURE_TYPE_INT64: FeatureType.INT64,
    signature_pb2.FEATURE_TYPE_STRING: FeatureType.STRING,
    signature_pb2.FEATURE_TYPE_BOOL: FeatureType.BOOL,
}
_MISSING: Final = {
    signature_pb2.MISSING_POLICY_DEFAULT: MissingPolicy.DEFAULT,
    signature_pb2.MISSING_POLICY_FALLBACK: MissingPolicy.FALLBACK,
}
_POLICIES: Final = {
    signature_pb2.VIOLATION_POLICY_FLAG: ViolationPolicy.FLAG,
    signature_pb2.VIOLATION_POLICY_CLIP: ViolationPolicy.CLIP,
}


def signature_from_proto(signature: signature_pb2.Signature) -> Signature:
    """Return the signature; raises `ValueError` for an enum value that this release does not know."""
    return Signature(
        inputs=tuple(_tensor(spec) for spec in signature.inputs),
        outputs=tuple(_tensor(spec) for spec in signature.outputs),
        features=tuple(_feature(spec) for spec in signature.features),
        prediction=_prediction(signature.prediction) if signature.HasField("prediction") else None,
    )


def _tensor(spec: tensor_pb2.TensorSpec) -> TensorSpec:
    name = tensor_pb2.DataType.Name(spec.data_type).removeprefix(_PREFIX)
    if spec.data_type == tensor_pb2.DATA_TYPE_UNSPECIFIED:
        raise ValueError(f"tensor {spec.name}: want a data type, got none")
    return TensorSpec(spec.name, name, tuple(spec.shape))


def _feature(spec: signature_pb2.FeatureSpec) -> FeatureSpec:
    if spec.type not in _TYPES:
        raise ValueError(f"feature {spec.name}: its type {spec.type} is unknown to this release")
    return FeatureSpec(
        name=spec.name,
        type=_TYPES[spec.type],
        tensor=spec.tensor,
        column=spec.column,
        source=spec.source or REQUEST_SOURCE,
        nullable=spec.nullable,
        default=value_from_proto(spec.default_value) if spec.HasField("default_value") else None,
        missing=_MISSING.get(spec.missing_policy, MissingPolicy.REFUSE),
        minimum=spec.minimum if spec.HasField("minimum") else None,
        maximum=spec.maximum if spec.HasField("maximum") else None,
        allowed=tuple(value_from_proto(value) for value in spec.allowed_values),
        policy=_POLICIES.get(spec.violation_policy, ViolationPolicy.REFUSE),
        max_age_s=spec.max_age.ToNanoseconds() / 1e9 if spec.HasField("max_age") else None,
    )


def _prediction(spec: signature_pb2.PredictionSpec) -> PredictionSpec:
    threshold = spec.threshold if spec.HasField("threshold") else None
    return PredictionSpec(spec.tensor, tuple(spec.labels), threshold)
