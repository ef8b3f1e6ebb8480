"""Several small versions in one model process, next to a process each: memory, a batch's way, turns, and loads beside batches.

`python -m benchmarks.shared_worker` needs nothing running; it drives the workers as the front end's dispatchers do. Rounds of
both forms take turns. On a busy machine only processor times, shares and ratios within one row mean something.
"""

import argparse
import asyncio
import hashlib
import os
import re
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from onnx import TensorProto, helper, numpy_helper

from services.inference.adapters.model_launcher import ModelLauncher
from services.inference.adapters.worker_process import WorkerLimits
from services.inference.domain.frame import FrameTensor
from services.inference.domain.ports import ModelBundle
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import BatchingPolicy, FileSpec, Placement, VersionKey, VersionSpec

FORMS = (Placement.PROCESS, Placement.SHARED)
COLUMNS = 64


@cache
def mlp(width: int) -> tuple[bytes, str]:
    """64 -> width -> width -> 1, and its digest; made once, as nothing else may hold up the loop."""
    random = np.random.default_rng(width)
    nodes, weights, last = [], [], "x"
    for number, shape in enumerate([(COLUMNS, width), (width, width), (width, 1)]):
        values = random.normal(size=shape, scale=shape[0] ** -0.5).astype("<f4")
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"]))
        last = f"r{number}" if number < 2 else "y"
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [last]))
    value = helper.make_tensor_value_info
    inputs, outputs = value("x", TensorProto.FLOAT, [None, COLUMNS]), value("y", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(nodes, "mlp", [inputs], [outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content = model.SerializeToString()
    return content, hashlib.sha256(content).hexdigest()


@dataclass(eq=False)
class Version:
    """A loaded version, and the times of its batches."""

    name: str
    width: int
    folder: Path
    times: list[float] = field(default_factory=list)

    async def load(self, launcher: ModelLauncher, placement: Placement) -> "Version":
        (content, digest), path = mlp(self.width), self.folder / f"{self.width}.onnx"
        if not path.exists():
            path.write_bytes(content)
        file = FileSpec("model.onnx", digest, len(content))
        tensors = (TensorSpec("x", "FP32", (-1, COLUMNS)),), (TensorSpec("y", "FP32", (-1, 1)),)
        spec, policy = (
            VersionSpec(VersionKey(self.name, "1"), (file,), *tensors),
            BatchingPolicy(64, placement=placement),
        )
        self.answered: asyncio.Queue[Any] = asyncio.Queue()
        self.process = await launcher.start(spec, policy, lambda ident, answer: self.answered.put_nowait(answer))
        await self.process.load(spec, ModelBundle(self.folder, {"model.onnx": path}), policy)
        return self

    async def call(self, seconds: float, rows: int = 8, pause_s: float = 0.0, out: int = 1) -> None:
        """Keep so many batches out for a while."""
        tensor = FrameTensor("FP32", (rows, COLUMNS), [np.ones((rows, COLUMNS), "<f4").tobytes()])
        until, sent, ident = time.perf_counter() + seconds, [], 0
        while sent or time.perf_counter() < until:
            while len(sent) < out and time.perf_counter() < until:
                ident += 1
                self.process.run(ident, [0], [tensor], "")
                sent.append(time.perf_counter())
            if not sent:
                break
            assert (await self.answered.get()).rows == rows
            self.times.append(time.perf_counter() - sent.pop(0))
            if pause_s:
                await asyncio.sleep(pause_s)


@asynccontextmanager
async def versions(placement: Placement, *widths: int):
    """Load versions of these widths."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        launcher, found = ModelLauncher(WorkerLimits()), []
        try:
            for number, width in enumerate(widths):
                found.append(await Version(f"m{number}", width, Path(folder)).load(launcher, placement))
            yield launcher, found
        finally:
            await asyncio.gather(*(each.process.close() for each in found))


def memory(pids: set[int]) -> int:
    """Proportional set size: a page that processes share counts in parts."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) * 1024 for text in texts)


def processor_s(pids: set[int]) -> float:
    threads = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def ms(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3


async def measure_memory(count: int) -> None:
    print(
        f"\n## Memory of {count} versions (64-128-128-1)\n\n| form | MB in all | MB a version | s to load them all |\n|---|---|---|---|"
    )
    for placement in FORMS:
        started = time.perf_counter()
        async with versions(placement, *[128] * count) as (_, found):
            took = time.perf_counter() - started
            held = memory({each.process.pid for each in found}) / 1e6
            print(f"| {placement.value.lower()} | {held:.0f} | {held / count:.1f} | {took:.1f} |")


async def measure_way(rounds: int, seconds: float) -> None:
    print(
        "\n## The way of one batch, one in flight, one version\n\n| form | p50 ms | p99 ms | worker us a batch |\n|---|---|---|---|"
    )
    async with versions(FORMS[0], 128) as (_, (own,)), versions(FORMS[1], 128) as (_, (shared,)):
        spent: dict[Version, list[float]] = {own: [], shared: []}
        for _ in range(rounds):
            for each in (own, shared):
                before, count = processor_s({each.process.pid}), len(each.times)
                await each.call(seconds)
                spent[each].append((processor_s({each.process.pid}) - before) / (len(each.times) - count) * 1e6)
        for placement, each in zip(FORMS, (own, shared), strict=True):
            figures = f"{ms(each.times, 0.5):.3f} | {ms(each.times, 0.99):.3f} | {statistics.median(spent[each]):.0f}"
            print(f"| {placement.value.lower()} | {figures} |")


async def measure_turns(seconds: float) -> None:
    print("\n## Turns: four versions with two batches out each, one of them slow, in one process\n")
    async with versions(Placement.SHARED, 1536, 32, 32, 32) as (_, found):
        await asyncio.gather(*(each.call(seconds, rows=64, out=2) for each in found))
        print("| version | batches | share | p50 ms |\n|---|---|---|---|")
        whole = sum(len(each.times) for each in found)
        for each in found:
            share = len(each.times) / whole
            print(f"| 64-{each.width}-{each.width}-1 | {len(each.times)} | {share:.1%} | {ms(each.times, 0.5):.2f} |")


async def measure_loads(rounds: int, seconds: float) -> None:
    """One version is called all the time; in every second round a version of 15 MB is loaded beside it, over and over."""
    print("\n## A version of 15 MB is loaded again and again beside one that serves (8 rows every ms)\n")
    print(
        "| the other is loaded | p50 ms alone | p50 ms beside | p99 alone | p99 beside | longest alone | longest beside | s a load |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for placement in FORMS:
        async with versions(Placement.SHARED, 128) as (launcher, (serving,)):
            alone, beside, loads = [], [], []
            mlp(1900)
            for _ in range(rounds):
                for taken, loading in ((alone, False), (beside, True)):
                    serving.times.clear()
                    calling = asyncio.ensure_future(serving.call(seconds, pause_s=0.001))
                    while loading and not calling.done():
                        started = time.perf_counter()
                        other = await Version("other", 1900, serving.folder).load(launcher, placement)
                        loads.append(time.perf_counter() - started)
                        await other.process.close()
                    await calling
                    taken.extend(serving.times)
            where = "in the same process" if placement is Placement.SHARED else "in its own"
            cells = [f"{ms(times, share):.2f}" for share in (0.5, 0.99, 1.0) for times in (alone, beside)]
            print(f"| {where} | {' | '.join(cells)} | {statistics.median(loads):.2f} |")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    print("# Small versions in one process\n")
    print(
        f"`python -m benchmarks.shared_worker`, {os.cpu_count()} cores, load of the machine before: {os.getloadavg()[0]:.1f}."
    )
    await measure_memory(8)
    await measure_way(arguments.rounds, arguments.seconds)
    await measure_turns(arguments.seconds * 3)
    await measure_loads(arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    uvloop.run(main())
