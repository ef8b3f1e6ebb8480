"""Puts the inference service together."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import inference.grpc_service_pb2  # noqa: F401 - puts the service into the descriptor pool
from interlock.registry.v1 import control_service_pb2 as control_pb

from services.common.call import Binding, methods_of
from services.common.channels import open_stream_channel
from services.common.health import WHOLE_SERVER
from services.common.server import Runtime
from services.common.shared_regions import SharedRegions
from services.common.watch import RegistryWatch, watch_registry
from services.inference.adapters.artifact_cache import ArtifactCache
from services.inference.adapters.model_launcher import ModelLauncher
from services.inference.adapters.monotonic_clock import MonotonicClock
from services.inference.adapters.registry_client import ArtifactDownloads, ReplicaReporter, desired_from
from services.inference.adapters.telemetry import PrometheusObserver, SpanTracer
from services.inference.adapters.worker_process import WorkerLimits
from services.inference.domain.admission import QueueLimits
from services.inference.domain.instance import HostParts, Pauses
from services.inference.domain.replica import Replica
from services.inference.domain.version import VersionKey
from services.inference.servicer.framed_streams import FramedStreams, serve_tcp, serve_unix
from services.inference.servicer.inference import InferenceServicer
from services.inference.servicer.oip import OipServicer
from services.inference.servicer.relay import RelayServer, serve_relay
from services.inference.settings import InferenceSettings

SERVICE: Final = "inference"
OIP: Final = "inference.GRPCInferenceService"
HOT_METHODS: Final = frozenset({"ModelInfer"})
HOT: Final = frozenset(f"{OIP}/{method}" for method in HOT_METHODS)
"""Full names of the methods that the door in Envoy answers."""
Settings = InferenceSettings
_DOWNLOAD_IDLE_S: Final = 15.0
_CONFIGURATION_WAIT_S: Final = 5.0


@asynccontextmanager
async def build(settings: InferenceSettings, runtime: Runtime[InferenceSettings]) -> AsyncIterator[Sequence[Binding]]:
    """Open the adapters, start to load what the pool should hold, and give the bindings."""
    folder = settings.state_dir.resolve() / SERVICE
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_stream_channel(settings.registry_address))
        cache = ArtifactCache(folder / "artifacts", ArtifactDownloads(channel, _DOWNLOAD_IDLE_S))
        replica_id = _replica_id()
        replica = Replica(replica_id, settings.inference_pool, _parts(settings, runtime, cache), _teller(runtime))
        stack.push_async_callback(replica.close)
        reporter = ReplicaReporter(channel, replica, settings.inference_lease_s)
        await stack.enter_async_context(runtime.in_background(reporter.run(), "report-replica"))
        watch = await stack.enter_async_context(_watch(settings, runtime, folder, replica_id))
        await stack.enter_async_context(
            runtime.in_background(_follow(watch, replica, cache, settings), "apply-configuration")
        )
        runtime.on_drain(replica.drain)
        await _settle(replica, runtime, settings.inference_start_wait_s)
        await stack.enter_async_context(runtime.in_background(_open_when_settled(replica, runtime), "readiness"))
        tracer = SpanTracer(runtime.tracing)
        streams = FramedStreams(replica, tracer, settings.message_limit_bytes)
        frames_address = await stack.enter_async_context(_serve_frames(streams, settings))
        servicer = InferenceServicer(
            replica, tracer, limit_bytes=settings.message_limit_bytes, frames_address=frames_address
        )
        limits = (settings.system_shared_memory_bytes, settings.message_limit_bytes)
        regions = stack.enter_context(contextlib.closing(SharedRegions(*limits, runtime.chain.budget)))
        oip = Binding(OIP, OipServicer(replica, tracer, runtime.streams, _release(), regions), hot=HOT_METHODS)
        await stack.enter_async_context(_serve_fronts(runtime, oip))
        yield [Binding("interlock.inference.v1.InferenceService", servicer), oip]


def _serve_fronts(runtime: Runtime[InferenceSettings], oip: Binding) -> AbstractAsyncContextManager[None]:
    """Take the calls of the other processes on the port, where there are any."""
    socket_path = runtime.launched.engine_socket if runtime.launched is not None else ""
    if not socket_path:
        return contextlib.nullcontext()
    server = RelayServer(runtime.chain, methods_of([oip]), runtime.settings.message_limit_bytes)
    return serve_relay(server, Path(socket_path), runtime.settings.drain_grace_s)


def _serve_frames(streams: FramedStreams, settings: InferenceSettings) -> AbstractAsyncContextManager[str]:
    if settings.inference_frames == "unix":
        return serve_unix(streams, settings.state_dir.resolve() / "run", settings.drain_grace_s)
    if settings.inference_frames == "tcp":
        return serve_tcp(streams, settings.bind_host, settings.drain_grace_s)
    return contextlib.nullcontext("")


def _parts(settings: InferenceSettings, runtime: Runtime[InferenceSettings], cache: ArtifactCache) -> HostParts:
    limits = WorkerLimits(
        intra_op_threads=settings.inference_intra_op_threads,
        memory_limit_bytes=settings.inference_worker_memory_bytes,
        load_timeout_s=settings.inference_load_timeout_s,
        hung_s=settings.inference_worker_hung_s,
    )
    return HostParts(
        artifacts=cache,
        launcher=ModelLauncher(limits),
        clock=MonotonicClock(runtime.chain.turns),
        observer=PrometheusObserver(runtime.registry),
        limits=QueueLimits(settings.inference_queue_rows, settings.inference_queue_bytes),
        loads=asyncio.Semaphore(settings.inference_parallel_loads),
        pauses=Pauses(
            load_first_s=settings.inference_load_retry_first_s,
            load_longest_s=settings.inference_load_retry_longest_s,
            restart_longest_s=settings.inference_restart_longest_s,
            drain_s=settings.inference_unload_wait_s,
        ),
        arriving=runtime.chain.arrivals.count,
    )


def _teller(runtime: Runtime[InferenceSettings]) -> Callable[[VersionKey, bool | None], None]:
    """Return what writes a version's state on the health board."""

    def tell(key: VersionKey, ready: bool | None) -> None:
        name = f"model/{key.model}/{key.version}"
        if ready is None:
            runtime.health.remove(name)
        else:
            runtime.health.set(name, ready)

    return tell


