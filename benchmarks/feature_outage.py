"""What an outage of the features costs: Redis or the features service killed, frozen, slow, replaced under load.

    python -m benchmarks.feature_outage            writes benchmarks/results/feature_outage.md

A whole stack (edge, router, inference, features, registry, monitor) with a Redis of its own that is killed, frozen and
slowed here, and a model whose first version fetches two features; without them the route's fallback is to answer, by
a version that fetches none. Open loop: a request is sent when it is due, whatever became of those before, and its time
counts from then. Every other request names the version that fetches nothing: what it takes in the same seconds is the
model's own time and what the machine adds. Goals: no answer is lost or refused, each one is there within 50 ms plus the
model's own time, and none is degraded five seconds after the part is back.
"""

import argparse
import asyncio
import os
import platform
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1.router_service_pb2_grpc import RouterServiceStub
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.common.tasks import spawn
from tests.e2e.live_model import ENTITIES, LIVE_ANSWER, SCHEDULE_ANSWER, Live
from tests.e2e.stack import Stack, new_stack
from tests.fakes.late_redis import LateReplies
from tests.fakes.redis_server import RedisServer, redis_sentinel, redis_server

ROOT = Path(__file__).resolve().parent.parent
RATE = 200
OUTAGE_S = 2.5
"""How long a part is away, where that is for us to say."""
CALM_S, LONGEST_CALM_S = 1.5, 10.0
"""A fault is over when no answer was degraded for so long; it is given up after the other."""
SLOW_STOPPED_S, SLOW_RUNNING_S = 0.09, 0.01
LATE_S = 2.0
DOWN_AFTER_MS = 1_000
KNOWN_S = 1.0
"""From then on a part that is gone is known to be."""
GOAL_ADDED_MS, GOAL_CLEAN_S = 50.0, 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: seconds of `time.monotonic()`, milliseconds from when it was due, and what came of it."""

    due: float
    ended: float
    control: bool
    code: str
    degraded: tuple[str, ...]
    value: float

    @property
    def ms(self) -> float:
        """Time from when it was due to its answer."""
        return 1e3 * (self.ended - self.due)


@dataclass
class Load:
    """Requests at a steady rate for as long as the block runs."""

    live: Live
    router: "RouterServiceStub"
    answers: list[Answer] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send while the block runs; every request has ended when it is left."""
        going = asyncio.Event()
        task = spawn(self._send(going), "load")
        try:
            yield
        finally:
            going.set()
            await task

    async def _send(self, stop: asyncio.Event) -> None:
        start = time.monotonic()
        sent: list[asyncio.Task[None]] = []
        while not stop.is_set():
            due = start + len(sent) / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent.append(spawn(self._ask(due, control=len(sent) % 2 == 0), "request"))
        await asyncio.gather(*sent)

    async def _ask(self, due: float, *, control: bool) -> None:
        request = pb.PredictRequest(
            model=self.live.model,
            features={"hour": FeatureValue(int64_value=9)},
            entities={} if control else ENTITIES,
            version="2" if control else "",
        )
        code, degraded, value = "OK", (), 0.0
        try:
            found = (await self.router.Predict(request, timeout=5)).prediction
            degraded, value = tuple(found.degraded), found.prediction.double_value
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        self.answers.append(Answer(due, time.monotonic(), control, code, degraded, value))


@dataclass
class Parts:
    """What can be broken."""

    stack: Stack
    redis: RedisServer
    late: LateReplies | None = None
    """In the way to Redis where a fault is one of `LATE`."""
    replica: RedisServer | None = None
    """Of Redis, where a fault is one of `FAILOVER`."""

    async def features_ready(self, not_pid: int) -> None:
        """Return when a features process other than this one is ready."""
        while True:
            row = (await asyncio.to_thread(self.stack.status))["features"]
            if row["state"] == "ready" and row["pid"] != not_pid:
                return
            await asyncio.sleep(0.02)


Break = Callable[[Parts], Awaitable[None]]
"""Breaks a part, and returns when it is back."""


async def redis_killed(parts: Parts) -> None:
    """Connections are reset and new ones refused."""
    await parts.redis.kill()
    await asyncio.sleep(OUTAGE_S)
    await parts.redis.start()


async def redis_frozen(parts: Parts) -> None:
    """Connections stay, new ones are made by the kernel, and nothing is answered."""
    parts.redis.freeze()
    await asyncio.sleep(OUTAGE_S)
    parts.redis.thaw()


