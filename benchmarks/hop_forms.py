"""What the hop costs: a unary call for each request, the coalescing stream over gRPC, and the same messages as frames.

    python -m benchmarks.hop_forms            writes benchmarks/results/hop_forms.md

A real inference process (its model a multiplication, in a worker process of its own) on core 0; on the same core this
process, which asks as the router does: its own `InferencePools`, without door, routes and events. Closed loop, every answer
compared with what it must be. Rounds of the forms alternate. The figure is the processor time (task-clock, all threads) of
asking side and inference front end over the requests of a round; the median of the rounds counts, and the time of the model's
worker stands apart, as larger batches make it less.
"""

import argparse
import asyncio
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import uvloop
from inference import grpc_service_pb2 as oip_pb
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

from services.common.call import Call
from services.common.channels import open_stream_channel
from services.common.logs import configure_logs
from services.common.tracing import Tracing
from services.router.adapters.inference_client.pool import InferencePools
from services.router.adapters.inference_client.stream import StreamOptions
from services.router.domain.ports import Job
from services.router.domain.routing import Deployment, Target, Version
from services.router.domain.signature import Signature
from services.router.domain.tensor import Tensor
from tests.fakes import inference_models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.fakes.ports import free_offset

ROOT = Path(__file__).resolve().parent.parent
CORE = 0
FLIGHTS = (1, 16, 64, 256)
READY_TIMEOUT_S = 60
ROWS = 1_000
MODEL = "oracle"
LIMIT_BYTES = 32 << 20
Ask = Callable[[int], Coroutine[Any, Any, bytes]]


class Rows:
    """Distinct rows and their answers."""

    def __init__(self, columns: int) -> None:
        values = np.arange(ROWS * columns, dtype="<f4").reshape(ROWS, columns) % 65_536
        self.inputs = [row.tobytes() for row in values]
        self.answers = [row.tobytes() for row in values * 2 + 1]
        self.columns = columns


@asynccontextmanager
async def inference(columns: int) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Run an inference process that holds the model; gives its address and itself."""
    registry = FakeRegistry()
    files = {"model.onnx": inference_models.oracle(columns)}
    registry.put_version(f"{MODEL}/1", files, [spec("x", "FP32", columns)], [spec("y", "FP32", columns)])
    registry.deploy(MODEL, f"{MODEL}/1", max_batch_size=256)
    offset = free_offset()
    with TemporaryDirectory(prefix="il-") as folder:
        async with registry.listening() as address:
            environment = {
                **os.environ,
                "INTERLOCK_STATE_DIR": folder,
                "INTERLOCK_PORT_OFFSET": str(offset),
                "INTERLOCK_REGISTRY_ADDRESS": address,
                "INTERLOCK_LOG_LEVEL": "warning",
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
            }
            command = ["taskset", "-c", str(CORE), sys.executable, "-m", "services.inference"]
            process = start(command, environment)
            try:
                await wait_ready(9102 + offset)
                yield f"127.0.0.1:{9002 + offset}", psutil.Process(process.pid)
            finally:
                process.terminate()
                await asyncio.to_thread(process.wait, 30)


def start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=environment, cwd=ROOT)


async def wait_ready(port: int) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        with suppress(OSError):
            await asyncio.to_thread(
                lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=1).close()
            )
            return
        await asyncio.sleep(0.1)
    raise SystemExit("inference does not become ready")


@asynccontextmanager
async def unary(address: str, rows: Rows) -> AsyncIterator[Ask]:
    """One gRPC call for each request, as everybody would write it."""
    async with open_stream_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        # What a door's connection takes at a time.
        places = asyncio.Semaphore(100)

        async def ask(number: int) -> bytes:
            request = oip_pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[rows.inputs[number % ROWS]])
            request.inputs.add(name="x", datatype="FP32", shape=[1, rows.columns])
            async with places:
                answer = await stub.ModelInfer(request, timeout=30)
            found: bytes = answer.raw_output_contents[0]
            return found

        yield ask


@asynccontextmanager
async def pooled(address: str, rows: Rows, *, frames: bool) -> AsyncIterator[Ask]:
    """The router's own code."""
    options = {"client_id": "bench", "gather_s": 0.002, "message_limit_bytes": LIMIT_BYTES, "on_sent": lambda _: None}
    pools = InferencePools(
        {"default": [address]},
        dial=open_stream_channel,
        tracing=Tracing("bench"),
        options=StreamOptions(**_known(StreamOptions, {**options, "use_frames": frames})),
        **_known(InferencePools, {"hope_s": 5.0, "attempt_timeout_s": 0.25, "on_retry": lambda: None}),
    )
    target = Target(
        Version(model=MODEL, id="1", signature=Signature((), (), (), None)),
        Deployment(name=MODEL, model=MODEL, version="1", pool="default"),
    )
    pools.start()
    while not pools.is_ready(target):  # noqa: ASYNC110 - it has no event for others
        await asyncio.sleep(0.01)

    async def ask(number: int) -> bytes:
        job = Job((Tensor("x", "FP32", (1, rows.columns), rows.inputs[number % ROWS]),), 1, ("y",))
        (output,) = await pools.infer(target, job, Call("bench", deadline=time.monotonic() + 30))
        return output.data

    try:
        yield ask
    finally:
        await pools.close()


