"""One request of a batch makes the model fail: how much later do its seven batch mates hear?

`python -m benchmarks.poisoned_batch` needs nothing running and writes benchmarks/results/poisoned_batch.md. A real model process
on core 0 behind the dispatcher that a replica uses; eight requests of one row come at once and leave as one batch. Every second
burst has one that the model refuses, each place in turn. Model and failure are one graph: the failure comes at its end, when all
of the batch has been computed, which is the dearest moment. Then the same bursts from a caller, over one connection through Envoy.
"""

import argparse
import asyncio
import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import onnx
import psutil
import uvloop
from inference import grpc_service_pb2 as oip
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from onnx import TensorProto, helper

from benchmarks.serving.models import CNN, MLP, TABULAR, Model
from benchmarks.serving.report import INFERENCE, ROUTER
from benchmarks.serving.servers import Server, all_servers
from services.common.door_turns import Turns
from services.inference.adapters.model_launcher import ModelLauncher
from services.inference.adapters.monotonic_clock import MonotonicClock
from services.inference.adapters.worker_process import WorkerLimits
from services.inference.domain.admission import QueueLimits
from services.inference.domain.dispatch import Dispatcher
from services.inference.domain.failure import VersionNotReady
from services.inference.domain.item import BatchKey, Item
from services.inference.domain.ports import ModelBundle
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import BatchingPolicy, FileSpec, VersionKey, VersionSpec
from tests.fakes.inference_runner import FakeObserver

RESULT = Path(__file__).parent / "results" / "poisoned_batch.md"
MODELS = (TABULAR, MLP, CNN)
ROWS = 8
_POISON = 1e6
_COLUMNS = (
    "p50 / p99 ms, nobody poisoned | p50 / p99 ms of the seven mates | ratio of p50 | of the means "
    "| the poisoned one hears after, ms |"
)


class _Burst:
    """Eight callers; notes when each is answered or refused."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.answered: dict[int, float] = {}
        self.failed: dict[int, float] = {}
        self.over = asyncio.Event()

    def deliver(self, answer: object, places: Sequence) -> None:
        self._note(self.answered, [place.item.tag for place in places])

    def fail(self, items: Sequence[Item], error: Exception) -> None:
        self._note(self.failed, [item.tag for item in items])

    def _note(self, where: dict[int, float], tags: Sequence[int]) -> None:
        where.update(dict.fromkeys(tags, time.perf_counter() - self.begun))
        if len(self.answered) + len(self.failed) == ROWS:
            self.over.set()


def refusing(model: Model) -> bytes:
    """Return a model that also fails at its end when a row's largest number is the poison."""
    made = onnx.load_from_string(model.build())
    made.graph.node[-1].output[0] = "whole"
    axes = list(range(1, len(model.row_shape) + 1))
    made.graph.initializer.extend(
        [
            helper.make_tensor("limit", TensorProto.FLOAT, [], [_POISON / 2]),
            helper.make_tensor("only_zero", TensorProto.FLOAT, [1], [0.0]),
            helper.make_tensor("row_axes", TensorProto.INT64, [len(axes)], axes),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("nought", TensorProto.FLOAT, [], [0.0]),
        ]
    )
    made.graph.node.extend([
        helper.make_node("ReduceMax", ["x", "row_axes"], ["largest"], keepdims=0),
        # Waits for the model's answer.
        helper.make_node("ReduceMax", ["whole", "one"], ["said"], keepdims=0),
        helper.make_node("Mul", ["said", "nought"], ["late"]),
        helper.make_node("Add", ["largest", "late"], ["judged"]),
        helper.make_node("Greater", ["judged", "limit"], ["poisoned"]),
        helper.make_node("Cast", ["poisoned"], ["index"], to=TensorProto.INT64),
        # A table of one: index 1 lies outside, and the run fails.
        helper.make_node("Gather", ["only_zero", "index"], ["zero"]),
        helper.make_node("Unsqueeze", ["zero", "one"], ["zeros"]),
        helper.make_node("Add", ["whole", "zeros"], ["y"]),
    ])  # fmt: skip
    return made.SerializeToString()