async def redis_slow(parts: Parts) -> None:
    """Redis runs one tenth of the time."""
    end = time.monotonic() + OUTAGE_S
    while time.monotonic() < end:
        parts.redis.freeze()
        await asyncio.sleep(SLOW_STOPPED_S)
        parts.redis.thaw()
        await asyncio.sleep(SLOW_RUNNING_S)


async def redis_failed_over(parts: Parts) -> None:
    """The master is killed, and a Sentinel makes its replica the master."""
    assert parts.replica is not None, "this fault is one of `FAILOVER`"
    await parts.redis.kill()
    async with parts.replica.client() as client:
        while (await client.info("replication"))["role"] != "master":  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


async def redis_late(parts: Parts) -> None:
    """Redis answers all that it is asked, two seconds later."""
    assert parts.late is not None, "this fault is one of `LATE`"
    parts.late.delay_s = LATE_S
    await asyncio.sleep(OUTAGE_S)
    parts.late.delay_s = 0.0


async def features_killed(parts: Parts) -> None:
    """The supervisor starts it again."""
    pid = await asyncio.to_thread(parts.stack.pid_of, "features")
    os.kill(pid, signal.SIGKILL)
    await parts.features_ready(pid)


async def features_frozen(parts: Parts) -> None:
    """Connections stay and nothing is answered."""
    process = psutil.Process(await asyncio.to_thread(parts.stack.pid_of, "features"))
    process.suspend()
    await asyncio.sleep(OUTAGE_S)
    process.resume()


async def features_replaced(parts: Parts) -> None:
    """`interlock restart features`: the new process takes over from the old one."""
    await asyncio.to_thread(parts.stack.succeed, "restart", "features")


async def nothing(_: Parts) -> None:
    """For comparison."""
    await asyncio.sleep(OUTAGE_S)


FAULTS: dict[str, Break] = {
    "nothing": nothing,
    "Redis killed": redis_killed,
    "Redis frozen": redis_frozen,
    "Redis slow (runs 10 ms of 100)": redis_slow,
    "Redis slow (answers after 2 s)": redis_late,
    "Redis failed over (Sentinel)": redis_failed_over,
    "features killed": features_killed,
    "features frozen": features_frozen,
    "features replaced (`interlock restart`)": features_replaced,
}


