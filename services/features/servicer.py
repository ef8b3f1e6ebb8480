"""The features contract, v1: no method of it has code yet."""

from interlock.features.v1 import (
    feature_job_service_pb2,
    feature_service_pb2,
    feature_view_service_pb2,
    offline_feature_service_pb2,
)

from services.common.call import Binding
from services.common.unimplemented import unimplemented_bindings


def feature_bindings() -> tuple[Binding, ...]:
    """Return a binding for each service of the contract."""
    return unimplemented_bindings(
        feature_service_pb2.DESCRIPTOR,
        feature_view_service_pb2.DESCRIPTOR,
        feature_job_service_pb2.DESCRIPTOR,
        offline_feature_service_pb2.DESCRIPTOR,
    )
