"""Overload of inference alone, open loop: what is still answered in time at 0.8, 2 and 10 times the capacity.

    python -m benchmarks.overload            writes benchmarks/results/overload.md

One inference process and its model process on core 0, the load on core 1, over the stream of frames that a router uses.
The model takes the same time whatever the rows (a loop of ONNX, about 20 ms), batches of at most 8, deadline 300 ms, one
row a request, Poisson arrivals that never wait for an answer. A tenth of the requests is critical, three tenths are
sheddable. Capacity is measured before each cell, closed loop with 64 in flight. Good means: the right answer, inside the
deadline by the client's clock. Read the ratios.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import uvloop
from inference import grpc_service_pb2_grpc as oip_rpc
from inference import statistics_pb2
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.inference.v1 import inference_service_pb2_grpc as rpc

from benchmarks.processor_time import ProcessorTime
from services.common.frames import FrameLink
from services.common.logs import configure_logs
from services.common.settings import PORTS
from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.fakes.ports import free_offset

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "overload.md"
UNDER_TEST, LOAD = 0, 1
DEADLINE_S = 0.3
BATCH_S = 0.02
MAX_BATCH = 8
IN_FLIGHT = 64
# A router gathers for so long.
TICK_S = 0.002
LIMIT_BYTES = 32 << 20
RATIOS = (0.8, 2.0, 10.0)
LEVELS = {"critical": pb.CRITICALITY_CRITICAL, "default": pb.CRITICALITY_DEFAULT, "sheddable": pb.CRITICALITY_SHEDDABLE}
MIX = ("critical", *("default",) * 6, *("sheddable",) * 3)


@dataclass
class Tally:
    """What came of the requests of one cell."""

    sent: Counter[str] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)
    late: int = 0
    wrong: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    good_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)


class Client:
    """One stream as frames; requests are told apart by their id, answers by their value."""

    def __init__(self, turns: int) -> None:
        self.link = FrameLink(self, LIMIT_BYTES)
        self.ready = asyncio.Event()
        """Set once the stream is open."""
        self.over = asyncio.Event()
        self._turns = turns
        self._waiting: dict[int, tuple[float, str, asyncio.Future[None] | None]] = {}
        self._next = 1
        self._changed = asyncio.Event()
        self.tally = Tally()

    def opened(self) -> None:
        """Open the stream."""
        opening = pb.InferOpen(model="looper", version="1", client_id="overload")
        self.link.send(pb.CoalescedInferRequest(open=opening).SerializeToString())

    def received(self, message: bytes) -> None:
        """Take what came of some requests."""
        response = pb.CoalescedInferResponse.FromString(message)
        if response.HasField("results"):
            self._take(response.results)
        elif response.HasField("opened"):
            self.ready.set()
        else:
            raise SystemExit(f"the stream ends: {response}")

    def read_all(self) -> None:
        """Nothing more comes."""
        self.link.close()

    def room(self) -> None:
        """The server reads again; this load does not ask whether it does."""

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""
        self.over.set()

    def send(self, levels: Sequence[str], done: Sequence["asyncio.Future[None] | None"]) -> None:
        """Send requests in one message. Each asks for another number of turns, so that each answer is its own."""
        batch, now, values = pb.InferBatch(), time.perf_counter(), []
        for level, future in zip(levels, done, strict=True):
            ident, self._next = self._next, self._next + 1
            batch.ids.append(ident)
            batch.rows.append(1)
            batch.timeouts_us.append(int(DEADLINE_S * 1e6))
            batch.criticalities.append(LEVELS[level])
            self._waiting[ident] = (now, level, future)
            self.tally.sent[level] += 1
            values.append(self._turns + ident % 16)
        data = np.array(values, "<i8").tobytes()
        batch.tensors.add(name="x", data_type=9, shape=[len(values), 1], data=data)
        self.link.send(pb.CoalescedInferRequest(batch=batch).SerializeToString())

    def _take(self, results: pb.InferResults) -> None:
        now = time.perf_counter()
        for failure in results.failures:
            sent, level, future = self._waiting.pop(failure.id)
            self._refused(failure.error, now - sent)
            _settle(future)
        values = np.frombuffer(results.tensors[0].data, "<i8").tolist() if results.tensors else []
        for ident, value in zip(results.ids, values, strict=True):
            sent, level, future = self._waiting.pop(ident)
            self._answered(level, value == self._turns + ident % 16, now - sent)
            _settle(future)
        self._changed.set()

    def _refused(self, status: Any, seconds: float) -> None:
        name = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        self.tally.reasons["refused" if status.code == name else "expired"] += 1
        if status.code == name:
            self.tally.refused_s.append(seconds)

    def _answered(self, level: str, right: bool, seconds: float) -> None:
        if not right:
            self.tally.wrong += 1
        elif seconds > DEADLINE_S:
            self.tally.late += 1
        else:
            self.tally.good[level] += 1
            self.tally.good_s.append(seconds)

    async def settle(self) -> None:
        """Wait until everything is answered."""
        while self._waiting:
            self._changed.clear()
            await self._changed.wait()


def _settle(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)


@dataclass
class Cell:
    """One line of the table."""

    ratio: float
    capacity: float
    """Good answers a second in the closed loop before it."""
    drift: float
    """Processor time of a batch in this cell, as a multiple of that in the closed loop before it."""
    seconds: float
    tally: Tally
    executed: int
    front_us: float
    """Processor time of the front end for a request, answered or refused."""

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return sum(self.tally.good.values()) / self.seconds

    @property
    def percent(self) -> float:
        """Goodput of the capacity at the core's speed in this cell, or of what was sent where that is less."""
        return 100 * self.goodput / min(self.capacity / self.drift, sum(self.tally.sent.values()) / self.seconds)

    def line(self) -> str:
        tally, sent = self.tally, sum(self.tally.sent.values())
        wasted = 1 - sum(tally.good.values()) / self.executed if self.executed else 0.0
        classes = " / ".join(f"{100 * tally.good[level] / max(1, tally.sent[level]):.1f}" for level in LEVELS)
        return (
            f"| {self.ratio:g}x | {self.capacity:.0f} | {self.drift:.2f} | {sent / self.seconds:.0f} | {self.goodput:.0f} "
            f"| {self.percent:.1f} | {classes} "
            f"| {_ms(tally.good_s, 50):.0f} / {_ms(tally.good_s, 99):.0f} | {_ms(tally.refused_s, 99):.1f} "
            f"| {100 * (tally.late + tally.reasons['expired']) / sent:.2f} | {100 * wasted:.1f} | {self.front_us:.0f} | {tally.wrong} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each cell")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([LOAD])
    configure_logs("overload", form="console", level="warning")
    load_before = os.getloadavg()[0]
    cells = uvloop.run(measure_all(arguments.seconds, arguments.rounds))
    write(cells, arguments, load_before)


