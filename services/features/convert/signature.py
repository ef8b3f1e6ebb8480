"""What a signature fetches, and what the contract says of what does not fit."""

from interlock.features.v1 import feature_view_service_pb2 as pb
from interlock.types.v1 import signature_pb2

from services.common.errors import FailedPrecondition, NotFound, ServiceError, Violation, to_status
from services.common.refusals import refuse
from services.common.stamp import duration_from_proto
from services.features.convert.definition import type_from_proto
from services.features.domain.definitions import FeatureType
from services.features.domain.signature_fit import Binding, Misfit

REQUEST_SOURCES = ("", "request")


def bindings_of(signature: signature_pb2.Signature) -> tuple[list[Binding], dict[str, FeatureType | None]]:
    """Return what a signature fetches, and the types of the features that come with a request."""
    wrong = [
        Violation(f"signature.features[{index}].type", "want DOUBLE, INT64, STRING or BOOL, got none of them")
        for index, feature in enumerate(signature.features)
        if type_from_proto(feature.type) is None
    ]
    refuse(wrong)
    fetched = [each for each in signature.features if each.source not in REQUEST_SOURCES]
    given = {each.name: type_from_proto(each.type) for each in signature.features if each.source in REQUEST_SOURCES}
    return [binding_from_proto(each) for each in fetched], given


def binding_from_proto(spec: signature_pb2.FeatureSpec, model_version: str = "") -> Binding:
    """Return what a feature of a signature fetches."""
    return Binding(
        name=spec.name,
        source=spec.source,
        type=type_from_proto(spec.type),
        nullable=spec.nullable,
        max_age=duration_from_proto(spec.max_age) if spec.HasField("max_age") else None,
        model_version=model_version,
    )


def misfit_to_proto(misfit: Misfit) -> pb.SignatureViolation:
    """Return the contract's violation."""
    error: ServiceError = FailedPrecondition(misfit.message, reason="SIGNATURE_UNSATISFIED")
    if misfit.is_missing:
        error = NotFound(misfit.message, reason="RESOURCE_NOT_FOUND")
    return pb.SignatureViolation(
        feature=misfit.binding.name, source=misfit.binding.source, error=to_status(error, request_id="")
    )
