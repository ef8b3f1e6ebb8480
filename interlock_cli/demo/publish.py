"""Brings trained versions to traffic: register, deploy, wait, split. What is there already is used as it is."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from interlock.registry.v1 import model_version_pb2, route_pb2

from interlock_cli.demo.cache import TrainedVersion
from interlock_cli.demo.failure import DemoFailed
from interlock_sdk.client import Client
from interlock_sdk.deployments import DEFAULT_ENVIRONMENT
from interlock_sdk.errors import CallError

MODEL = "flight-delay"

# Nine users in ten meet the first version, the tenth meets the second.
WEIGHTS_BASIS_POINTS = (9_000, 1_000)

_READY_TIMEOUT_S = 60.0
_ROUTE_TIMEOUT_S = 15.0
_ROUTE_POLL_S = 0.1
_SPLIT_ATTEMPTS = 5

# Hears, in words, what has been done.
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Published:
    """What serves: version ids in the order of the trained versions, and the epoch from which routers know the split."""

    version_ids: tuple[str, ...]
    route_epoch: int


async def publish(client: Client, trained: Sequence[TrainedVersion], report: Report) -> Published:
    """Registers and deploys the trained versions and splits the traffic between them.

    A route that has been split before is left alone: somebody may have moved the weights since.

    Raises:
        CallError, DeploymentFailed, DeploymentNotReady, DemoFailed: in one line, what stands in the way.
    """
    description = "Will a flight from New York City arrive more than 15 minutes late?"
    await client.models.ensure(MODEL, description=description, owner="interlock demo")
    versions = [await _registered(client, version, report) for version in trained]
    before = {item.model_version: item.name async for item in client.deployments.list(MODEL, DEFAULT_ENVIRONMENT)}
    names = [before.get(version.name) or await _deploy(client, version.name) for version in versions]
    for name in names:
        deployment = await client.deployments.wait_until_ready(name, timeout_s=_READY_TIMEOUT_S)
        report(f"{deployment.model_version} is READY")
    version_ids = tuple(version.name.rpartition("/")[2] for version in versions)
    is_new = any(name not in before.values() for name in names)
    epoch = await _split(client, dict(zip(version_ids, names, strict=True)), report, is_new=is_new)
    return Published(version_ids, epoch)


async def _registered(client: Client, trained: TrainedVersion, report: Report) -> model_version_pb2.ModelVersion:
    async for version in client.models.versions(MODEL):
        if _answers_alike(version, trained.description):
            report(f"{version.name} is registered already")
            return version
    await client.artifacts.upload(trained.artifact_path)
    version = await client.models.register(MODEL, trained.description)
    report(f"{version.name} registered: {trained.recipe.name}")
    return version


def _answers_alike(version: model_version_pb2.ModelVersion, other: model_version_pb2.ModelVersion) -> bool:
    # Not the whole signature: the registry may have filled in what was left to its defaults.
    return _essence(version) == _essence(other)


def _essence(version: model_version_pb2.ModelVersion) -> tuple[object, ...]:
    features = [(item.name, item.type, item.tensor, item.column) for item in version.signature.features]
    return [file.digest for file in version.files], features


async def _deploy(client: Client, version_name: str) -> str:
    # Without a share: until the split, the first version that is deployed gets everything, and any other nothing.
    return (await client.deployments.create(MODEL, version_name.rpartition("/")[2])).name


async def _split(client: Client, deployments: dict[str, str], report: Report, *, is_new: bool) -> int:
    """Gives each version id's deployment its weight; gives the epoch of the change, 0 when there was none."""
    variants = [
        route_pb2.Variant(name=version_id, deployment=name, weight_basis_points=weight)
        for (version_id, name), weight in zip(deployments.items(), WEIGHTS_BASIS_POINTS, strict=True)
    ]
    for _ in range(_SPLIT_ATTEMPTS):
        route = await _existing_route(client)
        if not is_new and len(route.variants) > 1:
            report(f"traffic stays as it is: {describe_split(route)}")
            return 0
        try:
            change = await client.routes.set_variants(route, variants)
        except CallError as error:
            if error.code is grpc.StatusCode.ABORTED:
                continue
            raise
        report(f"traffic: {describe_split(change.route)}")
        return change.epoch
    raise DemoFailed(f"{MODEL}: somebody else keeps changing the route")


async def _existing_route(client: Client) -> route_pb2.Route:
    # The registry makes it when it hears that the first deployment is READY, which may be a moment after we do.
    try:
        async with asyncio.timeout(_ROUTE_TIMEOUT_S):
            while True:
                if (route := await client.routes.get(MODEL)) is not None:
                    return route
                await asyncio.sleep(_ROUTE_POLL_S)
    except TimeoutError:
        raise DemoFailed(f"{MODEL} has had no route for {_ROUTE_TIMEOUT_S:g} s") from None


def describe_split(route: route_pb2.Route) -> str:
    """Gives the shares in words, for example "90 % to version 1, 10 % to version 2"."""
    shares = (f"{variant.weight_basis_points / 100:g} % to version {variant.name}" for variant in route.variants)
    return ", ".join(shares)
