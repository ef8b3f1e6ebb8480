"""Several processes of inference on one port, one engine: every one of them answers as a single process does."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc as oip_rpc
from inference import repository_pb2 as repository_pb
from inference import statistics_pb2 as statistics_pb
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.inference.v1 import inference_service_pb2_grpc as rpc

from services.common.settings import PORTS
from services.common.unix_http import ask
from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.fakes.ports import free_offset
from tests.integration.door.conftest import REPOSITORY, Running, end, spawn_ready
from tests.integration.inference.test_bad_tensors import CASES, request

# A start and a restart of Envoys and of a model's process, on a machine that does other things too.
pytestmark = pytest.mark.timeout(120)
PROCESSES = 2
COUNTED = re.compile(
    r'interlock_inference_requests_total\{code="[A-Z_]+",method="inference.GRPCInferenceService/ModelInfer"\} (\S+)'
)


@dataclass
class Caller:
    """One connection, and the number of the process that took it."""

    channel: grpc.aio.Channel
    process: int

    @property
    def oip(self) -> Any:
        return oip_rpc.GRPCInferenceServiceStub(self.channel)

    async def status(self, payload: bytes, **options: Any) -> bytes:
        """The whole status of a ModelInfer that is refused, without what names the call."""
        infer: Any = self.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            await infer(payload, **{"timeout": 10, **options})
        except grpc.aio.AioRpcError as error:
            found = rpc_status.from_call(error)
            return found.SerializeToString() if found is not None else f"{error.code()} {error.details()}".encode()
        return b""


@contextlib.asynccontextmanager
async def running_fronts(registry: FakeRegistry) -> AsyncIterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    offset = free_offset()
    async with registry.listening() as address:
        environment = {
            "INTERLOCK_DOOR": "envoy",
            "INTERLOCK_INFERENCE_PROCESSES": str(PROCESSES),
            "INTERLOCK_STATE_DIR": str(folder),
            "INTERLOCK_PORT_OFFSET": str(offset),
            "INTERLOCK_REGISTRY_ADDRESS": address,
            "INTERLOCK_EDGE_DRAIN_TIME_S": "1",
            "INTERLOCK_EDGE_PROBE_INTERVAL_S": "0.3",
            "INTERLOCK_DRAIN_DELAY_S": "0",
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'gen'}",
        }
        running = Running("envoy", PORTS["inference"] + offset, folder, environment)
        try:
            await spawn_ready(running, "services.inference")
            yield running
        finally:
            for process in running.processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            shutil.rmtree(folder, ignore_errors=True)


async def counted(running: Running) -> list[float]:
    """ModelInfer calls that each process has taken, asked at its own socket."""
    pages = []
    for process in range(PROCESSES):
        (socket,) = running.folder.glob(f"run/inference-*/{process}-probes.sock")
        with contextlib.suppress(OSError, TimeoutError):
            pages.append((await ask(socket, "GET", "/metrics", 5.0))[1].decode())
    return [sum(map(float, COUNTED.findall(page))) for page in pages]


@contextlib.asynccontextmanager
async def callers_of(running: Running) -> AsyncIterator[list[Caller]]:
    """A connection to each process, in their order."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        found: dict[int, Caller] = {}
        async with asyncio.timeout(30):
            while len(found) < PROCESSES:
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(running.target, options=options))
                before = await counted(running)
                await oip_rpc.GRPCInferenceServiceStub(channel).ModelInfer(request(), timeout=10)
                after = await counted(running)
                if len(before) == len(after) == PROCESSES:
                    process = next(n for n in range(PROCESSES) if after[n] > before[n])
                    found[process] = Caller(channel, process)
        yield [found[process] for process in sorted(found)]


