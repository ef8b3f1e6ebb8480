"""One inference process and an open-loop load on it, over the stream of frames that a router uses.

The model is a loop of ONNX: it takes the same time whatever the rows, as long as one likes, and its answer tells which
request it is for.
"""

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.inference.v1 import inference_service_pb2_grpc as rpc

from services.common.frames import FrameLink
from services.common.settings import PORTS
from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.fakes.ports import free_offset

ROOT = Path(__file__).resolve().parent.parent
# A router gathers for so long.
TICK_S = 0.002
LIMIT_BYTES = 32 << 20
# The most that one message of the stream may hold.
MESSAGE_REQUESTS = 1_024
LEVELS = {"critical": pb.CRITICALITY_CRITICAL, "default": pb.CRITICALITY_DEFAULT, "sheddable": pb.CRITICALITY_SHEDDABLE}
Mix = Sequence[tuple[str, float]]
"""Levels and their shares of the arrivals."""


@dataclass
class Tally:
    """What came of the requests of one stream."""

    deadline_s: float
    sent: Counter[str] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)
    late: int = 0
    wrong: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    good_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How requests of each level ended that were not answered in time."""
    asked_at: list[float] = field(default_factory=list)
    """When each of `good_s` was asked, by time.perf_counter()."""

    def answered(self, level: str, right: bool, asked: float, seconds: float) -> None:
        """Count an answer."""
        if not right:
            self.wrong += 1
        elif seconds > self.deadline_s:
            self.late += 1
            self.lost[level, "late"] += 1
        else:
            self.good[level] += 1
            self.good_s.append(seconds)
            self.asked_at.append(asked)

    def failed(self, level: str, status: Any, seconds: float) -> None:
        """Count a failure."""
        reason = "refused" if status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] else "expired"
        self.reasons[reason] += 1
        self.lost[level, reason] += 1
        if reason == "refused":
            self.refused_s.append(seconds)


class Client:
    """One stream as frames; requests are told apart by their id, answers by their value."""

    def __init__(self, model: str, turns: int, deadline_s: float) -> None:
        self.link = FrameLink(self, LIMIT_BYTES)
        self.ready = asyncio.Event()
        """Set once the stream is open."""
        self.over = asyncio.Event()
        self.tally = Tally(deadline_s)
        self._model, self._turns = model, turns
        self._waiting: dict[int, tuple[float, str, asyncio.Future[None] | None]] = {}
        self._next = 1
        self._changed = asyncio.Event()
        self._ending = ""

    def opened(self) -> None:
        """Open the stream."""
        opening = pb.InferOpen(model=self._model, version="1", client_id="benchmark")
        self.link.send(pb.CoalescedInferRequest(open=opening).SerializeToString())

    def received(self, message: bytes) -> None:
        """Take what came of some requests."""
        response = pb.CoalescedInferResponse.FromString(message)
        if response.HasField("results"):
            self._take(response.results)
        elif response.HasField("opened"):
            self.ready.set()
        else:
            self._ending = f"the stream ends: {response}"
            self.link.abort()

    def read_all(self) -> None:
        """Nothing more comes."""
        self.link.close()

    def room(self) -> None:
        """The server reads again; this load does not ask whether it does."""

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""
        self.over.set()
        self._changed.set()

    def send(self, levels: Sequence[str], done: Sequence["asyncio.Future[None] | None"]) -> None:
        """Send requests in one message. Each asks for another number of turns, so that each answer is its own."""
        batch, now, values = pb.InferBatch(), time.perf_counter(), []
        for level, future in zip(levels, done, strict=True):
            ident, self._next = self._next, self._next + 1
            batch.ids.append(ident)
            batch.rows.append(1)
            batch.timeouts_us.append(int(self.tally.deadline_s * 1e6))
            batch.criticalities.append(LEVELS[level])
            self._waiting[ident] = (now, level, future)
            self.tally.sent[level] += 1
            values.append(self._turns + ident % 16)
        data = np.array(values, "<i8").tobytes()
        batch.tensors.add(name="x", data_type=9, shape=[len(values), 1], data=data)
        self.link.send(pb.CoalescedInferRequest(batch=batch).SerializeToString())

    def withdraw(self) -> None:
        """Cancel all that is not answered."""
        if self._waiting:
            gone = pb.InferCancel(ids=self._waiting)
            self.link.send(pb.CoalescedInferRequest(cancel=gone).SerializeToString())
            for _, _, future in self._waiting.values():
                _settle(future)
            self._waiting.clear()
            self._changed.set()

    async def settle(self) -> None:
        """Wait until everything is answered."""
        while self._waiting:
            if self.over.is_set():
                raise SystemExit(self._ending or "the connection is gone")
            self._changed.clear()
            await self._changed.wait()

    async def closed_loop(self, in_flight: int, seconds: float) -> float:
        """Give good answers a second with so many critical requests always in flight."""
        ends, loop = time.perf_counter() + seconds, asyncio.get_running_loop()
        free: asyncio.Queue[None] = asyncio.Queue()
        for _ in range(in_flight):
            free.put_nowait(None)
        while time.perf_counter() < ends:
            await free.get()
            count = 1 + free.qsize()
            for _ in range(count - 1):
                free.get_nowait()
            futures = [loop.create_future() for _ in range(count)]
            for future in futures:
                future.add_done_callback(lambda _: free.put_nowait(None))
            self.send(["critical"] * count, futures)
        return sum(self.tally.good.values()) / seconds

    async def open_loop(self, rate: float, seconds: float, mix: Mix, seed: int = 7) -> None:
        """Send by a Poisson process that never waits for an answer; does not wait for the last ones."""
        chance, started = random.Random(seed), time.perf_counter()
        names, shares, due = [level for level, _ in mix], [share for _, share in mix], started
        while (now := time.perf_counter()) < started + seconds:
            count = 0
            while due <= now and count < MESSAGE_REQUESTS:
                count += 1
                due += chance.expovariate(rate)
            if count:
                self.send(chance.choices(names, shares, k=count), [None] * count)
            # A load that is behind yields only.
            await asyncio.sleep(TICK_S if due > now else 0)

    def _take(self, results: pb.InferResults) -> None:
        now = time.perf_counter()
        values = np.frombuffer(results.tensors[0].data, "<i8").tolist() if results.tensors else []
        for failure in results.failures:
            for ident in (failure.id, *failure.further_ids):
                if ident in self._waiting:
                    sent, level, future = self._waiting.pop(ident)
                    self.tally.failed(level, failure.error, now - sent)
                    _settle(future)
        for ident, value in zip(results.ids, values, strict=True):
            if ident in self._waiting:
                sent, level, future = self._waiting.pop(ident)
                self.tally.answered(level, value == self._turns + ident % 16, sent, now - sent)
                _settle(future)
        self._changed.set()


def _settle(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)


@dataclass(frozen=True)
class Process:
    """Inference: a channel to it and its number."""

    channel: grpc.aio.Channel
    pid: int


@asynccontextmanager
async def inference(state: Path, registry_address: str, core: int) -> AsyncIterator[Process]:
    """Run an inference process on one core."""
    offset = free_offset()
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(state),
        "INTERLOCK_PORT_OFFSET": str(offset),
        "INTERLOCK_REGISTRY_ADDRESS": registry_address,
        "INTERLOCK_LOG_LEVEL": "warning",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
    }
    command = ["taskset", "-c", str(core), sys.executable, "-m", "services.inference"]
    with (state / "inference.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log, cwd=ROOT)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{PORTS['inference'] + offset}") as channel:
            yield Process(channel, process.pid)
    finally:
        process.terminate()
        await process.wait()


async def deploy(registry: FakeRegistry, process: Process, model: str, max_batch_size: int) -> str:
    """Deploy the model under a name and give the path of the socket for frames."""
    integers = [spec("x", "INT64", 1)], [spec("y", "INT64", 1)]
    registry.put_version(f"{model}/1", {"model.onnx": models.looper()}, *integers)
    registry.deploy(model, f"{model}/1", max_batch_size=max_batch_size)
    states = rpc.InferenceServiceStub(process.channel).WatchReplica(pb.WatchReplicaRequest(), wait_for_ready=True)
    async for message in states:
        if any(found.model == model and found.state == pb.LOAD_STATE_READY for found in message.versions):
            break
    states.cancel()
    return str(message.frames_address.removeprefix("unix:"))


@asynccontextmanager
async def stream(frames: str, model: str, turns: int, deadline_s: float) -> AsyncIterator[Client]:
    """Give an open stream; everything sent is answered, or withdrawn, when the block is over."""
    client = Client(model, turns, deadline_s)
    await asyncio.get_running_loop().create_unix_connection(lambda: client.link, frames)
    try:
        await client.ready.wait()
        yield client
        await client.settle()
    finally:
        client.link.abort()
        await client.over.wait()


async def calibrate(frames: str, model: str, batch_s: float) -> int:
    """Give the turns of the model's loop that take about so long."""
    turns = 1_000
    for _ in range(5):
        async with stream(frames, model, turns, 5.0) as client:
            rate = await client.closed_loop(1, max(0.5, 2 * batch_s))
        turns = int(turns * batch_s * rate) or 1
    return turns


def ms(seconds: Sequence[float], percent: float) -> float:
    """Give a percentile in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000