async def measure(model: Model, folder: Path, bursts: int) -> str:
    """Return the model's row of the table."""
    content, path = refusing(model), folder / f"{model.name}.onnx"
    path.write_bytes(content)
    spec = VersionSpec(
        VersionKey(model.name, "1"),
        (FileSpec("model.onnx", hashlib.sha256(content).hexdigest(), len(content)),),
        (TensorSpec("x", "FP32", (-1, *model.row_shape)),),
        (TensorSpec("y", "FP32", (-1, model.outputs)),),
    )
    policy = BatchingPolicy(ROWS)
    dispatcher = Dispatcher(
        spec.key, spec.inputs, spec.outputs, policy,
        clock=MonotonicClock(Turns()), observer=FakeObserver(), limits=QueueLimits(), refusal=VersionNotReady(spec.key, "LOADING", ""),
    )  # fmt: skip
    process = await ModelLauncher(WorkerLimits()).start(spec, policy, dispatcher.take_result)
    try:
        psutil.Process(process.pid).cpu_affinity([0])
        report = await process.load(spec, ModelBundle(folder, {"model.onnx": path}), policy)
        dispatcher.attach(process, report.measured)
        clean, mates, poison = [], [], []
        for number in range(-16, bursts):
            place = number // 2 % ROWS if number % 2 else None
            burst = await _ask(dispatcher, model, place)
            assert burst.failed.keys() == ({place} if place is not None else set()), burst.failed
            if number >= 0:
                (clean if place is None else mates).extend(burst.answered.values())
                poison += burst.failed.values()
    finally:
        await process.close()
    return f"| {model.name} | {_cells(clean, mates, poison)}"


async def measure_callers(server: Server, model: Model, bursts: int) -> str:
    """Return the row of a server and a model in the second table."""
    clean, mates, poison = [], [], []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        infer = GRPCInferenceServiceStub(channel).ModelInfer

        async def ask(row: np.ndarray) -> tuple[float, bool]:
            request = oip.ModelInferRequest(model_name=model.name, raw_input_contents=[row.tobytes()])
            request.inputs.add(name="x", datatype="FP32", shape=[1, *model.row_shape])
            begun = time.perf_counter()
            try:
                await infer(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                return time.perf_counter() - begun, error.code() is not grpc.StatusCode.INVALID_ARGUMENT
            return time.perf_counter() - begun, True

        for number in range(-16, bursts):
            rows = list(model.rows[:ROWS])
            if number % 2:
                rows[number // 2 % ROWS] = np.full(model.row_shape, _POISON, np.float32)
            told = await asyncio.gather(*map(ask, rows))
            assert sum(good for _, good in told) == ROWS - number % 2
            if number >= 0:
                (mates if number % 2 else clean).extend(took for took, good in told if good)
                poison += [took for took, good in told if not good]
    return f"| {server.name} | {model.name} | {_cells(clean, mates, poison)}"


def _cells(clean: Sequence[float], mates: Sequence[float], poison: Sequence[float]) -> str:
    """Return the columns of `_COLUMNS`, of seconds."""
    figures = [np.percentile(times, share) * 1e3 for times in (clean, mates) for share in (50, 99)]
    return (
        f"{figures[0]:.2f} / {figures[1]:.2f} | {figures[2]:.2f} / {figures[3]:.2f} | {figures[2] / figures[0]:.2f} "
        f"| {np.mean(mates) / np.mean(clean):.2f} | {np.percentile(poison, 50) * 1e3:.2f} |"
    )


async def _ask(dispatcher: Dispatcher, model: Model, poisoned: int | None) -> _Burst:
    burst, key = _Burst(), BatchKey((0,), (model.row_shape,))
    dispatcher.arrived(ROWS)
    for at in range(ROWS):
        row = np.full(model.row_shape, _POISON, np.float32) if at == poisoned else model.rows[at]
        deadline = time.monotonic() + 10
        dispatcher.offer(Item(rows=1, inputs=[row.tobytes()], key=key, deadline=deadline, sink=burst, tag=at))
    dispatcher.pump()
    await burst.over.wait()
    return burst


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bursts", type=int, default=1_600)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([1])
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        rows = [uvloop.run(measure(model, Path(folder), arguments.bursts)) for model in MODELS]
        spoiled = [replace(model, build=partial(refusing, model)) for model in MODELS]
        for model in spoiled:
            model.write(Path(folder))
        with all_servers(Path(folder), (INFERENCE, ROUTER), "0", models=spoiled) as (servers, _):
            seen = [
                uvloop.run(measure_callers(servers[name], model, arguments.bursts))
                for name in (INFERENCE, ROUTER)
                for model in spoiled
            ]
    text = "\n".join([
        "# What one poisoned request costs its batch mates",
        "",
        f"`python -m benchmarks.poisoned_batch`, {time.strftime('%Y-%m-%d', time.gmtime())}: bursts of {ROWS} requests, {arguments.bursts:,} for each",
        "model, every second one with a request that makes the model fail at the end of its run. From arrival to answer.",
        "",
        f"| model | {_COLUMNS}",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "As callers see it: the eight go out at once over one connection, from core 1.",
        "",
        f"| through | model | {_COLUMNS}",
        "|---|---|---|---|---|---|---|",
        *seen,
        "",
    ])  # fmt: skip
    arguments.output.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