async def measure_all(seconds: float, rounds: int) -> list[Cell]:
    state = Path(tempfile.mkdtemp(prefix="il-"))
    registry = FakeRegistry()
    cells = []
    try:
        async with registry.listening() as address, inference(state, address) as process:
            frames = await deploy(registry, process.channel)
            turns = await calibrate(frames)
            for _ in range(rounds):
                for ratio in RATIOS:
                    cells.append(await cell(process, frames, turns, ratio, seconds))
                    print(cells[-1].line(), flush=True)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return cells


@dataclass(frozen=True)
class Process:
    """Inference: a channel to it and its number."""

    channel: grpc.aio.Channel
    pid: int


@asynccontextmanager
async def inference(state: Path, registry_address: str) -> AsyncIterator[Process]:
    """Runs an inference process on core 0."""
    offset = free_offset()
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(state),
        "INTERLOCK_PORT_OFFSET": str(offset),
        "INTERLOCK_REGISTRY_ADDRESS": registry_address,
        "INTERLOCK_LOG_LEVEL": "warning",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
    }
    command = ["taskset", "-c", str(UNDER_TEST), sys.executable, "-m", "services.inference"]
    with (state / "inference.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log, cwd=ROOT)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{PORTS['inference'] + offset}") as channel:
            yield Process(channel, process.pid)
    finally:
        process.terminate()
        await process.wait()


async def deploy(registry: FakeRegistry, channel: grpc.aio.Channel) -> str:
    """Deploys the model and gives the path of the socket for frames."""
    integers = [spec("x", "INT64", 1)], [spec("y", "INT64", 1)]
    registry.put_version("looper/1", {"model.onnx": models.looper()}, *integers)
    registry.deploy("looper", "looper/1", max_batch_size=MAX_BATCH)
    states = rpc.InferenceServiceStub(channel).WatchReplica(pb.WatchReplicaRequest(), wait_for_ready=True)
    async for message in states:
        if any(version.state == pb.LOAD_STATE_READY for version in message.versions):
            break
    states.cancel()
    return str(message.frames_address.removeprefix("unix:"))


