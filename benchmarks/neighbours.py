"""Two models beside each other, each in a process of its own on a core of its own: what does one notice of the other?

    python -m benchmarks.neighbours            writes benchmarks/results/neighbours.md

On core 0 the front end of one inference process, the model that is measured and its load; on core 1 the other model, and
its load where it has one. Both are loops of ONNX that take the same time whatever the rows. Over streams of frames as a
router uses them, one row a request, open loop, the same arrivals in each round. Rounds alone and beside the other take
turns, the first form of each pair too; read the ratio of the medians.

A slow model: one of 1 ms is asked 200 times a second, while one of 5 s has a batch out all the time.

A noisy model: one of 20 ms is asked for half of its capacity, measured before each pair, while as much a one is asked
for ten times its own.
"""

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import uvloop

from benchmarks.inference_load import ROOT, Process, Tally, calibrate, deploy, inference, ms, stream
from services.common.logs import configure_logs
from services.common.tasks import spawn
from tests.fakes.inference_registry import FakeRegistry
from tests.fakes.model_workers import model_workers

RESULT = ROOT / "benchmarks" / "results" / "neighbours.md"
MEASURED, OTHER = 0, 1
FAST_S, SLOW_S, FAST_RATE = 0.001, 5.0, 200.0
NOISY_S, NOISY_RATIO, QUIET_RATIO = 0.02, 10.0, 0.5
MAX_BATCH = 8
IN_FLIGHT = 64
DEADLINE_S = 0.3
# Below the 30 s after which a batch counts as hung.
SLOW_DEADLINE_S = 25.0
MIX = (("default", 1.0),)

Beside = Callable[[], AbstractAsyncContextManager[object]]
Ask = Callable[[], Awaitable[Tally]]


@dataclass
class Model:
    """A deployed model: where it is asked, and how many turns take its time."""

    name: str
    frames: str
    turns: int

    async def capacity(self) -> float:
        """Give right answers a second, closed loop."""
        async with stream(self.frames, self.name, self.turns, DEADLINE_S) as client:
            return await client.closed_loop(IN_FLIGHT, 3.0)

    async def round(self, rate: float, seconds: float) -> Tally:
        """Give what comes of such a load."""
        async with stream(self.frames, self.name, self.turns, DEADLINE_S) as client:
            await client.open_loop(rate, seconds, MIX)
            await client.settle()
            return client.tally


@dataclass
class Rounds:
    """What came of the rounds of one kind."""

    tallies: list[Tally] = field(default_factory=list)

    def median_ms(self, percent: float) -> float:
        return statistics.median(ms(tally.good_s, percent) for tally in self.tallies)

    @property
    def good(self) -> float:
        """Percent answered right and in time."""
        return 100 * sum(tally.good.total() for tally in self.tallies) / self.sent

    @property
    def sent(self) -> int:
        return sum(tally.sent.total() for tally in self.tallies)

    def line(self, name: str) -> str:
        each = " ".join(f"{ms(tally.good_s, 99):.2f}" for tally in self.tallies)
        return f"| {name} | {self.sent:,} | {self.good:.2f} | {self.median_ms(50):.2f} | {self.median_ms(99):.2f} | {each} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each round")
    parser.add_argument("--pairs", type=int, default=15, help="of rounds, for each part")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([MEASURED])
    configure_logs("neighbours", form="console", level="warning")
    load_before = os.getloadavg()[0]
    parts = uvloop.run(measure(arguments.pairs, arguments.seconds))
    arguments.output.write_text(report(parts, arguments, load_before), "utf-8")


async def measure(pairs: int, seconds: float) -> list[str]:
    state, registry = Path(tempfile.mkdtemp(prefix="il-")), FakeRegistry()
    try:
        async with registry.listening() as address, inference(state, address, MEASURED) as process:
            return [
                await slow_part(registry, process, pairs, seconds),
                await noisy_part(registry, process, pairs, seconds),
            ]
    finally:
        shutil.rmtree(state, ignore_errors=True)


async def slow_part(registry: FakeRegistry, process: Process, pairs: int, seconds: float) -> str:
    fast = await deployed(registry, process, "fast", FAST_S, MEASURED)
    slow = await deployed(registry, process, "slow", SLOW_S, OTHER)
    times: list[float] = []

    @asynccontextmanager
    async def beside() -> AsyncIterator[None]:
        async with stream(slow.frames, slow.name, slow.turns, SLOW_DEADLINE_S) as client:
            asking = spawn(client.closed_loop(1, 3600.0), "ask-the-slow-one")
            await asyncio.sleep(0.5)
            yield
            asking.cancel()
            client.withdraw()
            times.extend(client.tally.good_s)

    async def prepare() -> Ask:
        return partial(fast.round, FAST_RATE, seconds)

    alone, both = await take_turns(prepare, beside, pairs)
    took = f"{statistics.median(times):.1f} s" if times else "longer than a round"
    return section(f"A model of {took} beside one of {FAST_S * 1e3:g} ms", "the slow one", alone, both)


