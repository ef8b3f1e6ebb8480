"""Shares of the traffic: who gets how much, which buckets, and what becomes of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from services.common import names
from services.common.errors import Violation, echo
from services.common.refusals import InvalidRequest, ResourceNotFound
from services.registry.domain.bucket import BUCKET_COUNT, assign_buckets
from services.registry.domain.catalog import check_etag, require
from services.registry.domain.failure import DeploymentNotReady
from services.registry.domain.ports import Change, Selection, Store
from services.registry.domain.replica import State, derive_state
from services.registry.domain.resource import Deployment, Environment, FallbackRung, Model, Route, Variant
from services.registry.domain.route_check import VARIANT_LIMIT

SALT_LIMIT_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class RouteUpdate:
    """What should change of a route: variants, None when they stay, and other values by field name.

    An empty salt or etag means: whatever it is now.
    """

    name: str
    variants: tuple[Variant, ...] | None
    values: Mapping[str, Any] = field(default_factory=dict)
    salt: str = ""
    etag: str = ""


def shrink(weights: Mapping[str, int], total: int) -> dict[str, int]:
    """Return the weights in proportion, adding up to `total`, which is at most what they add up to now.

    Remainders go to the largest fractions, to the first on a tie. No weight grows.
    """
    whole = sum(weights.values())
    if not 0 <= total <= whole:
        raise ValueError(f"want a total of 0 to {whole}, got {total}")
    if not whole:
        return dict(weights)
    shares = {name: divmod(weight * total, whole) for name, weight in weights.items()}
    left = total - sum(share for share, _ in shares.values())
    lucky = sorted(shares, key=lambda name: -shares[name][1])[:left]
    return {name: share + (name in lucky) for name, (share, _) in shares.items()}


def give_weight(variants: Sequence[Variant], newcomer: Variant) -> tuple[Variant, ...]:
    """Return the variants with the newcomer at its weight, and the others shrunk in proportion to make room.

    When nobody else has traffic the newcomer gets all of it. Buckets move as little as possible.
    """
    others = {variant.name: variant.weight for variant in variants if variant.name != newcomer.name}
    weight = newcomer.weight if any(others.values()) else BUCKET_COUNT
    weights = {**shrink(others, min(BUCKET_COUNT - weight, sum(others.values()))), newcomer.name: weight}
    deployments = {variant.name: variant.deployment for variant in (*variants, newcomer)}
    wanted = tuple(Variant(name, deployments[name], weights[name]) for name in deployments)
    return place(variants, wanted)


def place(held: Sequence[Variant], wanted: Sequence[Variant]) -> tuple[Variant, ...]:
    """Return the wanted variants with their buckets, as few of them moved from where `held` has them as possible."""
    ranges = assign_buckets(
        {variant.name: variant.buckets for variant in held}, {variant.name: variant.weight for variant in wanted}
    )
    return tuple(replace(variant, buckets=ranges[variant.name]) for variant in wanted)


def variant_name(deployment: Deployment, taken: Sequence[str]) -> str:
    """Return a free name for a deployment's variant: its version id, else the deployment's own id."""
    version_id = deployment.model_version.rsplit("/", 1)[1]
    deployment_id = deployment.name.rsplit("/", 1)[1]
    lowered = {name.lower() for name in taken}
    numbered = (f"{version_id}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (version_id, deployment_id, *numbered) if name.lower() not in lowered)


async def give_pending_share(change: Change, deployment: Deployment) -> None:
    """Give a deployment that has become READY the share of the traffic that it was promised.

    Shares still promised to older deployments shrink like those of the others, so that the order in which deployments
    become READY does not matter. A route that has no room for another variant leaves the share pending.
    """
    route = await change.find(Route, deployment.route)
    held = room_for(deployment, route.variants if route else ())
    if held is None or deployment.pending_weight is None:
        return
    newcomer = _newcomer(deployment, held)
    variants = give_weight(held, newcomer)
    await _shrink_older_promises(change, deployment, newcomer.weight)
    await change.put(replace(deployment, pending_weight=None, update_time=change.now, etag=change.etag))
    if route is None:
        route = _new_route(change, deployment.route)
    await change.put(replace(route, variants=variants, update_time=change.now, etag=change.etag))


def room_for(deployment: Deployment, variants: Sequence[Variant]) -> tuple[Variant, ...] | None:
    """Return the variants beside which a deployment can get traffic, those without weight dropped if need be; or None."""
    if len(variants) < VARIANT_LIMIT or any(variant.deployment == deployment.name for variant in variants):
        return tuple(variants)
    kept = tuple(variant for variant in variants if variant.weight)
    return kept if len(kept) < VARIANT_LIMIT else None


def _newcomer(deployment: Deployment, held: Sequence[Variant]) -> Variant:
    weight = deployment.pending_weight or 0
    for variant in held:
        if variant.deployment == deployment.name:
            return Variant(variant.name, deployment.name, weight)
    return Variant(variant_name(deployment, [variant.name for variant in held]), deployment.name, weight)


async def _shrink_older_promises(change: Change, deployment: Deployment, weight: int) -> None:
    selection = Selection(model=deployment.model, environment=deployment.environment)
    for other in await change.list(Deployment, selection):
        if other.pending_weight and other.create_time < deployment.create_time:
            left = other.pending_weight * (BUCKET_COUNT - weight) // BUCKET_COUNT
            await change.put(replace(other, pending_weight=left, update_time=change.now, etag=change.etag))


async def update_route(change: Change, update: RouteUpdate) -> Route:
    """Change a route's variants; one that does not exist yet is made, for everything may be deployed without traffic."""
    route = await change.find(Route, update.name)
    if route is None:
        route = await _first_route(change, update)
    check_etag(route.name, route.etag, update.etag)
    if update.salt not in ("", route.salt):
        wrong = Violation("route.salt", f"want {echo(route.salt)}, which was set once; got {echo(update.salt)}")
        raise InvalidRequest([wrong])
    values = dict(update.values)
    if update.variants is not None:
        values["variants"] = place(route.variants, await _checked(change, route, update.variants))
    await _refuse_foreign_rungs(change, route, values.get("fallback", ()))
    if replace(route, **values) == route:
        return route
    changed = replace(route, **values, update_time=change.now, etag=change.etag)
    await change.put(changed)
    return changed


