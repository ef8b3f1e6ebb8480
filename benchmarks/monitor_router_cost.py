"""What the monitor costs the router: its processor time for a prediction with and without prediction events.

    python -m benchmarks.monitor_router_cost            writes benchmarks/results/monitor_router_cost.md

The whole suite of `benchmarks.end_to_end`, edge and router in one Envoy, on core 0; the load on core 1. `events_switch` turns
the router's events on and off in turn, a tenth of a second each, and counts the processor time of the whole process, with Envoy's
and grpcio's threads: neighbouring slices see the same machine, whatever else runs on it. Batches leave in slices of either kind,
so what they cost is measured by itself and added: the events' own code in a process of its own, taken into the queue, and taken
and sent to the monitor, 5,000 a second. The monitor must have got every event of the slices with events, and no other.
"""

import argparse
import asyncio
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import psutil
import uuid_utils
from interlock.monitor.v1 import monitor_service_pb2 as monitor_pb
from interlock.monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub

from benchmarks import end_to_end
from interlock_cli.demo.publish import MODEL
from services.router.adapters.monitor_client.event_queue import EventQueue
from services.router.adapters.monitor_client.sender import EventSender
from services.router.domain.ports import PredictionEvent, PredictionId
from services.router.domain.routing import Assignment, Choice, Deployment, Target, Version
from services.router.domain.signature import Signature
from services.router.domain.tensor import Tensor

ROOT = end_to_end.ROOT
SWITCH = Path(__file__).resolve().parent / "events_switch"
MONITOR = f"127.0.0.1:{9005 + end_to_end.PORT_OFFSET}"
IN_FLIGHT, CONNECTIONS = 16, 2
EVENTS_PER_SECOND = 5_000
GOAL = 0.03
# Until the last events have left: they wait for half a second at most.
LEAVE_S = 0.8
# Fewer predictions in a slice: the load was beginning or ending.
LEAST_COUNT = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "monitor_router_cost.md")
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([end_to_end.LOAD])
    state = Path(tempfile.mkdtemp(prefix="il-"))
    slices = state / "slices"
    switch = {"PYTHONPATH": str(SWITCH), "EVENT_SLICES_FILE": str(slices)}
    try:
        with end_to_end.stack(state, "envoy", **switch):
            bodies, _ = end_to_end.requests()
            before = events_taken()
            slices.touch()
            while not slices.stat().st_size:
                time.sleep(0.1)
            tally = end_to_end.run_load(bodies, IN_FLIGHT, CONNECTIONS, arguments.seconds)
            time.sleep(LEAVE_S)
            taken = events_taken() - before
            alone = [asyncio.run(events_alone(20_000)) for _ in range(5)]
            # Whole lines only: the last one may be half written.
            pairs = np.array([line.split() for line in slices.read_text().splitlines() if line.count(" ") == 3], float)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    counts = pairs[:, [1, 3]].sum(axis=0)
    if tally.failures or counts.sum() < tally.ok_count or taken != counts[0]:
        raise SystemExit(f"{tally.ok_count} good, {tally.failures}; {counts} ended; the monitor took {taken} events")
    write(arguments, pairs[pairs[:, [1, 3]].min(axis=1) >= LEAST_COUNT], alone)


def events_taken() -> int:
    """Gives how many predictions the monitor has counted, once no more come."""
    found = -1
    while found != (found := _events_counted()):
        time.sleep(0.3)
    return found


def _events_counted() -> int:
    with grpc.insecure_channel(MONITOR) as channel:
        stub = MonitorServiceStub(channel)
        answer = stub.GetPredictionCounts(monitor_pb.GetPredictionCountsRequest(model=MODEL), timeout=10)
    return sum(count.ok_count for count in answer.counts)


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


async def events_alone(count: int) -> tuple[float, float]:
    """Gives microseconds of processor time for an event: taken into the queue, and also sent."""
    ids = [uuid_utils.uuid7() for _ in range(count)]

    async def paced(record: Callable[[PredictionEvent], None] | None = None) -> float:
        begun, cpu = time.perf_counter(), time.process_time()
        for start in range(0, count, 50):
            if record is not None:
                for one in ids[start : start + 50]:
                    record(event(one))
            await asyncio.sleep(max(0.0, (start + 50) / EVENTS_PER_SECOND - (time.perf_counter() - begun)))
        return 1e6 * (time.process_time() - cpu) / count

    def queue() -> EventQueue:
        return EventQueue(10_000, 64 * 1024 * 1024, lambda _: None)

    idle = await paced()
    taken = await paced(queue().record)
    async with grpc.aio.insecure_channel(MONITOR) as channel:
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


def write(arguments: argparse.Namespace, pairs: np.ndarray, alone: list[tuple[float, float]]) -> None:
    with_events, without = pairs[:, 0] / pairs[:, 1] / 1e3, pairs[:, 2] / pairs[:, 3] / 1e3
    taken, sent = (min(values) for values in zip(*alone, strict=True))
    leaving = sent - taken
    # Half of the predictions have events, and their batches leave in slices of both kinds.
    share = (with_events - without + leaving) / (without - leaving / 2)
    picks = np.random.default_rng(1).integers(len(share), size=(5_000, len(share)))
    cost, (low, high) = np.median(share), np.quantile(np.median(share[picks], axis=1), (0.025, 0.975))
    lines = [
        "# What prediction events cost the router",
        "",
        (
            f"`python -m benchmarks.monitor_router_cost`, {time.strftime('%Y-%m-%d', time.gmtime())}, "
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {len(pairs)} pairs of slices of "
            f"0.1 s, {IN_FLIGHT} in flight, gRPC `Predict` through the door `envoy`, one row of the flight-delay model, all of "
            f"the suite on core 0. Load of the machine at the end: {os.getloadavg()[0]:.1f}."
        ),
        "",
        "| microseconds of processor time of router and Envoy a prediction | median |",
        "|---|---|",
        f"| without events | {np.median(without) - leaving / 2:.1f} |",
        f"| more with events, until they are in the queue | {np.median(with_events - without):.1f} |",
        f"| the events' batches and their way to the monitor | {leaving:.1f} |",
        "",
        (
            f"With events instead of without: {cost:+.1%} ({low:+.1%} to {high:+.1%}, 95 %, median of the pairs). "
            f"Goal: under {GOAL:.0%}: {'met' if cost < GOAL else 'NOT met'}."
        ),
        "",
        (
            f"The events' own code, one row each, {EVENTS_PER_SECOND:,} a second, alone in a process: {taken:.1f} us to make one "
            f"and take it into the queue, {sent:.1f} us with its batch and its way to the monitor."
        ),
    ]
    text = "\n".join(lines) + "\n"
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
