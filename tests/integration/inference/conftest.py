"""A whole inference process inside the test: real gRPC, real worker processes, a fake registry."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import uvloop
from inference import grpc_service_pb2 as oip_pb
from inference import grpc_service_pb2_grpc as oip_rpc
from inference import statistics_pb2 as statistics_pb
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.inference.v1 import inference_service_pb2_grpc as rpc

from services.common.server import Serving, serving
from services.inference.app import build
from services.inference.settings import InferenceSettings
from tests.fakes import inference_models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.fakes.model_workers import model_workers
from tests.fakes.ports import free_offset


@dataclass
class Running:
    """A running inference service and clients of it."""

    registry: FakeRegistry
    serving: Serving[InferenceSettings]
    channel: grpc.aio.Channel
    oip: Any = field(init=False)
    own: Any = field(init=False)

    def __post_init__(self) -> None:
        self.oip = oip_rpc.GRPCInferenceServiceStub(self.channel)
        self.own = rpc.InferenceServiceStub(self.channel)

    async def state(self, version: str) -> pb.VersionState | None:
        async for message in self.own.WatchReplica(pb.WatchReplicaRequest()):
            found: list[pb.VersionState] = [
                each for each in message.versions if f"{each.model}/{each.version}" == version
            ]
            return found[0] if found else None
        return None

    async def wait_state(self, version: str, *states: int, limit_s: float = 30) -> pb.VersionState:
        """Wait until the version is in one of the states; what it went through is in the failure."""
        seen: list[str] = []
        async with asyncio.timeout(limit_s):
            stream = self.own.WatchReplica(pb.WatchReplicaRequest())
            async for message in stream:
                for each in message.versions:
                    if f"{each.model}/{each.version}" == version:
                        seen.append(f"{each.state} {each.message}")
                        if each.state in states:
                            stream.cancel()
                            state: pb.VersionState = each
                            return state
        raise AssertionError(seen)

    async def wait_gone(self, version: str, limit_s: float = 10) -> None:
        async with asyncio.timeout(limit_s):
            while await self.state(version) is not None:
                await asyncio.sleep(0.02)

    async def ready(self, version: str) -> pb.VersionState:
        state = await self.wait_state(version, pb.LOAD_STATE_READY, pb.LOAD_STATE_FAILED)
        assert state.state == pb.LOAD_STATE_READY, state.message
        return state

    async def statistics(self, model: str) -> statistics_pb.ModelStatistics:
        response = await self.oip.ModelStatistics(statistics_pb.ModelStatisticsRequest(name=model))
        found: statistics_pb.ModelStatistics
        (found,) = response.model_stats
        return found

    async def infer(self, request: oip_pb.ModelInferRequest, limit_s: float = 10) -> oip_pb.ModelInferResponse:
        response: oip_pb.ModelInferResponse = await self.oip.ModelInfer(request, timeout=limit_s)
        return response


def worker_pids() -> list[int]:
    """Return the model processes of this test: its own children, unlike those of a stack that other tests left running."""
    return [worker.pid for worker in model_workers(psutil.Process(), recursive=False)]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the loop that the process has in production: its transports and child processes are others."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="il-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def put_oracle(registry: FakeRegistry) -> Callable[..., None]:
    def put(version: str = "oracle/1", **policy: Any) -> None:
        files = {"model.onnx": inference_models.oracle()}
        registry.put_version(version, files, [spec("x", "FP32", 2)], [spec("y", "FP32", 2)])
        registry.deploy(version.replace("/", "-"), version, **policy)

    return put


Start = Callable[..., Any]


@pytest.fixture
def start(folder: Path, registry: FakeRegistry) -> Start:
    """Return a context manager that runs the service against a registry's address."""

    @asynccontextmanager
    async def run(registry_address: str, **changes: Any) -> AsyncIterator[Running]:
        values: dict[str, Any] = {
            "state_dir": folder,
            "port_offset": free_offset(),
            "registry_address": registry_address,
            "drain_delay_s": 0.0,
            "drain_grace_s": 5.0,
            "inference_load_retry_first_s": 0.2,
            "inference_load_retry_longest_s": 0.5,
            **changes,
        }
        settings = InferenceSettings(**values)
        async with (
            serving("inference", settings, build, ["127.0.0.1:0"]) as served,
            grpc.aio.insecure_channel(f"127.0.0.1:{served.ports[0]}") as channel,
        ):
            yield Running(registry, served, channel)

    return run


@pytest.fixture
async def running(start: Start, registry: FakeRegistry) -> AsyncIterator[Running]:
    async with registry.listening() as address, start(address) as found:
        yield found