def _watch(
    settings: InferenceSettings, runtime: Runtime[InferenceSettings], folder: Path, replica_id: str
) -> AbstractAsyncContextManager[RegistryWatch]:
    request = control_pb.WatchRequest(pool=settings.inference_pool, watcher_id=replica_id)
    return watch_registry(settings.registry_address, request, folder=folder, service=SERVICE, registry=runtime.registry)


async def _follow(watch: RegistryWatch, replica: Replica, cache: ArtifactCache, settings: InferenceSettings) -> None:
    """Apply every configuration, and let go of files that none of its versions has any more."""
    async for configuration in watch.changes():
        desired = desired_from(configuration)
        replica.apply(desired)
        keep = {file.digest for version in desired.versions.values() for file in version.files}
        await cache.prune(keep, settings.inference_cache_unused_s)


async def _settle(replica: Replica, runtime: Runtime[InferenceSettings], wait_s: float) -> None:
    """Wait until every version of the pool was READY or failed once, so that a replacement begins with all of them.

    Nothing waits for ever: without a configuration the port opens soon, and the whole server says NOT_SERVING.
    """
    with contextlib.suppress(TimeoutError):
        await _wait_for(replica, lambda: replica.configured, min(wait_s, _CONFIGURATION_WAIT_S))
    if replica.configured:
        with contextlib.suppress(TimeoutError):
            await _wait_for(replica, lambda: replica.settled, wait_s)
    if not replica.settled:
        runtime.health.set(WHOLE_SERVER, serving=False)


async def _open_when_settled(replica: Replica, runtime: Runtime[InferenceSettings]) -> None:
    """Let the whole server serve once settled. It stays so: a deployment that comes later is told by its own name."""
    await _wait_for(replica, lambda: replica.settled, None)
    runtime.health.set(WHOLE_SERVER, serving=True)


async def _wait_for(replica: Replica, condition: Callable[[], bool], limit_s: float | None) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            changed = replica.changed()
            if condition():
                return
            await changed.wait()


def _replica_id() -> str:
    """Return an id that is unique to the process and says where it runs."""
    host = "".join(letter for letter in socket.gethostname() if letter.isascii() and letter.isalnum())[:40]
    return f"inference-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def _release() -> str:
    try:
        return version("interlock")
    except PackageNotFoundError:
        return "0"
