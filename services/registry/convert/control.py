"""What watchers ask and are told, and what replicas report."""

from typing import Final

from interlock.registry.v1 import control_service_pb2 as pb
from interlock.registry.v1 import deployment_pb2, model_pb2
from interlock.types.v1 import signature_pb2

from services.common import names
from services.common.errors import Violation
from services.common.refusals import InvalidRequest
from services.common.stamp import duration_from_proto, enum_from_proto
from services.registry.convert.resource import (
    STATE_PREFIX,
    deployment_to_proto,
    route_to_proto,
    version_to_proto,
)
from services.registry.domain.failure import refuse
from services.registry.domain.ports import Delta, Scope, Snapshot
from services.registry.domain.replica import (
    DEFAULT_LEASE,
    LONGEST_LEASE,
    MESSAGE_LIMIT_CHARS,
    SHORTEST_LEASE,
    ReplicaReport,
    State,
)
from services.registry.domain.resource import Deployment, FeatureBinding, Model, ModelVersion, Resource, Route
from services.registry.domain.watch import Event

WATCHER_LIMIT_BYTES: Final = 128
VIEW_LIMIT: Final = 1_000
_REPORTED: Final = (State.LOADING, State.READY, State.FAILED)


def scope_of(request: pb.WatchRequest) -> Scope:
    """Return what a watcher wants to know of."""
    selector = request.WhichOneof("selector")
    if selector is None:
        raise InvalidRequest([Violation("environment", "want an environment or a pool, got neither")])
    if len(request.watcher_id.encode()) > WATCHER_LIMIT_BYTES:
        size_bytes = len(request.watcher_id.encode())
        raise InvalidRequest([Violation("watcher_id", f"want at most {WATCHER_LIMIT_BYTES} bytes, got {size_bytes}")])
    if selector == "environment":
        return Scope(environment=names.parse_id(request.environment, "environment"))
    return Scope(pool=names.parse_id(request.pool, "pool"))


def event_to_proto(event: Event, token: str) -> pb.WatchResponse:
    """Return the message for one event; `token` goes on after it."""
    response = pb.WatchResponse(epoch=event.epoch, resume_token=token)
    if isinstance(event, Snapshot):
        response.snapshot.resources.extend(watched_to_proto(resource) for resource in event.resources)
        response.snapshot.SetInParent()
    elif isinstance(event, Delta):
        response.delta.upserted.extend(watched_to_proto(resource) for resource in event.upserted)
        response.delta.deleted.extend(event.deleted)
    else:
        response.heartbeat.SetInParent()
    return response


def watched_to_proto(resource: Resource) -> pb.WatchedResource:
    """Return a resource as watchers see it: without what only people and statistics need."""
    if isinstance(resource, Route):
        return pb.WatchedResource(route=route_to_proto(resource))
    if isinstance(resource, Deployment):
        return pb.WatchedResource(deployment=deployment_to_proto(resource))
    if isinstance(resource, Model):
        return pb.WatchedResource(model=model_pb2.Model(name=resource.name, aliases=resource.aliases))
    if not isinstance(resource, ModelVersion):
        raise TypeError(f"nobody watches a {type(resource).__name__}")
    version = version_to_proto(resource)
    version.ClearField("baseline")
    version.ClearField("lineage")
    return pb.WatchedResource(model_version=version)


def binding_to_proto(binding: FeatureBinding) -> pb.FeatureBinding:
    """Return the contract's binding."""
    spec = signature_pb2.FeatureSpec.FromString(binding.spec)
    return pb.FeatureBinding(model_version=binding.model_version, feature_spec=spec)


def views_of(request: pb.ListFeatureBindingsRequest) -> list[str]:
    """Return the views whose bindings are wanted, each once; none for all."""
    wrong = [names.id_violation(view, f"feature_views[{index}]") for index, view in enumerate(request.feature_views)]
    if len(request.feature_views) > VIEW_LIMIT:
        wrong.insert(0, Violation("feature_views", f"want at most {VIEW_LIMIT}, got {len(request.feature_views)}"))
    refuse([violation for violation in wrong if violation is not None])
    return sorted(set(request.feature_views))


def report_from_proto(request: pb.ReportReplicaRequest) -> ReplicaReport:
    """Return what a replica says; raises InvalidRequest with everything that is wrong with it."""
    lease = duration_from_proto(request.lease_duration) if request.HasField("lease_duration") else DEFAULT_LEASE
    wrong = [
        found
        for field, value in (("replica_id", request.replica_id), ("pool", request.pool))
        if (found := names.id_violation(value, field)) is not None
    ]
    if not SHORTEST_LEASE <= lease <= LONGEST_LEASE:
        want = f"want {SHORTEST_LEASE.total_seconds():g} to {LONGEST_LEASE.total_seconds():g} s"
        wrong.append(Violation("lease_duration", f"{want}, got {lease.total_seconds():g} s"))
    states: dict[str, tuple[State, str]] = {}
    for index, message in enumerate(request.reports):
        wrong += _report_violations(message, states, f"reports[{index}]")
        # A text column takes no zero byte, and a replica must not fall silent over what an exception's text held.
        states[message.deployment] = (_state(message.state) or State.PENDING, message.message.replace("\x00", ""))
    refuse(wrong)
    return ReplicaReport(request.replica_id, request.pool, lease, states, request.draining)


def _state(number: int) -> State | None:
    return enum_from_proto(State, deployment_pb2.DeploymentState, STATE_PREFIX, number)


def _report_violations(
    message: pb.DeploymentReport, earlier: dict[str, tuple[State, str]], path: str
) -> list[Violation]:
    wrong = [found] if (found := names.DEPLOYMENT.violation(message.deployment, f"{path}.deployment")) else []
    if message.deployment in earlier:
        wrong.append(Violation(f"{path}.deployment", "want each deployment once, got this one again"))
    if _state(message.state) not in _REPORTED:
        wrong.append(Violation(f"{path}.state", "want LOADING, READY or FAILED, got none of them"))
    if len(message.message) > MESSAGE_LIMIT_CHARS:
        want = f"want at most {MESSAGE_LIMIT_CHARS} characters, got {len(message.message)}"
        wrong.append(Violation(f"{path}.message", want))
    return wrong
