"""What the monitor takes: prediction events through gRPC on one core, and its memory over ten million of them.

    python -m benchmarks.monitor_ingest            writes benchmarks/results/monitor_ingest.md

The monitor (log, windows of sketches, compaction, database: all of it) runs on core 0, the load and a registry that
knows one version on core 1. At the end log and windows must hold every prediction that was sent. A batch holds 2,048 predictions of 8 features, 6 numbers and 2 texts, and a probability for
each of 2 classes; ids are new and of the present. The load is paced; what the monitor drops is counted by itself, and a
speed counts as held when it drops nothing. Its processor time is the kernel's figure for the process.
"""

import argparse
import asyncio
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import grpc
import numpy as np
import psutil
import pyarrow.parquet as pq
from interlock.monitor.v1 import analysis_pb2, analysis_service_pb2, analysis_service_pb2_grpc
from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1 import monitor_service_pb2_grpc as rpc
from interlock.monitor.v1 import prediction_event_pb2 as event_pb
from interlock.registry.v1 import registry_service_pb2 as registry_pb
from interlock.registry.v1 import registry_service_pb2_grpc as registry_rpc
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, ModelVersion
from interlock.types.v1 import signature_pb2, tensor_pb2

ROOT = Path(__file__).resolve().parent.parent
PORT_OFFSET = 21_000
UNDER_TEST, LOAD = 0, 1
ROWS = 2048
NUMBERS, TEXTS = 6, 2
CARRIERS = ("UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX", "FL", "AS", "F9", "YV", "HA", "OO")
READY_TIMEOUT_S = 60.0
LENGTH = Struct("<I")
MIB = 1024 * 1024


@dataclass
class Held:
    """One speed, as it went."""

    wanted: int
    seconds: float
    sent: int
    taken: int
    dropped: int
    cpu_s: float

    @property
    def core(self) -> float:
        return self.cpu_s / self.seconds

    @property
    def us_each(self) -> float:
        return 1e6 * self.cpu_s / max(self.taken, 1)


class Registry(registry_rpc.RegistryServiceServicer):
    """Knows one version."""

    async def GetModelVersion(  # noqa: N802 - the contract's name
        self, request: registry_pb.GetModelVersionRequest, context: object
    ) -> object:
        return registry_pb.GetModelVersionResponse(model_version=version())


def version() -> ModelVersion:
    number, text = signature_pb2.FEATURE_TYPE_DOUBLE, signature_pb2.FEATURE_TYPE_STRING
    features = [
        signature_pb2.FeatureSpec(name=f"number_{i}", type=number, tensor="numbers", column=i) for i in range(NUMBERS)
    ] + [signature_pb2.FeatureSpec(name=f"text_{i}", type=text, tensor="texts", column=i) for i in range(TEXTS)]
    return ModelVersion(
        name="models/delay/versions/1",
        runtime=RUNTIME_ONNX,
        digest="0" * 64,
        signature=signature_pb2.Signature(
            inputs=[
                tensor_pb2.TensorSpec(name="numbers", data_type=tensor_pb2.DATA_TYPE_FP32, shape=[-1, NUMBERS]),
                tensor_pb2.TensorSpec(name="texts", data_type=tensor_pb2.DATA_TYPE_BYTES, shape=[-1, TEXTS]),
            ],
            outputs=[tensor_pb2.TensorSpec(name="chances", data_type=tensor_pb2.DATA_TYPE_FP32, shape=[-1, 2])],
            features=features,
            prediction=signature_pb2.PredictionSpec(
                task=signature_pb2.TASK_CLASSIFICATION, tensor="chances", labels=["in_time", "late"], threshold=0.5
            ),
        ),
    )


def batches(count: int) -> list[event_pb.PredictionBatch]:
    """Gives different batches, without ids."""
    random = np.random.default_rng(1)
    return [_batch(random) for _ in range(count)]