def engine_pid(running: Running) -> int:
    """The Envoy with the engine among the launcher's children."""
    launcher = running.edge.pid
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (found,) = (pid for pid in children if b"/0-envoy.yaml" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(found)


@pytest.fixture
def two_models(registry: FakeRegistry) -> FakeRegistry:
    registry.put_version("oracle/1", {"model.onnx": models.oracle()}, [spec("x", "FP32", 2)], [spec("y", "FP32", 2)])
    registry.put_version("looper/1", {"model.onnx": models.looper()}, [spec("x", "INT64", 1)], [spec("y", "INT64", 1)])
    registry.deploy("oracle-1", "oracle/1")
    registry.deploy("looper-1", "looper/1")
    return registry


async def test_every_process_answers_as_one(two_models: FakeRegistry) -> None:
    async with running_fronts(two_models) as running:
        async with callers_of(running) as callers:
            await answer_alike(callers)
            await share_one_engine(callers)
            await stop_in_time(callers)
            await lose_the_engine(running, callers[-1])
        async with callers_of(running) as callers:
            await drain_under_load(running, callers)


async def answer_alike(callers: list[Caller]) -> None:
    """Good and bad requests, cold methods: the same bytes from all."""
    unknown = request()
    unknown.model_name = "nobody"
    nowhere = request()
    nowhere.model_name = "../etc"
    bad = [case[0] for case in CASES.values()] + [unknown, nowhere]
    payloads = [each.SerializeToString() for each in bad] + [b"\xff\xff", b"\x00" * (33 << 20)]
    for payload in payloads:
        first, *others = [await caller.status(payload) for caller in callers]
        assert first
        assert others == [first] * len(others), payload[:100]
    for name, asked in (
        ("ModelReady", oip.ModelReadyRequest(name="oracle", version="1")),
        ("ModelMetadata", oip.ModelMetadataRequest(name="oracle")),
        ("ServerReady", oip.ServerReadyRequest()),
        ("ServerMetadata", oip.ServerMetadataRequest()),
        ("RepositoryIndex", repository_pb.RepositoryIndexRequest()),
    ):
        first, *others = [await getattr(caller.oip, name)(asked, timeout=10) for caller in callers]
        assert others == [first] * len(others), name
    for caller in callers:
        stub: Any = health_pb2_grpc.HealthStub
        health = stub(caller.channel)
        model = health_pb2.HealthCheckRequest(service="model/oracle/1")
        assert (await health.Check(model, timeout=10)).status == health_pb2.HealthCheckResponse.SERVING
        stream = caller.oip.ModelStreamInfer(iter([request()]), timeout=10)
        assert [answer.infer_response.model_version async for answer in stream] == ["1"]


async def share_one_engine(callers: list[Caller]) -> None:
    """One replica, whoever is asked, and its counts are of all; answers are the callers' own."""
    replicas = set()
    for caller in callers:
        watch: Any = rpc.InferenceServiceStub(caller.channel).WatchReplica(pb.WatchReplicaRequest())
        replicas.add((await watch.read()).replica_id)
        watch.cancel()
    assert len(replicas) == 1
    before = await inferences(callers[0])
    values = [np.array([[n, -n]], "<f4") for n in range(200)]
    calls = [
        callers[n % len(callers)].oip.ModelInfer(request(raw=[v.tobytes()]), timeout=10) for n, v in enumerate(values)
    ]
    for value, answer in zip(values, await asyncio.gather(*calls), strict=True):
        assert answer.raw_output_contents == [(value * 2 + 1).tobytes()]
    assert [await inferences(caller) - before for caller in callers] == [200] * len(callers)


async def inferences(caller: Caller) -> int:
    answer = await caller.oip.ModelStatistics(statistics_pb.ModelStatisticsRequest(name="oracle"), timeout=10)
    return int(answer.model_stats[0].inference_count)


async def stop_in_time(callers: list[Caller]) -> None:
    """Deadlines and cancels reach the engine: who waits never runs, and a call that would take for ever frees its model."""
    endless, short = turns(10**15), turns(1)
    for caller in callers:
        call = caller.oip.ModelInfer(endless, timeout=30)
        # Answered on the same connection after it: it has been taken.
        await caller.oip.ModelInfer(request(), timeout=10)
        # A process holds one batch beside the one that runs; what comes behind that waits in the queue.
        second = caller.oip.ModelInfer(short, timeout=30)
        await caller.oip.ModelInfer(request(), timeout=10)
        expiring = caller.oip.ModelInfer(turns(1, 1, 1), timeout=0.2)
        withdrawn = caller.oip.ModelInfer(turns(1, 1, 1, 1, 1), timeout=30)
        await until_queued(caller, 5)
        assert await expiring.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        withdrawn.cancel()
        await until_queued(caller, 0)
        call.cancel()
        assert (await second).raw_output_contents
        assert (await caller.oip.ModelInfer(short, timeout=20)).raw_output_contents
        statistics = await caller.oip.ModelStatistics(statistics_pb.ModelStatisticsRequest(name="looper"), timeout=10)
        assert {batch.batch_size for batch in statistics.model_stats[0].batch_stats} == {1}
    timed = oip.ModelInferRequest()
    timed.CopyFrom(endless)
    timed.parameters["timeout"].int64_param = 100_000
    first, *others = [await caller.status(timed.SerializeToString(), timeout=30) for caller in callers]
    assert b"DEADLINE" in first
    assert others == [first] * len(others)


def turns(*counts: int) -> oip.ModelInferRequest:
    """A request whose rows take so many turns of the looper."""
    made = oip.ModelInferRequest(model_name="looper", raw_input_contents=[np.array(counts, "<i8").tobytes()])
    made.inputs.add(name="x", datatype="INT64", shape=[len(counts), 1])
    return made


async def until_queued(caller: Caller, rows: int) -> None:
    """Wait until so many rows, and no more, wait for the looper."""
    async with asyncio.timeout(20):
        while True:
            watch: Any = rpc.InferenceServiceStub(caller.channel).WatchReplica(pb.WatchReplicaRequest())
            state = await watch.read()
            watch.cancel()
            if [each.queued_rows for each in state.versions if each.model == "looper"] == [rows]:
                return
            await asyncio.sleep(0.01)


async def lose_the_engine(running: Running, front: Caller) -> None:
    """A process without its engine refuses what comes at once, and goes on when the engine is back."""
    os.kill(engine_pid(running), signal.SIGKILL)
    codes = set()
    async with asyncio.timeout(30):
        while True:
            try:
                await front.oip.ModelInfer(request(), timeout=10)
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
            else:
                if codes:
                    break
            await asyncio.sleep(0.01)
    assert codes == {grpc.StatusCode.UNAVAILABLE}


async def drain_under_load(running: Running, callers: list[Caller]) -> None:
    """SIGTERM: what any process has accepted is answered, and the exit is clean."""
    slow = turns(500_000)
    calls = [caller.oip.ModelInfer(slow, timeout=30) for caller in callers for _ in range(2)]
    for caller in callers:
        # Answered on the same connection after them: they have been taken.
        await caller.oip.ModelInfer(request(), timeout=10)
    ending = asyncio.ensure_future(end(running.edge, wait_s=40))
    assert all(answer.raw_output_contents for answer in await asyncio.gather(*calls))
    assert await ending == 0, running.log()
