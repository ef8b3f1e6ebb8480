"""Resources to and from the contract's messages; the same messages are how the database keeps them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from google.protobuf.message import Message
from interlock.registry.v1 import deployment_pb2, environment_pb2, model_pb2, model_version_pb2, route_pb2

from services.common.stamp import (
    enum_from_proto,
    enum_to_proto,
    time_from_proto,
    time_to_proto,
)
from services.registry.convert.batching import batching_from_proto, batching_to_proto
from services.registry.domain.bucket import BucketRange
from services.registry.domain.replica import ReplicaStatus, State, derive_state
from services.registry.domain.resource import (
    Deployment,
    DeviceClass,
    Environment,
    FallbackRung,
    FeatureBinding,
    FeatureFailurePolicy,
    Model,
    ModelVersion,
    Resource,
    ResourceT,
    Route,
    Variant,
)
from services.registry.domain.signature import REQUEST_SOURCE

FAILURE_POLICY_PREFIX: Final = "FEATURE_FAILURE_POLICY_"
DEVICE_PREFIX: Final = "DEVICE_CLASS_"
STATE_PREFIX: Final = "DEPLOYMENT_STATE_"


def model_to_proto(model: Model) -> model_pb2.Model:
    """Return the contract's model."""
    return model_pb2.Model(
        name=model.name,
        description=model.description,
        owner=model.owner,
        labels=model.labels,
        aliases=model.aliases,
        latest_version=model.latest_version,
        create_time=time_to_proto(model.create_time),
        update_time=time_to_proto(model.update_time),
        etag=model.etag,
    )


def model_from_proto(message: model_pb2.Model) -> Model:
    """Return the domain's model of a stored one."""
    return Model(
        name=message.name,
        description=message.description,
        owner=message.owner,
        labels=dict(message.labels),
        aliases=dict(message.aliases),
        latest_version=message.latest_version,
        create_time=time_from_proto(message.create_time),
        update_time=time_from_proto(message.update_time),
        etag=message.etag,
    )


def version_to_proto(version: ModelVersion) -> model_version_pb2.ModelVersion:
    """Return the contract's version: the document, and what the registry says of it."""
    message = model_version_pb2.ModelVersion.FromString(version.document)
    message.name = version.name
    message.semantic_version = version.semantic_version
    message.digest = version.digest
    message.creator = version.creator
    message.create_time.CopyFrom(time_to_proto(version.create_time))
    return message


def version_from_proto(message: model_version_pb2.ModelVersion) -> ModelVersion:
    """Return the domain's version of a stored one."""
    features = message.signature.features
    return ModelVersion(
        name=message.name,
        semantic_version=message.semantic_version,
        digest=message.digest,
        fetched_features=tuple(each.name for each in features if each.source not in ("", REQUEST_SOURCE)),
        creator=message.creator,
        create_time=time_from_proto(message.create_time),
        document=message.SerializeToString(deterministic=True),
    )


def bindings_of(version: ModelVersion) -> list[FeatureBinding]:
    """Return what a version fetches from feature views."""
    message = model_version_pb2.ModelVersion.FromString(version.document)
    return [
        FeatureBinding(
            version.name, each.name, each.source.rpartition(".")[0], each.SerializeToString(deterministic=True)
        )
        for each in message.signature.features
        if each.source not in ("", REQUEST_SOURCE)
    ]


def environment_to_proto(environment: Environment) -> environment_pb2.Environment:
    """Return the contract's environment."""
    return environment_pb2.Environment(
        name=environment.name,
        description=environment.description,
        create_time=time_to_proto(environment.create_time),
    )


def environment_from_proto(message: environment_pb2.Environment) -> Environment:
    """Return the domain's environment of a stored one."""
    create_time = time_from_proto(message.create_time)
    return Environment(name=message.name, description=message.description, create_time=create_time)


def deployment_to_proto(deployment: Deployment) -> deployment_pb2.Deployment:
    """Return the contract's deployment, without what its replicas say."""
    return deployment_pb2.Deployment(
        name=deployment.name,
        model_version=deployment.model_version,
        environment=deployment.environment,
        pool=deployment.pool,
        replicas=deployment.replicas,
        device_class=cast(
            "deployment_pb2.DeviceClass.ValueType",
            enum_to_proto(deployment.device_class, deployment_pb2.DeviceClass, DEVICE_PREFIX),
        ),
        batching=batching_to_proto(deployment.batching),
        pending_weight_basis_points=deployment.pending_weight,
        creator=deployment.creator,
        create_time=time_to_proto(deployment.create_time),
        update_time=time_to_proto(deployment.update_time),
        etag=deployment.etag,
        feature_view_digests=deployment.feature_view_digests,
    )


def deployment_with_state(deployment: Deployment, statuses: Sequence[ReplicaStatus]) -> deployment_pb2.Deployment:
    """Return the contract's deployment with what its replicas say and the state that follows from it."""
    state, state_message = derive_state(statuses)
    message = deployment_to_proto(deployment)
    message.state = state_to_proto(state)
    message.state_message = state_message
    for status in statuses:
        message.replica_statuses.add(
            replica_id=status.replica_id,
            state=state_to_proto(status.state),
            message=status.message,
            report_time=time_to_proto(status.report_time),
        )
    return message


