"""What the registry wants, as a watcher knows it: pushed by the registry, kept on disk, used when the registry is down.

The stream gives a snapshot, then deltas; it is resumed after a break, and begun anew when the token is too old.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from interlock.registry.v1 import control_service_pb2 as pb
from interlock.registry.v1 import control_service_pb2_grpc as rpc
from interlock.registry.v1.deployment_pb2 import Deployment
from interlock.registry.v1.model_version_pb2 import ModelVersion
from interlock.registry.v1.route_pb2 import Route
from prometheus_client import CollectorRegistry, Gauge

from services.common.channels import open_stream_channel
from services.common.snapshot_file import SnapshotFile
from services.common.tasks import spawn

_LOG: Final = structlog.get_logger(part="watch")
# The registry sends a heartbeat every 5 s; three missed ones mean a broken connection.
_SILENCE_LIMIT_S: Final = 15.0
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 10.0
_MOST_DOUBLINGS: Final = 10


@dataclass(frozen=True)
class Configuration:
    """Everything the selector names, at one epoch; each change makes a new one."""

    epoch: int = 0
    resources: Mapping[str, pb.WatchedResource] = field(default_factory=dict)
    """By resource name."""

    def routes(self) -> dict[str, Route]:
        """Routes by name."""
        return {name: each.route for name, each in self.resources.items() if each.HasField("route")}

    def deployments(self) -> dict[str, Deployment]:
        """Deployments by name."""
        return {name: each.deployment for name, each in self.resources.items() if each.HasField("deployment")}

    def model_versions(self) -> dict[str, ModelVersion]:
        """Model versions by name."""
        return {name: each.model_version for name, each in self.resources.items() if each.HasField("model_version")}


class RegistryWatch:
    """Follows the registry; `current` is always the newest configuration known, from the stream or from disk."""

    def __init__(self, stub: "rpc.ControlServiceAsyncStub", request: pb.WatchRequest, file: SnapshotFile) -> None:
        self._stub = stub
        self._request = request
        self._file = file
        self._token = ""
        self._current: Configuration | None = None
        self._changed = asyncio.Event()
        self._unsaved = asyncio.Event()
        self._fresh_at: float | None = None
        self._failures = 0

    @property
    def current(self) -> Configuration:
        """The newest configuration; empty at epoch 0 while nothing is known."""
        return self._current or Configuration()

    @property
    def known(self) -> bool:
        """Whether there is a configuration at all, be it from disk."""
        return self._current is not None

    @property
    def age_s(self) -> float:
        """Seconds since the registry last said that `current` holds; infinite while nothing is known."""
        return float("inf") if self._fresh_at is None else time.monotonic() - self._fresh_at

    async def changes(self) -> AsyncIterator[Configuration]:
        """Yield the newest configuration, now if one is known and after each change; a slow reader skips some."""
        seen: Configuration | None = None
        while True:
            changed = self._changed
            if self._current is not None and self._current is not seen:
                seen = self._current
                yield seen
            else:
                await changed.wait()

    def load(self) -> None:
        """Start from the last snapshot on disk, if there is a good one."""
        found = self._file.load(_parse_snapshot)
        if found is None:
            return
        snapshot, written_at = found
        self._apply(snapshot)
        self._unsaved.clear()
        self._fresh_at = time.monotonic() - max(0.0, time.time() - written_at)
        _LOG.info("configuration_loaded", epoch=snapshot.epoch, age_s=round(self.age_s, 1))

    async def follow(self) -> None:
        """Keep the stream open for ever; breaks are waited out with full jitter."""
        while True:
            try:
                await self._follow_once()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                self._note(error)
            except Exception as error:  # noqa: BLE001 - a watcher that gives up would serve an old configuration for ever
                _LOG.error("watch_failed", exc_info=error)
            bound_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self._failures)
            # Bounded, for a registry may be down for days.
            self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
            await asyncio.sleep(random.uniform(0, bound_s))  # noqa: S311 - jitter

    async def keep(self) -> None:
        """Write each new configuration to disk; several changes during one write become one."""
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            try:
                await asyncio.to_thread(self._file.save, self._snapshot().SerializeToString())
            except OSError as error:
                _LOG.error("snapshot_not_saved", error=str(error))

    async def _follow_once(self) -> None:
        request = pb.WatchRequest()
        request.CopyFrom(self._request)
        request.resume_token = self._token
        stream = self._stub.Watch(request)
        async with aclosing(_with_silence_limit(stream)) as responses:
            async for response in responses:
                self._failures = 0
                self._apply(response)

    def _apply(self, response: pb.WatchResponse) -> None:
        self._fresh_at = time.monotonic()
        before = self._current
        resources = self._after(response)
        self._token = response.resume_token
        if before is not None and resources == before.resources and response.epoch == before.epoch:
            return
        self._current = Configuration(response.epoch, resources)
        self._unsaved.set()
        self._changed.set()
        self._changed = asyncio.Event()

    def _after(self, response: pb.WatchResponse) -> Mapping[str, pb.WatchedResource]:
        kind = response.WhichOneof("event")
        if kind == "snapshot":
            return _by_name(response.snapshot.resources)
        if kind != "delta":
            return self.current.resources
        gone = set(response.delta.deleted)
        kept = {name: each for name, each in self.current.resources.items() if name not in gone}
        return kept | _by_name(response.delta.upserted)

    def _snapshot(self) -> pb.WatchResponse:
        current = self.current
        snapshot = pb.WatchSnapshot(resources=current.resources.values())
        return pb.WatchResponse(epoch=current.epoch, resume_token=self._token, snapshot=snapshot)

    def _note(self, error: Exception) -> None:
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        if code is grpc.StatusCode.OUT_OF_RANGE:
            # What is known stays in use until the new snapshot replaces it.
            self._token = ""
        _LOG.warning("watch_broken", code=code.name if code else "SILENT", epoch=self.current.epoch)


@asynccontextmanager
async def watch_registry(
    address: str, request: pb.WatchRequest, *, folder: Path, service: str, registry: CollectorRegistry
) -> AsyncIterator[RegistryWatch]:
    """Watch what `request` selects while the block runs; returns at once, with what the disk has.

    `folder` keeps the snapshots. `service` and `registry` are for the metrics interlock_<service>_config_age_seconds
    and interlock_<service>_config_epoch.
    """
    selector = request.WhichOneof("selector") or "all"
    file = SnapshotFile(folder / f"{selector}-{getattr(request, selector, '')}.snapshot")
    async with open_stream_channel(address) as channel:
        watch = RegistryWatch(rpc.ControlServiceStub(channel), request, file)
        watch.load()
        _expose(watch, service, registry)
        tasks = [spawn(watch.follow(), "watch-registry"), spawn(watch.keep(), "keep-configuration")]
        try:
            yield watch
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _expose(watch: RegistryWatch, service: str, registry: CollectorRegistry) -> None:
    age = Gauge(
        f"interlock_{service}_config_age_seconds", "Seconds since the registry confirmed it.", registry=registry
    )
    age.set_function(lambda: watch.age_s)
    epoch = Gauge(f"interlock_{service}_config_epoch", "Epoch of the configuration in use.", registry=registry)
    epoch.set_function(lambda: watch.current.epoch)


async def _with_silence_limit(stream: AsyncIterable[pb.WatchResponse]) -> AsyncGenerator[pb.WatchResponse, None]:
    responses = aiter(stream)
    while True:
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with a response.
            async with asyncio.timeout(_SILENCE_LIMIT_S):
                response = await anext(responses)
        except StopAsyncIteration:
            return
        yield response


def _by_name(resources: Iterable[pb.WatchedResource]) -> dict[str, pb.WatchedResource]:
    named = {}
    for resource in resources:
        kind = resource.WhichOneof("resource")
        # A kind that a newer registry added concerns nobody here.
        if kind is not None:
            named[getattr(resource, kind).name] = resource
    return named


def _parse_snapshot(payload: bytes) -> pb.WatchResponse:
    try:
        response = pb.WatchResponse.FromString(payload)
    except DecodeError as error:
        raise ValueError("the content is no configuration") from error
    if not response.HasField("snapshot"):
        raise ValueError("the content is no configuration")
    return response
