"""The registry watch client against a real gRPC server that plays the registry's part."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from interlock.registry.v1 import control_service_pb2 as pb
from interlock.registry.v1.deployment_pb2 import Deployment
from interlock.registry.v1.route_pb2 import Route
from prometheus_client import CollectorRegistry

from services.common.call import Binding, Call, methods_of
from services.common.chain import Chain, Limits
from services.common.door_grpc import DoorProfile, GrpcDoor
from services.common.errors import OutOfRange
from services.common.metrics import RequestMetrics
from services.common.tracing import Tracing
from services.common.watch import Configuration, RegistryWatch, watch_registry

Event = pb.WatchResponse | Exception | None
REQUEST = pb.WatchRequest(environment="production", watcher_id="test")


class ScriptedControl:
    """Sends what the test queues; None ends a stream."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.tokens: asyncio.Queue[str] = asyncio.Queue()

    async def Watch(self, request: pb.WatchRequest, call: Call) -> AsyncIterator[pb.WatchResponse]:
        self.tokens.put_nowait(request.resume_token)
        while (event := await self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def ListFeatureBindings(
        self, request: pb.ListFeatureBindingsRequest, call: Call
    ) -> pb.ListFeatureBindingsResponse:
        raise NotImplementedError

    async def ReportReplica(self, request: pb.ReportReplicaRequest, call: Call) -> pb.ReportReplicaResponse:
        raise NotImplementedError


class Registry:
    """A server that can be stopped and started on one address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.control = ScriptedControl()
        self._door: GrpcDoor | None = None

    async def start(self) -> None:
        chain = Chain(
            limits=Limits(), metrics=RequestMetrics("registry", CollectorRegistry()), tracing=Tracing("registry")
        )
        methods = methods_of([Binding("interlock.registry.v1.ControlService", self.control)])
        self._door = GrpcDoor(chain, methods, DoorProfile(message_bytes=1 << 20))
        await self._door.listen([self.address])

    async def stop(self) -> None:
        if self._door is not None:
            await self._door.stop(0)
            self._door = None

    def send(self, *events: Event) -> None:
        for event in events:
            self.control.events.put_nowait(event)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    registry = Registry(f"unix:{tmp_path / 'r.sock'}")
    await registry.start()
    yield registry
    await registry.stop()


def _watch(registry: Registry, tmp_path: Path) -> AbstractAsyncContextManager[RegistryWatch]:
    metrics = CollectorRegistry()
    return watch_registry(registry.address, REQUEST, folder=tmp_path / "watch", service="router", registry=metrics)


def _route(model: str) -> pb.WatchedResource:
    return pb.WatchedResource(route=Route(name=f"models/{model}/routes/production"))


def _deployment(name: str, replicas: int = 1) -> pb.WatchedResource:
    return pb.WatchedResource(deployment=Deployment(name=f"deployments/{name}", replicas=replicas))


def _snapshot(epoch: int, *resources: pb.WatchedResource) -> pb.WatchResponse:
    return pb.WatchResponse(
        epoch=epoch, resume_token=f"t{epoch}", snapshot=pb.WatchSnapshot(resources=[*resources, pb.WatchedResource()])
    )


def _delta(epoch: int, upserted: list[pb.WatchedResource], deleted: list[str]) -> pb.WatchResponse:
    return pb.WatchResponse(
        epoch=epoch, resume_token=f"t{epoch}", delta=pb.WatchDelta(upserted=upserted, deleted=deleted)
    )


async def _until_epoch(watch: RegistryWatch, epoch: int) -> Configuration:
    async with asyncio.timeout(10):
        async for configuration in watch.changes():
            if configuration.epoch >= epoch:
                return configuration
    raise AssertionError(epoch)


async def test_a_snapshot_and_deltas_make_the_configuration(registry: Registry, tmp_path: Path) -> None:
    async with _watch(registry, tmp_path) as watch:
        assert (watch.known, watch.age_s, watch.current.epoch) == (False, float("inf"), 0)
        registry.send(_snapshot(3, _route("a"), _deployment("d1"), _deployment("d2")))
        first = await _until_epoch(watch, 3)
        registry.send(_delta(4, [_deployment("d2", 5), _deployment("d3")], ["deployments/d1"]))
        second = await _until_epoch(watch, 4)
    assert set(first.deployments()) == {"deployments/d1", "deployments/d2"}
    assert set(first.routes()) == {"models/a/routes/production"}
    assert {name: each.replicas for name, each in second.deployments().items()} == {
        "deployments/d2": 5,
        "deployments/d3": 1,
    }
    assert watch.age_s < 5


async def test_a_broken_stream_is_resumed_after_the_last_change(registry: Registry, tmp_path: Path) -> None:
    async with _watch(registry, tmp_path) as watch:
        registry.send(_snapshot(3, _route("a")), None, _delta(4, [_route("b")], []))
        configuration = await _until_epoch(watch, 4)
    assert len(configuration.routes()) == 2
    assert [registry.control.tokens.get_nowait(), registry.control.tokens.get_nowait()] == ["", "t3"]


async def test_a_token_too_old_begins_anew_and_keeps_what_is_known_meanwhile(
    registry: Registry, tmp_path: Path
) -> None:
    async with _watch(registry, tmp_path) as watch:
        registry.send(_snapshot(3, _route("a")), None, OutOfRange("too old", reason="WATCH_TOKEN_EXPIRED"))
        tokens = [await asyncio.wait_for(registry.control.tokens.get(), 10) for _ in range(3)]
        assert len(watch.current.routes()) == 1
        registry.send(_snapshot(9, _route("b")))
        configuration = await _until_epoch(watch, 9)
    assert tokens == ["", "t3", ""]
    assert set(configuration.routes()) == {"models/b/routes/production"}


async def test_a_restart_without_the_registry_starts_from_disk_and_resumes(registry: Registry, tmp_path: Path) -> None:
    async with _watch(registry, tmp_path) as watch:
        registry.send(_snapshot(3, _route("a")))
        await _until_epoch(watch, 3)
        await _until_file(tmp_path)
    await registry.stop()
    async with _watch(registry, tmp_path) as watch:
        assert watch.known
        assert set(watch.current.routes()) == {"models/a/routes/production"}
        assert 0 <= watch.age_s < 60
        registry.control = ScriptedControl()
        registry.send(_delta(4, [_route("b")], []))
        await registry.start()
        configuration = await _until_epoch(watch, 4)
    assert len(configuration.routes()) == 2
    assert registry.control.tokens.get_nowait() == "t3"


async def test_a_heartbeat_changes_nothing_but_the_age(registry: Registry, tmp_path: Path) -> None:
    heartbeat = pb.WatchResponse(epoch=3, resume_token="t3", heartbeat=pb.WatchHeartbeat())
    async with _watch(registry, tmp_path) as watch:
        registry.send(_snapshot(3, _route("a")))
        known = await _until_epoch(watch, 3)
        registry.send(heartbeat, _delta(4, [], []))
        assert (await _until_epoch(watch, 4)).resources == known.resources


async def _until_file(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        while not list((tmp_path / "watch").glob("environment-production.snapshot")):
            await asyncio.sleep(0.01)