def state_to_proto(state: State) -> "deployment_pb2.DeploymentState.ValueType":
    """Return the contract's number for a state."""
    number = enum_to_proto(state, deployment_pb2.DeploymentState, STATE_PREFIX)
    return cast("deployment_pb2.DeploymentState.ValueType", number)


def deployment_from_proto(message: deployment_pb2.Deployment) -> Deployment:
    """Return the domain's deployment of a stored one."""
    pending = message.pending_weight_basis_points if message.HasField("pending_weight_basis_points") else None
    device_class = enum_from_proto(DeviceClass, deployment_pb2.DeviceClass, DEVICE_PREFIX, message.device_class)
    return Deployment(
        name=message.name,
        model_version=message.model_version,
        environment=message.environment,
        pool=message.pool,
        replicas=message.replicas,
        device_class=device_class or DeviceClass.CPU,
        batching=batching_from_proto(message.batching) if message.HasField("batching") else None,
        pending_weight=pending,
        creator=message.creator,
        create_time=time_from_proto(message.create_time),
        update_time=time_from_proto(message.update_time),
        etag=message.etag,
        feature_view_digests=dict(message.feature_view_digests),
    )


def route_to_proto(route: Route) -> route_pb2.Route:
    """Return the contract's route."""
    return route_pb2.Route(
        name=route.name,
        variants=[_variant_to_proto(variant) for variant in route.variants],
        salt=route.salt,
        fallback=_fallback_to_proto(route.fallback),
        feature_failure_policy=_failure_policy_to_proto(route.feature_failure_policy),
        redacted_features=route.redacted_features,
        create_time=time_to_proto(route.create_time),
        update_time=time_to_proto(route.update_time),
        etag=route.etag,
    )


def route_from_proto(message: route_pb2.Route) -> Route:
    """Return the domain's route of a stored one."""
    return Route(
        name=message.name,
        variants=tuple(variant_from_proto(variant) for variant in message.variants),
        salt=message.salt,
        fallback=fallback_from_proto(message.fallback),
        feature_failure_policy=failure_policy_from_proto(message.feature_failure_policy),
        redacted_features=tuple(message.redacted_features),
        create_time=time_from_proto(message.create_time),
        update_time=time_from_proto(message.update_time),
        etag=message.etag,
    )


def _variant_to_proto(variant: Variant) -> route_pb2.Variant:
    return route_pb2.Variant(
        name=variant.name,
        deployment=variant.deployment,
        weight_basis_points=variant.weight,
        buckets=[route_pb2.BucketRange(first=each.first, last=each.last) for each in variant.buckets],
    )


def variant_from_proto(message: route_pb2.Variant) -> Variant:
    """Return one arm of a route."""
    buckets = tuple(BucketRange(each.first, each.last) for each in message.buckets)
    return Variant(message.name, message.deployment, message.weight_basis_points, buckets)


def _fallback_to_proto(rungs: Sequence[FallbackRung]) -> route_pb2.FallbackLadder | None:
    if not rungs:
        return None
    found = route_pb2.FallbackLadder()
    for rung in rungs:
        if rung.deployment:
            found.rungs.add(deployment=rung.deployment)
        else:
            found.rungs.add(static_prediction=rung.static_prediction)
    return found


def fallback_from_proto(message: route_pb2.FallbackLadder) -> tuple[FallbackRung, ...]:
    """Return the rungs of a ladder, first to last; one that is neither form has neither."""
    return tuple(
        FallbackRung(rung.deployment, rung.static_prediction if rung.HasField("static_prediction") else None)
        for rung in message.rungs
    )


def _failure_policy_to_proto(policy: FeatureFailurePolicy | None) -> "route_pb2.FeatureFailurePolicy.ValueType":
    number = 0 if policy is None else enum_to_proto(policy, route_pb2.FeatureFailurePolicy, FAILURE_POLICY_PREFIX)
    return cast("route_pb2.FeatureFailurePolicy.ValueType", number)


def failure_policy_from_proto(number: int) -> FeatureFailurePolicy | None:
    """Return what happens when features cannot be fetched, None when it is not given or not known."""
    return enum_from_proto(FeatureFailurePolicy, route_pb2.FeatureFailurePolicy, FAILURE_POLICY_PREFIX, number)


_TO_PROTO: Final[Mapping[type, Callable[[Any], Message]]] = {
    Model: model_to_proto,
    ModelVersion: version_to_proto,
    Environment: environment_to_proto,
    Deployment: deployment_to_proto,
    Route: route_to_proto,
}
_FROM_BYTES: Final[Mapping[type, Callable[[bytes], Resource]]] = {
    Model: lambda body: model_from_proto(model_pb2.Model.FromString(body)),
    ModelVersion: lambda body: version_from_proto(model_version_pb2.ModelVersion.FromString(body)),
    Environment: lambda body: environment_from_proto(environment_pb2.Environment.FromString(body)),
    Deployment: lambda body: deployment_from_proto(deployment_pb2.Deployment.FromString(body)),
    Route: lambda body: route_from_proto(route_pb2.Route.FromString(body)),
}


def resource_to_bytes(resource: Resource) -> bytes:
    """Return how the database keeps a resource: the contract's message, so that old rows stay readable."""
    return _TO_PROTO[type(resource)](resource).SerializeToString(deterministic=True)


def resource_from_bytes(kind: type[ResourceT], body: bytes) -> ResourceT:
    """Return the resource that `resource_to_bytes` gave."""
    return cast("ResourceT", _FROM_BYTES[kind](body))
