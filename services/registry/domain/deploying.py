"""Deployments: asked for, changed while they serve, reported on by replicas, taken away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.common import names
from services.common.errors import Violation, echo
from services.common.refusals import InvalidRequest
from services.registry.domain.batching_check import check_batching
from services.registry.domain.bucket import BUCKET_COUNT
from services.registry.domain.catalog import check_etag, refuse_clash, require, resolve_version
from services.registry.domain.failure import AlreadyDeployed, DeploymentInUse, SignatureUnsatisfied, refuse
from services.registry.domain.ports import Change, FeatureGate, Scope, Selection
from services.registry.domain.replica import ReplicaReport, State
from services.registry.domain.resource import (
    DEFAULT_POOL,
    Batching,
    Deployment,
    DeviceClass,
    Environment,
    Model,
    ModelVersion,
    Route,
)
from services.registry.domain.route_check import VARIANT_LIMIT
from services.registry.domain.traffic import give_pending_share

REPLICA_LIMIT: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOrder:
    """What somebody wants deployed; `share` is in basis points, None the default. Ids, not names."""

    model: str
    version: str
    environment: str
    pool: str
    replicas: int
    device_class: DeviceClass
    batching: Batching | None
    share: int | None
    deployment_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentUpdate:
    """What should change of a deployment: fields of its policy, by name. An empty etag means: whatever it is now."""

    name: str
    policy: Mapping[str, Any]
    fixed: Mapping[str, Any]
    """What the caller says of fields that never change; anything but what they are is refused."""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class FeaturePins:
    """What the features service said of the version `model_version`: every feature is there, from views so digested."""

    model_version: str
    digests: Mapping[str, str]


class FeatureCheckNeeded(Exception):
    """The features service must be asked about a version before it is deployed, outside of any transaction."""

    def __init__(self, version: ModelVersion) -> None:
        super().__init__(version.name)
        self.version = version


async def check_features(gate: FeatureGate, version: ModelVersion) -> FeaturePins:
    """Return what a version's deployments pin; raises SignatureUnsatisfied, FeaturesUnavailable."""
    violations, digests = await gate.check(version)
    if violations:
        raise SignatureUnsatisfied(version.name, violations)
    return FeaturePins(version.name, digests)


async def deploy(change: Change, order: DeployOrder, pins: FeaturePins | None = None) -> Deployment:
    """Ask that a version be loaded; the replicas of its pool hear of it at once.

    Raises FeatureCheckNeeded when the version fetches features and `pins` are not its own.
    """
    version = await resolve_version(change, names.VERSION.format(order.model, order.version))
    await require(change, Environment, names.ENVIRONMENT.format(order.environment))
    siblings = await change.list(Deployment, Selection(model=version.model, environment=order.environment))
    _refuse_double(version, order.pool, siblings)
    if version.fetched_features and (pins is None or pins.model_version != version.name):
        raise FeatureCheckNeeded(version)
    deployment = Deployment(
        name=_deployment_name(order, version),
        model_version=version.name,
        environment=order.environment,
        pool=order.pool,
        replicas=order.replicas,
        device_class=order.device_class,
        batching=order.batching,
        pending_weight=_promise(order.share, siblings),
        creator=change.author.principal,
        create_time=change.now,
        update_time=change.now,
        etag=change.etag,
        feature_view_digests=pins.digests if pins else {},
    )
    await refuse_clash(change, deployment.name)
    for scope in await _scopes_of_nobody_else(change, deployment):
        await change.tell(version, scope)
    if not siblings:
        await change.tell(await require(change, Model, version.model), Scope(environment=order.environment))
    await change.put(deployment)
    return deployment


def _refuse_double(version: ModelVersion, pool: str, siblings: Sequence[Deployment]) -> None:
    for other in siblings:
        if (other.model_version, other.pool) == (version.name, pool):
            raise AlreadyDeployed(version.name, other.name)


def _deployment_name(order: DeployOrder, version: ModelVersion) -> str:
    deployment_id = order.deployment_id or "-".join(
        [order.model, version.version_id, order.environment, *([order.pool] if order.pool != DEFAULT_POOL else [])]
    )
    wrong = names.id_violation(deployment_id, "deployment_id")
    if wrong is not None:
        raise InvalidRequest([Violation(wrong.field, f"{wrong.description}; choose an id yourself")])
    return names.DEPLOYMENT.format(deployment_id)