def _batch(random: np.random.Generator) -> event_pb.PredictionBatch:
    numbers = random.gamma(2.0, 50.0, (ROWS, NUMBERS)).astype("<f4")
    late = random.random(ROWS).astype("<f4")
    texts = b"".join(LENGTH.pack(len(t)) + t.encode() for t in random.choice(CARRIERS, ROWS * TEXTS))
    tensor = tensor_pb2.Tensor
    return event_pb.PredictionBatch(
        model="delay",
        version="1",
        variant="champion",
        environment="production",
        epoch=1,
        inputs=[
            tensor(name="numbers", data_type=tensor_pb2.DATA_TYPE_FP32, shape=[ROWS, NUMBERS], data=numbers.tobytes()),
            tensor(name="texts", data_type=tensor_pb2.DATA_TYPE_BYTES, shape=[ROWS, TEXTS], data=texts),
        ],
        outputs=[
            tensor(
                name="chances",
                data_type=tensor_pb2.DATA_TYPE_FP32,
                shape=[ROWS, 2],
                data=np.stack([1 - late, late], axis=1).tobytes(),
            )
        ],
        has_tensors=[True] * ROWS,
        statuses=[0] * ROWS,
        buckets=random.integers(0, 10_000, ROWS).tolist(),
        principals=[0] * ROWS,
        principal_names=["local"],
        degraded=[False] * ROWS,
        cached=[False] * ROWS,
        latencies_us=random.integers(500, 5_000, ROWS).tolist(),
        sampling_weights=[1.0] * ROWS,
    )


def new_ids(random: np.random.Generator) -> bytes:
    """Gives UUIDv7s of this moment."""
    ids = random.integers(0, 256, (ROWS, 16), dtype=np.uint8)
    ids[:, :6] = np.frombuffer(int(time.time() * 1000).to_bytes(6, "big"), dtype=np.uint8)
    ids[:, 6] = 0x70 | (ids[:, 6] & 0x0F)
    ids[:, 8] = 0x80 | (ids[:, 8] & 0x3F)
    return ids.tobytes()


class Source:
    """Sends batches at a speed, in one stream that goes on from speed to speed."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._call = rpc.MonitorServiceStub(self._channel).RecordPredictions()
        self._batches = batches(8)
        self._random = np.random.default_rng(2)
        self._sequence = 0

    async def send(self, per_second: int, seconds: float) -> int:
        begun, sent = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begun) < seconds:
            if sent > elapsed * per_second:
                await asyncio.sleep((sent - elapsed * per_second) / per_second)
            self._sequence += 1
            batch = self._batches[self._sequence % len(self._batches)]
            batch.prediction_ids = new_ids(self._random)
            await self._call.write(pb.RecordPredictionsRequest(router_id="load", sequence=self._sequence, batch=batch))
            sent += ROWS
        return sent

    async def close(self) -> int:
        await self._call.done_writing()
        answer = await self._call
        await self._channel.close()
        return answer.prediction_count


@contextmanager
def monitor(state: Path, registry: str) -> Iterator[psutil.Process]:
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(state),
        "INTERLOCK_PORT_OFFSET": str(PORT_OFFSET),
        "INTERLOCK_REGISTRY_ADDRESS": registry,
        "INTERLOCK_LOG_LEVEL": "warning",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
    }
    command = ["taskset", "-c", str(UNDER_TEST), sys.executable, "-m", "services.monitor"]
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not counters():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the monitor did not come up")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def counters() -> dict[str, float]:
    """Gives the monitor's metrics, empty while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{9105 + PORT_OFFSET}/metrics", timeout=5) as response:
            text = response.read().decode()
    except OSError:
        return {}
    return {key: float(value) for key, value in re.findall(r"^(interlock_monitor_\S+) (\S+)$", text, re.MULTILINE)}


def sum_of(found: dict[str, float], name: str) -> int:
    return int(sum(value for key, value in found.items() if key.startswith(name)))


async def hold(source: Source, process: psutil.Process, per_second: int, seconds: float) -> Held:
    await source.send(per_second, 2.0)
    before, cpu = counters(), sum(process.cpu_times()[:2])
    begun = time.perf_counter()
    sent = await source.send(per_second, seconds)
    elapsed = time.perf_counter() - begun
    # What was read from the socket is worked off within a moment, and that is part of the cost.
    await asyncio.sleep(1.0)
    after = counters()
    return Held(
        wanted=per_second,
        seconds=elapsed,
        sent=sent,
        taken=sum_of(after, "interlock_monitor_predictions_total")
        - sum_of(before, "interlock_monitor_predictions_total"),
        dropped=sum_of(after, "interlock_monitor_predictions_not_taken_total")
        - sum_of(before, "interlock_monitor_predictions_not_taken_total"),
        cpu_s=sum(process.cpu_times()[:2]) - cpu,
    )