async def calibrate(frames: str) -> int:
    """Gives the turns of the model's loop that take about 20 ms."""
    turns = 1_000
    for _ in range(5):
        async with stream(frames, turns) as client:
            rate = await closed_loop(client, 1, 0.5)
        turns = int(turns * BATCH_S * rate) or 1
    return turns


@asynccontextmanager
async def stream(frames: str, turns: int) -> AsyncIterator[Client]:
    client = Client(turns)
    await asyncio.get_running_loop().create_unix_connection(lambda: client.link, frames)
    try:
        await client.ready.wait()
        yield client
        await client.settle()
    finally:
        client.link.abort()
        await client.over.wait()


async def closed_loop(client: Client, in_flight: int, seconds: float) -> float:
    """Gives good answers a second with so many requests always in flight."""
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
        client.send(["critical"] * count, futures)
    return sum(client.tally.good.values()) / seconds


async def cell(process: Process, frames: str, turns: int, ratio: float, seconds: float) -> Cell:
    start = await Work.of(process)
    async with stream(frames, turns) as client:
        capacity = await closed_loop(client, IN_FLIGHT, 4.0)
    before = await Work.of(process)
    chance = random.Random(7)
    async with stream(frames, turns) as client:
        started = time.perf_counter()
        due = started
        while (now := time.perf_counter()) < started + seconds:
            levels = []
            while due <= now:
                levels.append(chance.choice(MIX))
                due += chance.expovariate(ratio * capacity)
            if levels:
                client.send(levels, [None] * len(levels))
            await asyncio.sleep(TICK_S)
        await client.settle()
        tally = client.tally
    after = await Work.of(process)
    front_us, _ = after.processor.since(before.processor, sum(tally.sent.values()))
    drift = after.batch_us(before) / before.batch_us(start)
    return Cell(ratio, capacity, drift, seconds, tally, after.rows - before.rows, front_us["inference"])


@dataclass(frozen=True)
class Work:
    """What inference has done since its start."""

    rows: int
    """That the model ran."""
    batches: int
    processor: ProcessorTime

    @classmethod
    async def of(cls, process: Process) -> "Work":
        stub = oip_rpc.GRPCInferenceServiceStub(process.channel)
        (found,) = (await stub.ModelStatistics(statistics_pb2.ModelStatisticsRequest(name="looper"))).model_stats
        return cls(found.inference_count, found.execution_count, ProcessorTime([process.pid]))

    def batch_us(self, before: "Work") -> float:
        """Gives the processor time of the model's process for a batch: all take the same, by the core's speed."""
        return self.processor.since(before.processor, self.batches - before.batches)[0]["model worker"]


def _ms(seconds: Sequence[float], percent: float) -> float:
    ordered = sorted(seconds) or [0.0]
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


def summary(cells: Sequence[Cell], ratio: float) -> str:
    """Gives the line of one load over all rounds."""
    percents = sorted(cell.percent for cell in cells if cell.ratio == ratio)
    refusals_ms = sorted(_ms(cell.tally.refused_s, 99) for cell in cells if cell.ratio == ratio)
    return (
        f"| {ratio:g}x | {statistics.median(percents):.1f} | {percents[0]:.1f} "
        f"| {statistics.median(refusals_ms):.1f} | {refusals_ms[-1]:.1f} |"
    )


def write(cells: Sequence[Cell], arguments: argparse.Namespace, load_before: float) -> None:
    arguments.output.write_text(
        f"""# Overload of inference alone

`python -m benchmarks.overload --seconds {arguments.seconds:g} --rounds {arguments.rounds}`, {time.strftime("%Y-%m-%d")}, {os.cpu_count()} processors,
load average {load_before:.1f} before it began. {(__doc__ or "").split("Read the ratios")[0].split("result", maxsplit=1)[-1].partition(chr(10))[2].strip()}

The core's speed changes by tens of percent within a minute: "batch" is the processor time of a batch in the cell, as a
multiple of that in the closed loop before. Goodput in percent is of the capacity at the speed of the cell (capacity divided
by that), or of what was sent where that is less. Unanswered in time: refused too late or
answered after the deadline, of all sent. Wasted: rows that the model ran for nobody, of all that it ran.

| load | capacity /s | batch | sent /s | good /s | goodput % | good of critical / default / sheddable % | good p50 / p99 ms | refusal p99 ms | not in time % | wasted % | front end us a request | wrong |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(each.line() for each in cells)}

| load | goodput %, median | least | refusal p99 ms, median | most |
|---|---|---|---|---|
{chr(10).join(summary(cells, ratio) for ratio in RATIOS)}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
