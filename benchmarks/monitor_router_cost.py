"""What prediction events cost the router: its processor time for a prediction with the monitor up and down.

    python -m benchmarks.monitor_router_cost            writes benchmarks/results/monitor_router_cost.md

A real router (door grpcio) on core 0; a real monitor, the load, and a registry and a replica that answer at once on core 1.
`Predict` of one row with 7 features, 32 in flight. Rounds alternate: monitor running, monitor gone (the router then keeps
events in its queue, and drops the oldest). The figure is the kernel's processor time of the router's process over the
predictions of the round; the least of the rounds is what counts, for other work on the machine only adds (caches, clock).
Beside it the events' own code, alone in a process: taken into the queue, made a batch, sent to a monitor, 5,000 a second.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import uuid_utils
from interlock.monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1.router_service_pb2_grpc import RouterServiceStub

from services.router.adapters.monitor_client.event_queue import EventQueue
from services.router.adapters.monitor_client.sender import EventSender
from services.router.domain.ports import PredictionEvent, PredictionId
from services.router.domain.routing import Assignment, Choice, Deployment, Target, Version
from services.router.domain.signature import Signature
from services.router.domain.tensor import Tensor
from tests.fakes.router_world import README, World

ROOT = Path(__file__).resolve().parent.parent
PORT_OFFSET = 22_000
UNDER_TEST, LOAD = 0, 1
IN_FLIGHT = 32
EVENTS_PER_SECOND = 5_000
READY_TIMEOUT_S = 60.0


def request() -> bytes:
    message = pb.PredictRequest(model=README["model"], user_id=README["user_id"])
    for name, value in README["features"].items():
        field = "string_value" if isinstance(value, str) else "int64_value"
        setattr(message.features[name], field, value)
    return message.SerializeToString()


def start(service: str, core: int, world: World, **settings: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(world.folder / service),
        "INTERLOCK_PORT_OFFSET": str(PORT_OFFSET),
        "INTERLOCK_REGISTRY_ADDRESS": world.control_address,
        "INTERLOCK_FEATURES_ADDRESS": world.features_address,
        "INTERLOCK_LOG_LEVEL": "warning",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
        **settings,
    }
    command = ["taskset", "-c", str(core), sys.executable, "-m", f"services.{service}"]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def wait_ready(port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            await asyncio.to_thread(
                lambda: urllib.request.urlopen(f"http://127.0.0.1:{port + PORT_OFFSET}/health/ready", timeout=1).close()
            )
            return
        await asyncio.sleep(0.2)
    raise SystemExit(f"nothing is ready on {port + PORT_OFFSET}")


async def load(stub: RouterServiceStub, message: pb.PredictRequest, count: int) -> None:
    left = iter(range(count))

    async def one() -> None:
        for _ in left:
            await stub.Predict(message, wait_for_ready=True)

    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))


VERSION = Version(model="delay", id="1", signature=Signature((), (), (), None))
TARGET = Target(VERSION, Deployment(name="d", model="delay", version="1", pool="default"))
CHOICE = Choice(TARGET, "champion", Assignment.STICKY, 7, 1)
INPUTS = (
    Tensor("numbers", "FP32", (1, 6), bytes(24)),
    Tensor("texts", "BYTES", (1, 2), b"\x02\x00\x00\x00UA\x03\x00\x00\x00JFK"),
)
OUTPUTS = (Tensor("chances", "FP32", (1, 2), bytes(8)),)


def event(prediction_id: PredictionId) -> PredictionEvent:
    """One prediction of a row with 6 numbers and 2 texts; choice and tensors are there with or without events."""
    return PredictionEvent(
        choice=CHOICE,
        ids=(prediction_id,),
        buckets=(7,),
        degraded=(False,),
        inputs=INPUTS,
        outputs=OUTPUTS,
        status=0,
        principal="local",
        latency_us=900,
    )


async def events_alone(address: str, count: int) -> tuple[float, float]:
    """Gives microseconds of processor time for an event: taken into the queue, and also sent."""
    ids = [uuid_utils.uuid7() for _ in range(count)]

    async def paced(record: Callable[[PredictionEvent], None] | None) -> float:
        begun, cpu = time.perf_counter(), time.process_time()
        for start in range(0, count, 50):
            for one in ids[start : start + 50] if record else ():
                record(event(one))
            await asyncio.sleep(max(0.0, (start + 50) / EVENTS_PER_SECOND - (time.perf_counter() - begun)))
        return 1e6 * (time.process_time() - cpu) / count

    def queue() -> EventQueue:
        return EventQueue(10_000, 64 * 1024 * 1024, lambda _: None)

    idle = await paced(None)
    taken = await paced(queue().record)
    async with grpc.aio.insecure_channel(address) as channel:
        waiting = queue()
        sender = EventSender(
            MonitorServiceStub(channel),
            waiting,
            router_id="cost",
            environment="production",
            interval_s=0.1,
            on_sent=lambda _: None,
        )
        running = asyncio.ensure_future(sender.run())
        sent = await paced(waiting.record)
        sender.close()
        await running
    return taken - idle, sent - idle


async def run(arguments: argparse.Namespace) -> None:
    psutil.Process().cpu_affinity([LOAD])
    message = pb.PredictRequest.FromString(request())
    cost: dict[bool, list[float]] = {True: [], False: []}
    alone: list[tuple[float, float]] = []
    async with World() as world:
        pools = json.dumps({"default": [f"127.0.0.1:{port}" for port in world.replica_ports]})
        router = start("router", UNDER_TEST, world, INTERLOCK_POOLS=pools, INTERLOCK_DOOR="grpcio")
        try:
            await wait_ready(9101)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{9001 + PORT_OFFSET}") as channel:
                stub = RouterServiceStub(channel)
                await load(stub, message, arguments.predictions // 4)
                for round_number in range(2 * arguments.rounds):
                    with_monitor = round_number % 2 == 0
                    seconds = await measure(stub, message, router, world, arguments.predictions, monitor=with_monitor)
                    cost[with_monitor].append(1e6 * seconds / arguments.predictions)
                    print("with" if with_monitor else "without", f"{cost[with_monitor][-1]:.1f} µs", flush=True)
            running = start("monitor", UNDER_TEST, world)
            await wait_ready(9105)
            alone += [await events_alone(f"127.0.0.1:{9005 + PORT_OFFSET}", 20_000) for _ in range(3)]
            running.send_signal(signal.SIGTERM)
            await asyncio.to_thread(running.wait, 30)
        finally:
            router.send_signal(signal.SIGTERM)
            router.wait(timeout=30)
    write(arguments, cost, alone)


async def measure(
    stub: RouterServiceStub,
    message: pb.PredictRequest,
    router: subprocess.Popen[bytes],
    world: World,
    count: int,
    *,
    monitor: bool,
) -> float:
    """Gives the seconds of processor time that the router takes for so many predictions."""
    running = start("monitor", LOAD, world) if monitor else None
    try:
        if monitor:
            await wait_ready(9105)
            # Until the router has found it.
            await asyncio.sleep(12)
        await load(stub, message, count // 10)
        process = psutil.Process(router.pid)
        before = sum(process.cpu_times()[:2])
        await load(stub, message, count)
        await asyncio.sleep(0.5)
        return sum(process.cpu_times()[:2]) - before
    finally:
        if running is not None:
            running.send_signal(signal.SIGTERM)
            await asyncio.to_thread(running.wait, 30)


def write(arguments: argparse.Namespace, cost: dict[bool, list[float]], alone: list[tuple[float, float]]) -> None:
    up, down = min(cost[True]), min(cost[False])
    spread = max(max(rounds) / min(rounds) - 1 for rounds in cost.values())
    taken, sent = (min(values) for values in zip(*alone, strict=True))
    lines = [
        "# What prediction events cost the router",
        "",
        (
            f"`python -m benchmarks.monitor_router_cost`, {time.strftime('%Y-%m-%d', time.gmtime())}, "
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
            f"{arguments.rounds} rounds of {arguments.predictions:,} predictions, {IN_FLIGHT} in flight, door grpcio. "
            f"Load of the machine at the end: {os.getloadavg()[0]:.1f}."
        ),
        "",
        "| monitor | processor time of the router for a prediction, least | all rounds |",
        "|---|---|---|",
        *(
            f"| {name} | {least:.0f} µs | {', '.join(f'{one:.0f}' for one in cost[key])} |"
            for name, least, key in (("up", up, True), ("down", down, False))
        ),
        "",
        (
            f"Monitor up instead of down: {(up - down) / down:+.1%}. Rounds of one kind differ by up to {spread:.0%}; a "
            "difference below that says nothing."
        ),
        "",
        (
            f"The events' own code, one row each, {EVENTS_PER_SECOND:,} a second: {taken:.1f} µs to make one and take it into "
            f"the queue, {sent:.1f} µs with its batch and its way to the monitor: {sent / up:.1%} of a prediction."
        ),
    ]
    text = "\n".join(lines) + "\n"
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--predictions", type=int, default=8_000)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "monitor_router_cost.md")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
