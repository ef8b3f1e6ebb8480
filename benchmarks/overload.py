"""Overload of inference alone, open loop: what is still answered in time at 0.8, 2 and 10 times the capacity.

    python -m benchmarks.overload            writes benchmarks/results/overload.md

One inference process and its model process on core 0, the load on core 1, over the stream of frames that a router uses.
The model takes the same time whatever the rows (a loop of ONNX, about 20 ms), batches of at most 8, deadline 300 ms, one
row a request, Poisson arrivals that never wait for an answer. A tenth of the requests is critical, three tenths are
sheddable: at ten times the capacity the critical ones alone are all that it can do. Capacity is measured before each cell,
closed loop with 64 in flight. Good means: the right answer, inside the deadline by the client's clock.

Last, ten times the capacity for a minute, of which the critical requests are half of what the model can do: are they all
served, does memory stand still, and how soon is an ordinary load as fast again as it was before?

Read the ratios.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop
from inference import grpc_service_pb2_grpc as oip_rpc
from inference import statistics_pb2

from benchmarks.inference_load import LEVELS, ROOT, Process, Tally, calibrate, deploy, inference, ms, stream
from benchmarks.processor_time import ProcessorTime
from services.common.logs import configure_logs
from services.common.tasks import spawn
from tests.fakes.inference_registry import FakeRegistry
from tests.fakes.model_workers import model_workers

RESULT = ROOT / "benchmarks" / "results" / "overload.md"
UNDER_TEST, LOAD = 0, 1
MODEL = "looper"
DEADLINE_S = 0.3
BATCH_S = 0.02
MAX_BATCH = 8
IN_FLIGHT = 64
RATIOS = (0.8, 2.0, 10.0)
MIX = (("critical", 0.1), ("default", 0.6), ("sheddable", 0.3))
# The long overload: critical requests for half of the capacity.
LONG_RATIO = 10.0
LONG_MIX = (("critical", 0.05), ("default", 0.65), ("sheddable", 0.3))
_LOST = ("refused", "expired", "late")
# An ordinary load, before it and after it, and when it has to be as fast as before.
USUAL_RATIO, USUAL_S, RECOVERED_S = 0.5, 10.0, 5.0


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
            f"| {ms(tally.good_s, 50):.0f} / {ms(tally.good_s, 99):.0f} | {ms(tally.refused_s, 99):.1f} "
            f"| {100 * (tally.late + tally.reasons['expired']) / sent:.2f} | {100 * wasted:.1f} | {self.front_us:.0f} | {tally.wrong} |"
        )


@dataclass
class Long:
    """Ten times the capacity for a minute, between two ordinary loads."""

    capacity: float
    seconds: float
    before: Tally
    during: Tally
    after: Tally
    ended: float
    """When the overload was over, by time.perf_counter()."""
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Resident MiB of the front end and of the model's process: the most under the ordinary load, and in the overload."""

    def kept(self, level: str) -> float:
        """Give the percent of a level's requests that were answered in time."""
        return 100 * self.during.good[level] / max(1, self.during.sent[level])

    def after_ms(self, start_s: float, end_s: float) -> float:
        """Give the p99 of what was asked so long after the overload."""
        asked = zip(self.after.asked_at, self.after.good_s, strict=True)
        return ms([took for at, took in asked if start_s <= at - self.ended < end_s], 99)

    @property
    def usual_ms(self) -> float:
        """Give the p99 of the ordinary load before."""
        return ms(self.before.good_s, 99)

    def text(self) -> str:
        """Give the section of the report."""
        during = self.during
        classes = "".join(
            f"| {level} | {during.sent[level]:,} | {during.sent[level] / self.seconds / self.capacity:.2f}x "
            f"| {self.kept(level):.2f} | {' | '.join(f'{during.lost[level, how]:,}' for how in _LOST)} |\n"
            for level in LEVELS
        )
        memory = "".join(
            f"| {name} | {usual:.0f} | {most:.0f} | {most / usual:.2f}x |\n"
            for name, (usual, most) in self.memory.items()
        )
        after = " | ".join(f"{self.after_ms(at, at + 1):.0f}" for at in range(int(USUAL_S)))
        refused = f"refusal p99 {ms(during.refused_s, 99):.1f} ms" if during.refused_s else "nothing refused"
        lost = {
            name: tally.wrong + tally.late + tally.reasons.total()
            for name, tally in (("before", self.before), ("after", self.after))
        }
        return f"""## {LONG_RATIO:g} times the capacity for {self.seconds:g} s

Capacity {self.capacity:.0f}/s, sent {during.sent.total() / self.seconds:.0f}/s, good {during.good.total() / self.seconds:.0f}/s, {refused}, wrong {during.wrong}.

| class | sent | of the capacity | answered in time % | {" | ".join(_LOST)} |
|---|---|---|---|---|---|---|
{classes}
| resident MiB | ordinary load before, most | overload, most | ratio |
|---|---|---|---|
{memory}
An ordinary load, {USUAL_RATIO:g} of the capacity, {USUAL_S:g} s before ({lost["before"]} of {self.before.sent.total():,} not answered in time) and as long after
({lost["after"]} of {self.after.sent.total():,}); the second one begins when the overload ends. p99 before {self.usual_ms:.0f} ms, from {RECOVERED_S:g} s after the overload on
{self.after_ms(RECOVERED_S, USUAL_S):.0f} ms; second by second:

| {" | ".join(f"{at}-{at + 1} s" for at in range(int(USUAL_S)))} |
|{"---|" * int(USUAL_S)}
| {after} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each cell")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--long-seconds", type=float, default=60.0, help="for the long overload; 0 leaves it out")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([LOAD])
    configure_logs("overload", form="console", level="warning")
    load_before = os.getloadavg()[0]
    cells, found = uvloop.run(measure_all(arguments))
    write(cells, found, arguments, load_before)


async def measure_all(arguments: argparse.Namespace) -> tuple[list[Cell], Long | None]:
    state = Path(tempfile.mkdtemp(prefix="il-"))
    registry = FakeRegistry()
    cells, found = [], None
    try:
        async with registry.listening() as address, inference(state, address, UNDER_TEST) as process:
            frames = await deploy(registry, process, MODEL, MAX_BATCH)
            turns = await calibrate(frames, MODEL, BATCH_S)
            for _ in range(arguments.rounds):
                for ratio in RATIOS:
                    cells.append(await cell(process, frames, turns, ratio, arguments.seconds))
                    print(cells[-1].line(), flush=True)
            if arguments.long_seconds:
                found = await long_overload(process, frames, turns, arguments.long_seconds)
                print(found.text())
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return cells, found


async def capacity_of(frames: str, turns: int) -> float:
    async with stream(frames, MODEL, turns, DEADLINE_S) as client:
        return await client.closed_loop(IN_FLIGHT, 4.0)


async def cell(process: Process, frames: str, turns: int, ratio: float, seconds: float) -> Cell:
    start = await Work.of(process)
    capacity = await capacity_of(frames, turns)
    before = await Work.of(process)
    async with stream(frames, MODEL, turns, DEADLINE_S) as client:
        await client.open_loop(ratio * capacity, seconds, MIX)
        await client.settle()
        tally = client.tally
    after = await Work.of(process)
    front_us, _ = after.processor.since(before.processor, sum(tally.sent.values()))
    drift = after.batch_us(before) / before.batch_us(start)
    return Cell(ratio, capacity, drift, seconds, tally, after.rows - before.rows, front_us["inference"])


async def long_overload(process: Process, frames: str, turns: int, seconds: float) -> Long:
    def streams() -> Any:
        return stream(frames, MODEL, turns, DEADLINE_S)

    capacity = await capacity_of(frames, turns)
    usual, overload = Memory(process.pid), Memory(process.pid)
    async with streams() as before, streams() as during, streams() as after:
        async with usual:
            await before.open_loop(USUAL_RATIO * capacity, USUAL_S, MIX)
            await before.settle()
        async with overload:
            await during.open_loop(LONG_RATIO * capacity, seconds, LONG_MIX)
            ended = time.perf_counter()
            await after.open_loop(USUAL_RATIO * capacity, USUAL_S, MIX)
    memory = {name: (usual.most[name], overload.most[name]) for name in usual.most}
    return Long(capacity, seconds, before.tally, during.tally, after.tally, ended, memory)


class Memory:
    """The most that the front end and the model's process hold while the block runs, in resident MiB."""

    def __init__(self, pid: int) -> None:
        self.most: Counter[str] = Counter()
        self._front = psutil.Process(pid)
        (self._model,) = model_workers(self._front)

    async def __aenter__(self) -> None:
        self._watching = spawn(self._watch(), "watch-memory")

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            for name, process in (("front end", self._front), ("model process", self._model)):
                self.most[name] = max(self.most[name], process.memory_info().rss / 2**20)
            await asyncio.sleep(0.25)


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
        (found,) = (await stub.ModelStatistics(statistics_pb2.ModelStatisticsRequest(name=MODEL))).model_stats
        return cls(found.inference_count, found.execution_count, ProcessorTime([process.pid]))

    def batch_us(self, before: "Work") -> float:
        """Gives the processor time of the model's process for a batch: all take the same, by the core's speed."""
        return self.processor.since(before.processor, self.batches - before.batches)[0]["model worker"]


def summary(cells: Sequence[Cell], ratio: float) -> str:
    """Gives the line of one load over all rounds."""
    percents = sorted(cell.percent for cell in cells if cell.ratio == ratio)
    refusals_ms = sorted(ms(cell.tally.refused_s, 99) for cell in cells if cell.ratio == ratio)
    return (
        f"| {ratio:g}x | {statistics.median(percents):.1f} | {percents[0]:.1f} "
        f"| {statistics.median(refusals_ms):.1f} | {refusals_ms[-1]:.1f} |"
    )


def write(cells: Sequence[Cell], found: Long | None, arguments: argparse.Namespace, load_before: float) -> None:
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
{chr(10).join(summary(cells, ratio) for ratio in RATIOS if any(cell.ratio == ratio for cell in cells))}

{found.text() if found else ""}""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
