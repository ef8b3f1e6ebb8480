"""Puts the inference service together."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import inference.grpc_service_pb2  # noqa: F401 - puts the service into the descriptor pool
from interlock.registry.v1 import control_service_pb2 as control_pb

from services.common.call import Binding
from services.common.channels import open_stream_channel
from services.common.health import WHOLE_SERVER
from services.common.server import Runtime
from services.common.watch import RegistryWatch, watch_registry
from services.inference.adapters.artifact_cache import ArtifactCache
from services.inference.adapters.monotonic_clock import MonotonicClock
from services.inference.adapters.registry_client import ArtifactDownloads, ReplicaReporter, desired_from
from services.inference.adapters.telemetry import PrometheusObserver, SpanTracer
from services.inference.adapters.worker_process import WorkerLauncher, WorkerLimits
from services.inference.domain.admission import QueueLimits
from services.inference.domain.model_host import HostParts, Pauses
from services.inference.domain.replica import Replica
from services.inference.domain.version import VersionKey
from services.inference.servicer.inference import InferenceServicer
from services.inference.servicer.oip import OipServicer
from services.inference.settings import InferenceSettings

SERVICE: Final = "inference"
Settings = InferenceSettings
_DOWNLOAD_IDLE_S: Final = 15.0


@asynccontextmanager
async def build(settings: InferenceSettings, runtime: Runtime[InferenceSettings]) -> AsyncIterator[Sequence[Binding]]:
    """Open the adapters, start to load what the pool should hold, and give the bindings."""
    folder = settings.state_dir.resolve() / SERVICE
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_stream_channel(settings.registry_address))
        cache = ArtifactCache(folder / "artifacts", ArtifactDownloads(channel, _DOWNLOAD_IDLE_S))
        replica = Replica(_replica_id(), settings.inference_pool, _parts(settings, runtime, cache), _teller(runtime))
        stack.push_async_callback(replica.close)
        await _enter_background(stack, runtime, ReplicaReporter(channel, replica, settings.inference_lease_s))
        watch = await stack.enter_async_context(_watch(settings, runtime, folder))
        await _enter_task(stack, runtime, _follow(watch, replica, cache, settings), "apply-configuration")
        runtime.on_drain(replica.drain)
        await _settle(replica, runtime, settings.inference_start_wait_s)
        await _enter_task(stack, runtime, _open_when_settled(replica, runtime), "readiness")
        tracer = SpanTracer(runtime.tracing)
        yield [
            Binding("interlock.inference.v1.InferenceService", InferenceServicer(replica, tracer)),
            Binding("inference.GRPCInferenceService", OipServicer(replica, tracer, _release()), frozenset({"ModelInfer"})),
        ]