def _known(what: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return what `what` takes: the same file measures older trees."""
    return {name: value for name, value in given.items() if name in inspect.signature(what).parameters}


def task_clock_s(pid: int) -> float:
    """Return the processor time of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


async def measure(ask: Ask, rows: Rows, in_flight: int, seconds: float, pids: list[int]) -> dict[str, float]:
    """Ask for so long; gives requests a second, median and 99th percentile in ms, microseconds for a request by process."""
    times: list[float] = []
    numbers = iter(range(10**9))
    end = time.perf_counter() + seconds

    async def caller() -> None:
        for number in numbers:
            started = time.perf_counter()
            if started >= end:
                return
            if await ask(number) != rows.answers[number % ROWS]:
                raise SystemExit("a wrong answer")
            times.append(time.perf_counter() - started)

    before = [task_clock_s(pid) for pid in pids]
    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    took = time.perf_counter() - started
    used = [(task_clock_s(pid) - first) / len(times) * 1e6 for pid, first in zip(pids, before, strict=True)]
    ordered = sorted(times)
    return {
        "rate": len(times) / took,
        "p50": ordered[len(ordered) // 2] * 1e3,
        "p99": ordered[len(ordered) * 99 // 100] * 1e3,
        "asking": used[0],
        "inference": used[1],
        "worker": sum(used[2:]),
    }


async def run(forms: list[str], columns: int, rounds: int, seconds: float) -> dict[str, dict[int, dict[str, float]]]:
    """Measure all forms in turn; gives the medians by form and requests in flight."""
    rows = Rows(columns)
    makers = {
        "unary": lambda address: unary(address, rows),
        "gRPC stream": lambda address: pooled(address, rows, frames=False),
        "frames": lambda address: pooled(address, rows, frames=True),
    }
    seen: dict[str, dict[int, list[dict[str, float]]]] = {form: {count: [] for count in FLIGHTS} for form in forms}
    async with inference(columns) as (address, process):
        pids = [os.getpid(), process.pid, *(child.pid for child in process.children(recursive=True))]
        for turn in range(rounds + 1):
            for form in forms:
                async with makers[form](address) as ask:
                    for count in FLIGHTS:
                        await measure(ask, rows, count, 0.2, pids)
                        found = await measure(ask, rows, count, seconds, pids)
                        if turn:
                            seen[form][count].append(found)
    return {
        form: {
            count: {name: statistics.median(each[name] for each in found) for name in found[0]}
            for count, found in by_count.items()
        }
        for form, by_count in seen.items()
    }


def table(found: dict[str, dict[int, dict[str, float]]]) -> list[str]:
    lines = [
        "| form | in flight | requests/s | p50 ms | p99 ms | us: asking side | us: inference front end | us: both | us: worker |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for form, by_count in found.items():
        for count, got in by_count.items():
            both = got["asking"] + got["inference"]
            lines.append(
                f"| {form} | {count} | {got['rate']:,.0f} | {got['p50']:.2f} | {got['p99']:.2f} | {got['asking']:.1f} "
                f"| {got['inference']:.1f} | **{both:.1f}** | {got['worker']:.1f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", default=["unary", "gRPC stream", "frames"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "hop_forms.md")
    given = parser.parse_args()
    os.sched_setaffinity(0, {CORE})
    configure_logs("bench", form="console", level="warning")
    lines = [
        "# The hop: unary calls, the coalescing stream over gRPC, the same messages as frames",
        "",
        (
            f"`python -m benchmarks.hop_forms`, {time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, "
            f"Python {platform.python_version()}, load of the machine before: {os.getloadavg()[0]:.1f}. All on core {CORE}; "
            f"median of {given.rounds} rounds of {given.seconds:g} s. Requests/s and ms are of this machine and whatever else it did."
        ),
    ]
    raw = {}
    for columns in (30, 12_288):
        found = uvloop.run(run(given.forms, columns, given.rounds, given.seconds))
        raw[columns] = found
        lines += ["", f"## One row of {columns:,} floats ({columns * 4:,} bytes)", "", *table(found)]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text + json.dumps(raw) + "\n")
    given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