def _promise(share: int | None, siblings: Sequence[Deployment]) -> int | None:
    if not siblings:
        # The only one that can answer gets everything, unless it is to get nothing.
        return None if share == 0 else BUCKET_COUNT
    if not share:
        return None
    if sum(1 for other in siblings if other.pending_weight) >= VARIANT_LIMIT:
        wrong = Violation("traffic_percent", f"want none while {VARIANT_LIMIT} others wait for theirs, got a share")
        raise InvalidRequest([wrong])
    return share


async def update_deployment(change: Change, update: DeploymentUpdate) -> Deployment:
    """Change the policy of a deployment; the replicas of its pool hear of it at once.

    One that changes nothing leaves the etag as it is. What cannot be right is judged on the policy as it would be.
    """
    deployment = await require(change, Deployment, update.name)
    check_etag(deployment.name, deployment.etag, update.etag)
    before = deployment.batching or Batching()
    batching = replace(before, **update.policy)
    refuse([*_fixed_violations(deployment, update.fixed), *check_batching(batching, "deployment.batching")])
    if batching == before:
        return deployment
    changed = replace(deployment, batching=batching, update_time=change.now, etag=change.etag)
    await change.put(changed)
    return changed


def _fixed_violations(deployment: Deployment, fixed: Mapping[str, Any]) -> list[Violation]:
    return [
        Violation(
            f"deployment.{field}", f"want {_plain(getattr(deployment, field))}, which is fixed; got {_plain(value)}"
        )
        for field, value in fixed.items()
        if value != getattr(deployment, field)
    ]


def _plain(value: str | int | DeviceClass) -> str:
    if isinstance(value, DeviceClass):
        return value.value
    return echo(value) if isinstance(value, str) else str(value)


async def delete_deployment(change: Change, name: str, etag: str) -> None:
    """Ask that a version be unloaded; a route that gives it traffic stands in the way, one without weight forgets it."""
    deployment = await require(change, Deployment, name)
    check_etag(name, deployment.etag, etag)
    route = await change.find(Route, deployment.route)
    if route is not None:
        await _leave_route(change, deployment, route)
    await change.delete(deployment)
    version = await require(change, ModelVersion, deployment.model_version)
    for scope in await _scopes_of_nobody_else(change, deployment):
        await change.tell(version, scope, gone=True)
    if not await change.list(Deployment, Selection(model=version.model, environment=deployment.environment)):
        model = await require(change, Model, version.model)
        await change.tell(model, Scope(environment=deployment.environment), gone=True)


async def _leave_route(change: Change, deployment: Deployment, route: Route) -> None:
    weight = sum(variant.weight for variant in route.variants if variant.deployment == deployment.name)
    if weight:
        raise DeploymentInUse(deployment.name, route.name, f"has {weight / 100:g} % of the traffic of {route.name}")
    if any(rung.deployment == deployment.name for rung in route.fallback):
        raise DeploymentInUse(deployment.name, route.name, f"is a rung of the fallback of {route.name}")
    kept = tuple(variant for variant in route.variants if variant.deployment != deployment.name)
    if kept != route.variants:
        await change.put(replace(route, variants=kept, update_time=change.now, etag=change.etag))


async def _scopes_of_nobody_else(change: Change, deployment: Deployment) -> list[Scope]:
    """Return those scopes of a deployment in which no other deployment holds its version."""
    others = await change.list(Deployment, Selection(model_version=deployment.model_version))
    others = [other for other in others if other.name != deployment.name]
    found = []
    if all(other.environment != deployment.environment for other in others):
        found.append(Scope(environment=deployment.environment))
    if all(other.pool != deployment.pool for other in others):
        found.append(Scope(pool=deployment.pool))
    return found


async def take_report(change: Change, report: ReplicaReport) -> None:
    """Take what a replica says; a deployment that is READY for the first time gets its promised share.

    A deployment that is gone is left out: the replica has not heard of that yet.
    """
    found = [await change.find(Deployment, name) for name in report.states]
    known = [deployment for deployment in found if deployment is not None]
    wrong = [
        Violation("reports", f"want deployments of the pool {report.pool}, got {other.name} of {other.pool}")
        for other in known
        if other.pool != report.pool
    ]
    if wrong:
        raise InvalidRequest(wrong)
    states = {deployment.name: report.states[deployment.name] for deployment in known}
    await change.keep_report(replace(report, states=states))
    if report.draining:
        return
    for deployment in sorted(known, key=lambda each: each.create_time):
        if states[deployment.name][0] is State.READY and deployment.pending_weight is not None:
            # Read again: a share that was given a moment ago shrinks older promises.
            await give_pending_share(change, await require(change, Deployment, deployment.name))