async def fill(source: Source, process: psutil.Process, total: int, per_second: int) -> list[tuple[int, float]]:
    """Gives the resident memory, MiB, after each tenth of so many predictions."""
    samples = [(0, process.memory_info().rss / MIB)]
    sent = 0
    while sent < total:
        sent += await source.send(per_second, total / 10 / per_second)
        samples.append((sent, process.memory_info().rss / MIB))
    return samples


async def check_windows(sent: int) -> None:
    """Asks the analysis how many predictions it has seen; stops when it is not all."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{9005 + PORT_OFFSET}") as channel:
        scope = analysis_pb2.AnalysisScope(model_version="models/delay/versions/1")
        scope.start_time.FromSeconds(int(time.time()) - 3600)
        scope.end_time.FromSeconds(int(time.time()) + 3600)
        request = analysis_service_pb2.GetDataQualityReportRequest(scope=scope)
        answer = await analysis_service_pb2_grpc.AnalysisServiceStub(channel).GetDataQualityReport(request)
    if answer.data_quality_report.prediction_count != sent:
        raise SystemExit(f"sent {sent}, in windows {answer.data_quality_report.prediction_count}")


def check_log(state: Path, sent: int) -> int:
    """Gives the bytes of the log; stops when it does not hold every prediction."""
    files = list((state / "monitor" / "log").rglob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    if rows != sent:
        raise SystemExit(f"sent {sent}, in the log {rows}")
    return sum(file.stat().st_size for file in files)


@asynccontextmanager
async def registry() -> AsyncIterator[str]:
    # Keepalive of the monitor's channel, as a registry allows it.
    server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 5_000)])
    registry_rpc.add_RegistryServiceServicer_to_server(Registry(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def run(arguments: argparse.Namespace) -> None:
    psutil.Process().cpu_affinity([LOAD])
    state = Path(tempfile.mkdtemp(prefix="il-"))
    try:
        async with registry() as address:
            with monitor(state, address) as process:
                source = Source(f"127.0.0.1:{9005 + PORT_OFFSET}")
                held = [await hold(source, process, speed, arguments.seconds) for speed in arguments.speeds]
                print(*held, sep="\n", flush=True)
                samples = await fill(source, process, arguments.predictions, arguments.fill_speed)
                print(*samples, sep="\n", flush=True)
                dropped = {key: value for key, value in counters().items() if "not_taken" in key}
                sent = await source.close()
                await check_windows(sent)
        stored = check_log(state, sent)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    write(arguments, held, samples, dropped, stored)


def write(
    arguments: argparse.Namespace,
    held: list[Held],
    samples: list[tuple[int, float]],
    dropped: dict[str, float],
    stored: int,
) -> None:
    lines = [
        "# What the monitor takes",
        "",
        (
            f"`python -m benchmarks.monitor_ingest`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}; {arguments.seconds:g} s for each speed. Batches of "
            f"{ROWS:,} predictions with {NUMBERS} numbers and {TEXTS} texts; the monitor on core 0 writes the log and keeps "
            "windows, the load is on core 1. Load of the machine at the end: "
            f"{os.getloadavg()[0]:.1f}."
        ),
        "",
        "| wanted /s | sent /s | taken | dropped | of core 0 | processor time each | one core could |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {h.wanted:,} | {h.sent / h.seconds:,.0f} | {h.taken:,} | {h.dropped:,} | {h.core:.0%} | "
            f"{h.us_each:.1f} µs | {1e6 / h.us_each:,.0f} /s |"
            for h in held
        ),
        "",
        "Resident memory while predictions come in, in the same process:",
        "",
        "| predictions | MiB |",
        "|---|---|",
        *(f"| {sent:,} | {rss:,.0f} |" for sent, rss in samples),
        "",
        f"Parquet in all: {stored / MIB:,.0f} MiB. Dropped in the whole run: {dropped or 'nothing'}.",
    ]
    text = "\n".join(lines) + "\n"
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speeds", nargs="+", type=int, default=[10_000, 30_000, 50_000, 80_000])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--predictions", type=int, default=10_000_000)
    parser.add_argument("--fill-speed", type=int, default=50_000)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "monitor_ingest.md")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
