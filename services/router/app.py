"""Composition root of the router: opens the adapters, builds the domain, binds the services."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from importlib import metadata
from typing import Final

from inference import grpc_service_pb2 as oip_pb
from interlock.features.v1 import feature_service_pb2 as features_pb
from interlock.features.v1.feature_service_pb2_grpc import FeatureServiceStub
from interlock.monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from interlock.registry.v1 import control_service_pb2 as registry_pb
from interlock.router.v1 import http_service_pb2, router_service_pb2
from interlock.router.v1alpha1 import router_service_pb2 as unstable_pb2

from services.common.call import Binding
from services.common.chain import ByteBudget
from services.common.channels import open_channel, open_stream_channel
from services.common.health import WHOLE_SERVER
from services.common.server import Runtime
from services.common.shared_regions import SharedRegions
from services.common.unimplemented import unimplemented_bindings
from services.common.watch import watch_registry
from services.router.adapters.features_client.reader import FeatureReads
from services.router.adapters.inference_client.pool import InferencePools
from services.router.adapters.inference_client.stream import StreamOptions
from services.router.adapters.metrics import EventMetrics, FetchMetrics, HopMetrics, PrometheusPredictions
from services.router.adapters.monitor_client.event_queue import EventQueue
from services.router.adapters.monitor_client.sender import EventSender
from services.router.adapters.prediction_ids import new_prediction_id
from services.router.adapters.registry_client import RoutesFollower
from services.router.domain.admission import Admission
from services.router.domain.catalog import Catalog
from services.router.domain.ports import Features, Inference
from services.router.domain.prediction import Predictor, RoutingTable
from services.router.servicer.http import RouterHttpServicer
from services.router.servicer.oip import OipServicer
from services.router.servicer.router import RouterServicer
from services.router.settings import Settings

ROUTER: Final = router_service_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
HTTP: Final = http_service_pb2.DESCRIPTOR.services_by_name["RouterHttpService"].full_name
OIP: Final = oip_pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_FEATURES: Final = features_pb.DESCRIPTOR.services_by_name["FeatureService"].full_name
_PREDICTING: Final = frozenset({"Predict", "PredictRows"})
_INFERRING: Final = frozenset({"ModelInfer"})
_HOT_OF: Final = {ROUTER: _PREDICTING, HTTP: _PREDICTING | _INFERRING, OIP: _INFERRING}
HOT: Final = frozenset(f"{service}/{method}" for service, methods in _HOT_OF.items() for method in methods)
"""Full names of the methods that the door in Envoy answers."""

# A request of PredictRowsStream is held for as long as its caller reads; the rest is for those that are answered at once.
_ROW_STREAMS_SHARE: Final = 4


@asynccontextmanager
async def build(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Sequence[Binding]]:
    """Open everything the router needs and yield its bindings; what was opened is closed in reverse."""
    table = RoutingTable()
    router_id = f"{socket.gethostname()}-{os.getpid()}"
    for name in (WHOLE_SERVER, ROUTER, HTTP, OIP):
        runtime.health.set(name, serving=False)
    async with (
        _watching(settings, runtime, table, router_id),
        _inferring(settings, runtime, router_id) as inference,
        _fetching(settings, runtime) as features,
        _reporting(settings, runtime, router_id) as events,
    ):
        predictor = Predictor(
            table=table,
            inference=inference,
            features=features,
            events=events,
            metrics=PrometheusPredictions(runtime.registry),
            admission=Admission(settings.calls_in_flight_limit),
            new_id=new_prediction_id,
            clock_tolerance_s=settings.clock_tolerance_s,
        )
        limits = (settings.system_shared_memory_bytes, settings.message_limit_bytes)
        with closing(SharedRegions(*limits, runtime.chain.budget)) as regions:
            yield _bindings(predictor, Catalog(table, inference), regions, runtime)


def _bindings(
    predictor: Predictor, catalog: Catalog, regions: SharedRegions, runtime: Runtime[Settings]
) -> Sequence[Binding]:
    oip = OipServicer(predictor, catalog, runtime.streams, _release(), regions)
    row_streams = ByteBudget(runtime.settings.bytes_in_flight_limit // _ROW_STREAMS_SHARE)
    router = RouterServicer(predictor, runtime.streams, row_streams)
    http = RouterHttpServicer(predictor, catalog, oip, runtime.health, runtime.settings.message_limit_bytes)
    return (
        Binding(ROUTER, router, hot=_HOT_OF[ROUTER]),
        Binding(HTTP, http, hot=_HOT_OF[HTTP]),
        Binding(OIP, oip, hot=_HOT_OF[OIP]),
        *unimplemented_bindings(unstable_pb2.DESCRIPTOR),
    )


def _release() -> str:
    try:
        return metadata.version("interlock")
    except metadata.PackageNotFoundError:
        # Started from a source tree that nobody installed.
        return "0.0.0"


@asynccontextmanager
async def _watching(
    settings: Settings, runtime: Runtime[Settings], table: RoutingTable, router_id: str
) -> AsyncIterator[None]:
    def serve() -> None:
        for name in (WHOLE_SERVER, ROUTER, HTTP, OIP):
            runtime.health.set(name, serving=True)

    request = registry_pb.WatchRequest(environment=settings.environment, watcher_id=router_id)
    folder = settings.state_dir / "router"
    async with watch_registry(
        settings.registry_address, request, folder=folder, service="router", registry=runtime.registry
    ) as watch:
        follower = RoutesFollower(table, serve)
        async with runtime.in_background(follower.follow(watch), "follow-routes"):
            yield


@asynccontextmanager
async def _inferring(settings: Settings, runtime: Runtime[Settings], router_id: str) -> AsyncIterator[Inference]:
    metrics = HopMetrics(runtime.registry)
    options = StreamOptions(
        client_id=router_id,
        gather_s=settings.gather_s,
        message_limit_bytes=settings.message_limit_bytes,
        on_sent=metrics.sent,
        use_frames=settings.hop == "frames",
        arriving=runtime.chain.arrivals.count,
        turns=runtime.chain.turns,
    )
    pools = InferencePools(
        settings.pool_addresses(),
        dial=lambda address: open_stream_channel(address, message_limit_bytes=settings.message_limit_bytes),
        options=options,
        tracing=runtime.tracing,
        hope_s=settings.replica_hope_s,
        attempt_timeout_s=settings.attempt_timeout_s,
        on_retry=metrics.retried,
    )
    pools.start()
    try:
        yield pools
    finally:
        await pools.close()


@asynccontextmanager
async def _fetching(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Features]:
    # Without ejection: a caller's wrong keys come back as an error of the peer, and say nothing about its health.
    channel = open_channel(
        settings.features_address,
        idempotent=[f"{_FEATURES}/ReadFeatures"],
        ejection=False,
        message_limit_bytes=settings.message_limit_bytes,
    )
    async with channel:
        reads = FeatureReads(
            FeatureServiceStub(channel),
            timeout_s=settings.features_timeout_s,
            gather_s=settings.gather_s,
            arriving=runtime.chain.arrivals.count,
            turns=runtime.chain.turns,
            tracing=runtime.tracing,
            metrics=FetchMetrics(runtime.registry),
        )
        try:
            yield reads
        finally:
            await reads.close()


@asynccontextmanager
async def _reporting(settings: Settings, runtime: Runtime[Settings], router_id: str) -> AsyncIterator[EventQueue]:
    metrics = EventMetrics(runtime.registry)
    queue = EventQueue(settings.event_queue_limit, settings.event_queue_limit_bytes, metrics.dropped.inc)
    async with open_stream_channel(settings.monitor_address) as channel:
        sender = EventSender(
            MonitorServiceStub(channel),
            queue,
            router_id=router_id,
            environment=settings.environment,
            interval_s=settings.event_interval_s,
            on_sent=metrics.sent.inc,
        )
        async with runtime.in_background(sender.run(), "send-events") as task:
            yield queue
            sender.close()
            await asyncio.wait([task], timeout=settings.event_flush_s)
