"""One of three replicas of inference breaks under load: what do callers notice?

    python -m benchmarks.faults            writes benchmarks/results/faults.md

Two routers, one in Envoy and one behind the grpcio door, have three replicas of inference, of both kinds. Predict arrives in
open loop, with 3 s of time a request, and each answer is held against the oracle. Each fault comes three times, at one
replica after the other, and lasts 10 s; counted is what was asked from its beginning to its end.
"""

import argparse
import asyncio
import os
import platform
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from tests.proof.fleet import Service, new_fleet
from tests.proof.history import OK, Answered, Asked, Event, FaultBegan, Verdict
from tests.proof.load import PREDICT, Load, Mix
from tests.proof.processes import standing_still
from tests.proof.run import surfaces_of

RESULT = Path(__file__).resolve().parent / "results" / "faults.md"
LASTS_S, BETWEEN_S = 10.0, 4.0
_PLAIN: Final = Mix(cancelled=0, hurried=0, poisoned=0, slow=0, pinned=0)

Fault = Callable[[Service], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def _worker_killed(replica: Service) -> AsyncIterator[None]:
    replica.workers()[0].kill()
    yield


@asynccontextmanager
async def _replica_killed(replica: Service) -> AsyncIterator[None]:
    for process in replica.processes():
        process.kill()
    await replica.process.wait()
    yield
    await replica.start()
    await replica.until_ready()


@asynccontextmanager
async def _replica_frozen(replica: Service) -> AsyncIterator[None]:
    with standing_still(replica.processes()):
        yield


@asynccontextmanager
async def _front_frozen(replica: Service) -> AsyncIterator[None]:
    workers = {worker.pid for worker in replica.workers()}
    with standing_still([process for process in replica.processes() if process.pid not in workers]):
        yield


@asynccontextmanager
async def _replica_restarted(replica: Service) -> AsyncIterator[None]:
    restarting = asyncio.create_task(replica.restart())
    yield
    await restarting


FAULTS: Final[dict[str, Fault]] = {
    "nothing": nullcontext,
    "a model process is killed": _worker_killed,
    "a replica is killed": _replica_killed,
    "a replica stands still": _replica_frozen,
    "its front stands still, its model processes do not": _front_frozen,
    "a replica is restarted": _replica_restarted,
}


@dataclass
class _Ends:
    """When requests were asked and how they ended."""

    asked: dict[int, float] = field(default_factory=dict)
    ended: dict[int, Answered] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        if isinstance(event, Asked):
            self.asked[event.id] = event.at
        elif isinstance(event, Answered):
            self.ended.setdefault(event.id, event)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second, open loop")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.output.write_text(asyncio.run(_measure(arguments.rate)), "utf-8")


async def _measure(rate: float) -> str:
    ends = _Ends()
    begun_at: dict[str, list[float]] = {name: [] for name in FAULTS}
    async with new_fleet(more_replicas=1) as fleet, surfaces_of(fleet, 2) as surfaces:
        asked = [surface for surface in surfaces if surface.form is PREDICT]
        load, over = Load(asked, _PLAIN, 1, record=ends.take), asyncio.Event()
        # Here everything is broken all the time, as far as the judge knows: only answers can be to blame.
        load.tell(FaultBegan(load.now(), "any", "UNAVAILABLE"))
        running = asyncio.create_task(load.run(rate, over.is_set))
        for name, fault in FAULTS.items():
            print(name, flush=True)
            for replica in fleet.replicas:
                await fleet.until_whole()
                await asyncio.sleep(BETWEEN_S)
                begun_at[name].append(load.now())
                async with fault(replica):
                    await asyncio.sleep(LASTS_S)
        over.set()
        await running
        await load.settle(30)
        verdict = load.judge.finish()
    return _report([_row(name, begun_at[name], ends) for name in FAULTS], verdict, rate)


def _row(name: str, begun: Sequence[float], ends: _Ends) -> str:
    count, failed, after_s, took_ms = 0, Counter[str](), [], []
    for ident, at in ends.asked.items():
        start = next((start for start in begun if start <= at < start + LASTS_S), None)
        if start is None or (end := ends.ended.get(ident)) is None:
            continue
        count += 1
        took_ms.append((end.at - at) * 1e3)
        if end.status != OK:
            failed[f"{end.status} {end.reason}".strip()] += 1
            after_s.append(at - start)
    told = ", ".join(f"{found} {status}" for status, found in failed.most_common()) or "none"
    last = f"{max(after_s):.2f} s" if after_s else "-"
    share = 100 * (count - failed.total()) / count
    p50, p99, longest = np.percentile(took_ms, 50), np.percentile(took_ms, 99), max(took_ms)
    return f"| {name} | {count:,} | {share:.2f} % | {told} | {last} | {p50:.1f} / {p99:.1f} / {longest:.0f} |"


def _report(rows: Sequence[str], verdict: Verdict, rate: float) -> str:
    found = ", ".join(f"{count} {kind}" for kind, count in verdict.found.items()) or "none"
    return f"""# When one of three replicas breaks

`python -m benchmarks.faults`, {time.strftime("%Y-%m-%d", time.gmtime())}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {rate:g} requests a second.
{(__doc__ or "").partition("faults.md")[2].strip()}

Answers that were wrong, lost, doubled or swapped, over the whole run: **{found}**.

| fault | requests | OK | not OK | the last of these was asked, after the fault began | p50 / p99 / longest, ms |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
