"""A running router with fake peers around it, everything over real gRPC on free ports."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from interlock.router.v1 import http_service_pb2 as http_pb
from interlock.router.v1.http_service_pb2_grpc import RouterHttpServiceStub
from interlock.router.v1.router_service_pb2_grpc import RouterServiceStub

from services.common.server import Serving, serving
from services.router.app import build
from services.router.settings import Settings
from tests.fakes.ports import free_offset
from tests.fakes.router_features import FakeFeatures, serve_features
from tests.fakes.router_inference import FakeReplica, ReplicaServer, serve_replica
from tests.fakes.router_models import FLIGHT, MIRROR, PAIR, flight_signature, mirror_signature, pair_signature
from tests.fakes.router_monitor import FakeMonitor, serve_monitor
from tests.fakes.router_registry import FakeControl, Resource, serve_control, served

README: dict[str, Any] = {
    "model": FLIGHT,
    "features": {
        "carrier": "B6",
        "origin": "JFK",
        "dest": "LAX",
        "sched_dep_hour": 17,
        "month": 9,
        "weekday": 5,
        "distance": 2475,
    },
    "user_id": "u-42",
}


def standard_resources() -> list[Resource]:
    return [
        *served(FLIGHT, flight_signature(), (1, 2)),
        *served(PAIR, pair_signature()),
        *served(MIRROR, mirror_signature()),
    ]


STANDARD_READY = {(FLIGHT, "1"), (FLIGHT, "2"), (PAIR, "1"), (MIRROR, "1")}


async def eventually(condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
    """Wait until a condition holds; fail when it never does."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class World:
    """The peers, and at most one router at a time, which a test may restart."""

    def __init__(self, replicas: int = 1) -> None:
        self.control = FakeControl(standard_resources())
        self.monitor = FakeMonitor()
        self.features = FakeFeatures({"carriers": "carrier", "weather": "origin"})
        self.replicas = [
            FakeReplica(replica_id=f"replica-{index + 1}", ready=set(STANDARD_READY)) for index in range(replicas)
        ]
        self.folder = Path(tempfile.mkdtemp(prefix="il-"))
        self.overrides: dict[str, Any] = {}
        self._peers = AsyncExitStack()
        self._router = AsyncExitStack()
        self.control_server: grpc.aio.Server | None = None
        self.replica_servers: list[ReplicaServer] = []
        self.replica_ports: list[int] = []
        self.monitor_server: grpc.aio.Server | None = None
        self.features_server: grpc.aio.Server | None = None
        self._ports: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self.control_server, self._ports["registry"] = await serve_control(self.control)
        self.monitor_server, self._ports["monitor"] = await serve_monitor(self.monitor)
        self.features_server, self._ports["features"] = await serve_features(self.features)
        for replica in self.replicas:
            server, port = await serve_replica(replica)
            self.replica_servers.append(server)
            self.replica_ports.append(port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_router()
        for server in (self.control_server, self.monitor_server, self.features_server, *self.replica_servers):
            if server is not None:
                await server.stop(0)
        shutil.rmtree(self.folder)

    @property
    def replica(self) -> FakeReplica:
        return self.replicas[0]

    @property
    def control_address(self) -> str:
        return f"127.0.0.1:{self._ports['registry']}"

    @property
    def monitor_address(self) -> str:
        return f"127.0.0.1:{self._ports['monitor']}"

    @property
    def features_address(self) -> str:
        return f"127.0.0.1:{self._ports['features']}"

    def settings(self) -> Settings:
        values: dict[str, Any] = {
            "state_dir": self.folder,
            "port_offset": free_offset(),
            "registry_address": self.control_address,
            "monitor_address": self.monitor_address,
            "features_address": self.features_address,
            "pools": {"default": [f"127.0.0.1:{port}" for port in self.replica_ports]},
            "drain_delay_s": 0.0,
            "drain_grace_s": 5.0,
            "replica_hope_s": 5.0,
            "event_interval_s": 0.05,
            "log_level": "warning",
        }
        return Settings(**(values | self.overrides))

    async def start_router(self, *, wait: bool = True) -> Serving[Settings]:
        """Start the router and, unless told otherwise, wait until every routed version is ready."""
        running = await self._router.enter_async_context(serving("router", self.settings(), build, ["127.0.0.1:0"]))
        channel = await self._router.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}"))
        self.running = running
        self.address = f"127.0.0.1:{running.ports[0]}"
        self.channel = channel
        self.router = RouterServiceStub(channel)
        self.http = RouterHttpServiceStub(channel)
        self.oip = GRPCInferenceServiceStub(channel)
        if wait:
            await self.wait_ready()
        return running

    async def wait_ready(self, *models: str) -> None:
        """Wait until all routed versions of these models, or of the standard ones, can run."""
        async with asyncio.timeout(15):
            while not await self._ready(models or sorted({model for model, _ in STANDARD_READY})):
                await asyncio.sleep(0.01)

    async def _ready(self, models: Sequence[str]) -> bool:
        asked = [self.get("ModelReady", http_pb.ModelReadyHttpRequest(model_name=model)) for model in models]
        return all(status == 200 for status, _ in await asyncio.gather(*asked))

    async def stop_router(self) -> None:
        await self._router.aclose()
        self._router = AsyncExitStack()

    async def post(self, path: str, body: object, **metadata: str) -> tuple[int, Any]:
        """POST a body to /v1/predict or /v1/predict_rows as the edge would; returns HTTP status and JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        content = HttpBody(content_type="application/json", data=data)
        if path == "/v1/predict":
            return await self.get("Predict", http_pb.PredictHttpRequest(body=content), **metadata)
        return await self.get("PredictRows", http_pb.PredictRowsHttpRequest(body=content), **metadata)

    async def infer(self, model: str, body: object, *, version: str = "", **metadata: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = http_pb.ModelInferHttpRequest(
            model_name=model, model_version=version, body=HttpBody(content_type="application/json", data=data)
        )
        return await self.get("ModelInfer", request, **metadata)

    async def get(self, method: str, request: Message, **metadata: str) -> tuple[int, Any]:
        status, body, _ = await self.raw(method, request, **metadata)
        return status, json.loads(body.data)

    async def raw(self, method: str, request: Message, **metadata: str) -> tuple[int, HttpBody, dict[str, str]]:
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        call = getattr(self.http, method)(request, metadata=pairs, timeout=10)
        body = await call
        headers = {key: str(value) for key, value in await call.initial_metadata()}
        return int(headers.get("x-interlock-http-status", "200")), body, headers

    def metric(self, name: str, **labels: str) -> float:
        return self.running.runtime.registry.get_sample_value(name, labels) or 0.0


async def error_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """Return the error that a call ends with; fail when it succeeds."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"want an error, got {answer}")


def reasons(errors: Iterable[grpc.aio.AioRpcError]) -> set[str]:
    return {reason_of(error) for error in errors}


def reason_of(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            info = ErrorInfo()
            for detail in Status.FromString(value).details:
                if detail.Unpack(info):
                    return info.reason
    return ""