LATE = ("Redis slow (answers after 2 s)",)
FAILOVER = ("Redis failed over (Sentinel)",)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault cost."""

    fault: str
    away_s: float
    answers: int
    lost: int
    degraded: int
    first_degraded_s: float
    p99_ms: float
    worst_ms: float
    control_p99_ms: float
    control_worst_ms: float
    known_p99_ms: float
    known_control_p99_ms: float
    clean_s: float


async def suffer(fault: str, do: Break, parts: Parts, load: Load) -> Outcome:
    """Break one part under load until no answer is degraded any more."""
    begun = len(load.answers)
    broken = time.monotonic()
    await do(parts)
    back = time.monotonic()
    last = back
    while time.monotonic() < min(last + CALM_S, back + LONGEST_CALM_S):
        await asyncio.sleep(0.05)
        last = max([last, *(one.ended for one in load.answers[begun:] if one.degraded)])
    found = [one for one in load.answers[begun:] if broken <= one.due]
    wrong = [one for one in found if one.code == "OK" and one.value != expected(one)]
    if wrong:
        raise SystemExit(f"{fault}: wrong answers {wrong[:5]}")
    during = [one for one in found if one.due <= max(last, back)]
    asked = sorted(one.ms for one in during if not one.control)
    control = sorted(one.ms for one in during if one.control)
    known = [one for one in found if broken + KNOWN_S <= one.due <= back]
    degraded = [one for one in found if one.degraded]
    return Outcome(
        fault=fault,
        away_s=back - broken,
        answers=len(asked),
        lost=sum(one.code != "OK" for one in found),
        degraded=len(degraded),
        first_degraded_s=degraded[0].due - broken if degraded else 0.0,
        p99_ms=quantile(asked, 0.99),
        worst_ms=asked[-1],
        control_p99_ms=quantile(control, 0.99),
        control_worst_ms=control[-1],
        known_p99_ms=quantile(sorted(one.ms for one in known if not one.control), 0.99),
        known_control_p99_ms=quantile(sorted(one.ms for one in known if one.control), 0.99),
        clean_s=max(0.0, last - back),
    )


def expected(answer: Answer) -> float:
    """Return the value that an answer must have."""
    return SCHEDULE_ANSWER if answer.control or answer.degraded else LIVE_ANSWER


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, by nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def measure(door: str, faults: Sequence[str]) -> list[Outcome]:
    """Run every fault; those of LATE and FAILOVER on stacks of their own, whose way to Redis is another one."""
    outcomes = []
    if plain := [one for one in faults if one not in (*LATE, *FAILOVER)]:
        async with redis_server() as redis:
            outcomes += await on_a_stack(door, redis.url, plain, redis)
    if slow := [one for one in faults if one in LATE]:
        async with redis_server() as redis, LateReplies(redis).listening() as late:
            outcomes += await on_a_stack(door, late.url, slow, redis, late=late)
    if lost := [one for one in faults if one in FAILOVER]:
        async with redis_server(port=True) as redis, redis_server(port=True) as replica:
            async with replica.client() as client:
                await client.replicaof("127.0.0.1", redis.port)
            async with redis_sentinel(redis, down_after_ms=DOWN_AFTER_MS) as port:
                url = f"redis+sentinel://127.0.0.1:{port}/flights/0"
                outcomes += await on_a_stack(door, url, lost, redis, replica=replica)
    return outcomes


async def on_a_stack(
    door: str,
    url: str,
    faults: Sequence[str],
    redis: RedisServer,
    *,
    late: LateReplies | None = None,
    replica: RedisServer | None = None,
) -> list[Outcome]:
    """Run faults on one stack that finds Redis at this address."""
    outcomes = []
    with new_stack(door, INTERLOCK_REDIS_URL=url) as stack, tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(stack.start)
        live = Live(stack, Path(folder))
        await asyncio.to_thread(live.set_up)
        await asyncio.to_thread(live.fall_back)
        parts = Parts(stack, redis, late, replica)
        async with grpc.aio.insecure_channel(stack.edge) as channel:
            load = Load(live, RouterServiceStub(channel))
            async with load.running():
                await asyncio.sleep(1)
                for fault in faults:
                    outcomes.append(await suffer(fault, FAULTS[fault], parts, load))
                    print(door, outcomes[-1], flush=True)
    return outcomes


def write(arguments: argparse.Namespace, load_before: float, found: dict[str, list[Outcome]]) -> None:
    """Write the table."""
    outcomes = [one for door in found.values() for one in door]
    met = all(
        one.lost == 0 and one.p99_ms <= GOAL_ADDED_MS + one.control_p99_ms and one.clean_s <= GOAL_CLEAN_S
        for one in outcomes
    )
    lines = [
        "# What an outage of the features costs",
        "",
        (
            f"`python -m benchmarks.feature_outage`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}. {RATE} requests/s in an open loop through the edge, "
            "every other one to the version that fetches nothing; times from when a request was due. Load average "
            f"before the run: {load_before:.1f}; anything well above 0 belongs to others and is in the figures."
        ),
        "",
        "| door | fault | away s | answers | not OK | degraded | p99 ms | longest ms | p99 / longest without features | p99 after 1 s, and without features | last degraded after back s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {door} | {one.fault} | {one.away_s:.1f} | {one.answers} | {one.lost} | {one.degraded} | {one.p99_ms:.1f} "
            f"| {one.worst_ms:.1f} | {one.control_p99_ms:.1f} / {one.control_worst_ms:.1f} "
            f"| {one.known_p99_ms:.1f} / {one.known_control_p99_ms:.1f} | {one.clean_s:.1f} |"
            for door, outcomes in found.items()
            for one in outcomes
        ),
        "",
        (
            f"Goal: every answer OK, p99 at most {GOAL_ADDED_MS:g} ms over that of the version that fetches nothing, none "
            f"degraded {GOAL_CLEAN_S:g} s after the part is back: {'met' if met else 'NOT met'}."
        ),
    ]
    text = "\n".join(lines) + "\n"
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--doors", nargs="+", default=["envoy"], choices=["envoy", "grpcio"])
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "feature_outage.md")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    found = {door: asyncio.run(measure(door, arguments.faults)) for door in arguments.doors}
    write(arguments, load_before, found)


if __name__ == "__main__":
    main()