async def _refuse_foreign_rungs(change: Change, route: Route, rungs: Sequence[FallbackRung]) -> None:
    for rung in rungs:
        deployment = await change.find(Deployment, rung.deployment) if rung.deployment else None
        if rung.deployment and (deployment is None or deployment.route != route.name):
            raise DeploymentNotReady(rung.deployment, f"is no deployment for {route.name}")


async def _first_route(change: Change, update: RouteUpdate) -> Route:
    model_id, environment = names.ROUTE.parse(update.name)
    await require(change, Model, names.MODEL.format(model_id))
    await require(change, Environment, names.ENVIRONMENT.format(environment))
    if update.etag or not update.variants:
        raise ResourceNotFound(update.name)
    return _new_route(change, update.name, update.salt)


def _new_route(change: Change, name: str, salt: str = "") -> Route:
    return Route(
        name=name, variants=(), salt=salt or name, create_time=change.now, update_time=change.now, etag=change.etag
    )


async def _checked(change: Change, route: Route, variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants, all with names; raises DeploymentNotReady for one that cannot answer for the route."""
    statuses = await change.statuses({variant.deployment for variant in variants})
    named: list[Variant] = []
    for variant in variants:
        deployment = await change.find(Deployment, variant.deployment)
        if deployment is None or deployment.route != route.name:
            raise DeploymentNotReady(variant.deployment, f"is no deployment for {route.name}")
        state, message = derive_state(statuses.get(variant.deployment, ()))
        if variant.weight and state is not State.READY:
            raise DeploymentNotReady(variant.deployment, f"is {state.value}, want READY: {message}")
        taken = [other.name for other in (*variants, *named) if other.name]
        named.append(replace(variant, name=variant.name or variant_name(deployment, taken)))
    return named


async def route_as_of(store: Store, name: str, time: datetime | None) -> Route:
    """Return a route as it is, or as it was at a time; raises ResourceNotFound."""
    if time is None:
        async with store.view() as view:
            return await require(view, Route, name)
    found = await store.route_at(name, time)
    if found is None:
        raise ResourceNotFound(name)
    return found
