"""What the monitor costs the router: its processor time for a prediction with and without prediction events.

    python -m benchmarks.monitor_router_cost            writes benchmarks/results/monitor_router_cost.md

The whole suite of `benchmarks.end_to_end`, edge and router in one Envoy, on core 0; the load on core 1. One and the same
router serves all rounds: `events_switch` turns its events off and on, so that nothing else differs. Rounds come in pairs,
one with events and one without, the order turning with each pair; the figure is the median of the pairs' ratios, with an
interval from resampling them. What counts is the kernel's processor time of all that belongs to the router, Envoy's and
grpcio's threads too, from before the load until the round's last events have left. In rounds with events the
monitor takes every one of them, in those without it takes none; both are checked.
Beside it the events' own code, alone in a process: taken into the queue, made a batch, sent to the monitor, 5,000 a second.
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
from benchmarks.processor_time import ProcessorTime
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
# Until the switch is seen, and until the last events of a round have left: they wait for half a second at most.
SWITCH_S, LEAVE_S = 0.5, 0.8
GOAL = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "monitor_router_cost.md")
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([end_to_end.LOAD])
    state = Path(tempfile.mkdtemp(prefix="il-"))
    off = state / "events.off"
    switch = {"PYTHONPATH": str(SWITCH), "EVENTS_OFF_FILE": str(off)}
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    try:
        with end_to_end.stack(state, "envoy", **switch) as suite:
            bodies, _ = end_to_end.requests()
            end_to_end.run_load(bodies, IN_FLIGHT, CONNECTIONS, 2 * arguments.seconds)
            for number in range(arguments.pairs):
                order = (True, False) if number % 2 else (False, True)
                spent = {events: one_round(suite, bodies, off, arguments.seconds, events=events) for events in order}
                pairs.append((spent[True], spent[False]))
                us = [sum(of_router(spent[events]).values()) for events in (True, False)]
                print(f"with events {us[0]:.1f} us, without {us[1]:.1f} us: {us[0] / us[1] - 1:+.1%}", flush=True)
            alone = [asyncio.run(events_alone(20_000)) for _ in range(3)]
    finally:
        shutil.rmtree(state, ignore_errors=True)
    write(arguments, pairs, alone)


def one_round(suite: int, bodies: list[bytes], off: Path, seconds: float, *, events: bool) -> dict[str, float]:
    """Gives microseconds of processor time a request, by what the processes do."""
    if events:
        off.unlink(missing_ok=True)
    else:
        off.touch()
    time.sleep(SWITCH_S)
    end_to_end.run_load(bodies, IN_FLIGHT, CONNECTIONS, 0.5)
    time.sleep(LEAVE_S)
    taken_before, before = events_taken(), ProcessorTime([suite])
    tally = end_to_end.run_load(bodies, IN_FLIGHT, CONNECTIONS, seconds)
    time.sleep(LEAVE_S)
    us, _ = ProcessorTime([suite]).since(before, tally.ok_count)
    # Asked for after the measurement: it takes time of the monitor only, but it takes time.
    taken = events_taken() - taken_before
    if tally.failures or taken != tally.ok_count * events:
        raise SystemExit(f"{tally.ok_count} good, {tally.failures}; the monitor took {taken} events")
    return us


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


def of_router(us: dict[str, float]) -> dict[str, float]:
    """Gives what belongs to the router."""
    return {role: value for role, value in us.items() if role.startswith("router")}


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


def write(
    arguments: argparse.Namespace,
    pairs: list[tuple[dict[str, float], dict[str, float]]],
    alone: list[tuple[float, float]],
) -> None:
    totals = np.array([[sum(of_router(us).values()) for us in pair] for pair in pairs])
    ratios = totals[:, 0] / totals[:, 1] - 1
    draws = np.random.default_rng(1).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    cost = float(np.median(ratios))
    taken, sent = (min(values) for values in zip(*alone, strict=True))
    roles = sorted(of_router(pairs[0][0]), key=lambda role: -pairs[0][0][role])
    rows = [
        (role, *(float(np.median([pair[kind].get(role, 0.0) for pair in pairs])) for kind in (0, 1))) for role in roles
    ]
    rows.append(("all of the router", *(float(np.median(totals[:, kind])) for kind in (0, 1))))
    lines = [
        "# What prediction events cost the router",
        "",
        (
            f"`python -m benchmarks.monitor_router_cost`, {time.strftime('%Y-%m-%d', time.gmtime())}, "
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {len(pairs)} pairs of rounds of "
            f"{arguments.seconds:g} s, {IN_FLIGHT} in flight, gRPC `Predict` through the door `envoy`, one row of the "
            f"flight-delay model, all of the suite on core 0. Load of the machine at the end: {os.getloadavg()[0]:.1f}."
        ),
        "",
        "| microseconds of processor time a prediction, median | with events | without |",
        "|---|---|---|",
        *(f"| {role} | {with_events:.1f} | {without:.1f} |" for role, with_events, without in rows),
        "",
        (
            f"With events instead of without: {cost:+.1%} ({low:+.1%} to {high:+.1%}, 95 %, median of the pairs; single pairs "
            f"from {ratios.min():+.1%} to {ratios.max():+.1%}). Goal: under {GOAL:.0%}: {'met' if high < GOAL else 'NOT met'}."
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