async def noisy_part(registry: FakeRegistry, process: Process, pairs: int, seconds: float) -> str:
    quiet = await deployed(registry, process, "quiet", NOISY_S, MEASURED)
    noisy = await deployed(registry, process, "noisy", NOISY_S, OTHER)
    noisy_capacity = await noisy.capacity()
    ends: list[tuple[int, int]] = []
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned, initializer=_to_other_core) as noise:
        # Its start is not a part of what is measured.
        await asyncio.get_running_loop().run_in_executor(noise, _to_other_core)

        @asynccontextmanager
        async def beside() -> AsyncIterator[None]:
            rate, most_s = NOISY_RATIO * noisy_capacity, seconds + 1.0
            making = asyncio.get_running_loop().run_in_executor(noise, make_noise, noisy, rate, most_s)
            await asyncio.sleep(0.5)
            yield
            ends.append(await making)

        async def prepare() -> Ask:
            # Anew for each pair: a machine that is slower by then would make half of the capacity three quarters.
            return partial(quiet.round, QUIET_RATIO * await quiet.capacity(), seconds)

        alone, both = await take_turns(prepare, beside, pairs)
    sent, good = map(sum, zip(*ends, strict=True))
    title = f"A model at {NOISY_RATIO:g} times its capacity beside one at half of its own"
    heard = f"The noisy one was sent {sent:,} requests and answered {good:,}.\n"
    return section(title, "the noisy one", alone, both) + "\n" + heard


def make_noise(model: Model, rate: float, seconds: float) -> tuple[int, int]:
    """Ask a model far too much, in a process of its own; give how many requests were sent and answered in time."""
    tally = uvloop.run(model.round(rate, seconds))
    return tally.sent.total(), tally.good.total()


def _to_other_core() -> None:
    psutil.Process().cpu_affinity([OTHER])


async def deployed(registry: FakeRegistry, process: Process, name: str, batch_s: float, core: int) -> Model:
    """Deploy a model, move its process to a core, and find out how many turns take its time there."""
    frames = await deploy(registry, process, name, MAX_BATCH)
    (worker,) = model_workers(psutil.Process(process.pid), name)
    for thread in worker.threads():
        os.sched_setaffinity(thread.id, [core])
    # What takes long is reckoned from what does not.
    turns = await calibrate(frames, name, min(batch_s, 0.1))
    return Model(name, frames, round(turns * max(1.0, batch_s / 0.1)))


async def take_turns(prepare: Callable[[], Awaitable[Ask]], beside: Beside, pairs: int) -> tuple[Rounds, Rounds]:
    """Measure alone and beside the other; every second pair begins with the other. `prepare` gives how a pair is asked."""
    alone, both = Rounds(), Rounds()
    for number in range(pairs):
        ask, turns = await prepare(), [(alone, nullcontext), (both, beside)]
        for taken, with_other in turns if number % 2 == 0 else reversed(turns):
            async with with_other():
                taken.tallies.append(await ask())
        print(
            f"p99 alone {ms(alone.tallies[-1].good_s, 99):.2f} ms, beside {ms(both.tallies[-1].good_s, 99):.2f} ms",
            flush=True,
        )
    return alone, both


def section(title: str, other: str, alone: Rounds, both: Rounds) -> str:
    ratios = " and ".join(
        f"p{percent} **{both.median_ms(percent) / alone.median_ms(percent):.2f}** times" for percent in (50, 99)
    )
    wrong = sum(tally.wrong for tally in (*alone.tallies, *both.tallies))
    return f"""## {title}

| | requests | right and in time % | p50 ms, median of rounds | p99 ms, median | p99 of each round |
|---|---|---|---|---|---|
{alone.line("alone")}
{both.line(f"beside {other}")}

Beside it: {ratios} that alone; {wrong} wrong answers.
"""


def report(parts: Sequence[str], arguments: argparse.Namespace, load_before: float) -> str:
    command = f"python -m benchmarks.neighbours --pairs {arguments.pairs} --seconds {arguments.seconds:g}"
    said = (__doc__ or "").partition("neighbours.md")[2].strip()
    return f"""# Neighbours

`{command}`, {time.strftime("%Y-%m-%d")}, {os.cpu_count()} processors, load average {load_before:.1f} before it began.
{said}

{chr(10).join(parts)}"""


if __name__ == "__main__":
    main()
