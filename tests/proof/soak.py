"""The long form of the proof: `make soak`, or `python -m tests.proof.soak --count 1000000 --faults worker-kill reload`.

Writes `benchmarks/results/soak.md`; ends with an error when a single answer was wrong, lost, doubled or swapped, when a
good request was refused without cause, or when memory grew. With `--history` every event is kept in a file.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from services.common.tasks import spawn
from tests.proof.clocks import LIBRARY
from tests.proof.fault import CLOCK_JUMP, FAULTS
from tests.proof.fleet import ROOT, Fleet, new_fleet
from tests.proof.history import Event, Verdict
from tests.proof.load import Load
from tests.proof.processes import resident_bytes
from tests.proof.run import prove

_RESULT = ROOT / "benchmarks" / "results" / "soak.md"
_SAMPLE_S = 2.0
# Allocators round up; a leak in a million requests is far above it.
_GROWTH_SHARE, _GROWTH_BYTES = 0.10, 16 * 1024 * 1024


@dataclass
class Memory:
    """Resident memory of each service of the fleet, workers included, over the run."""

    samples: dict[str, list[int]] = field(default_factory=dict)

    async def watch(self, fleet: Fleet) -> None:
        """Take samples until cancelled."""
        while True:
            for service in fleet.services:
                self.samples.setdefault(service.name, []).append(
                    await asyncio.to_thread(resident_bytes, [service.process.pid])
                )
            await asyncio.sleep(_SAMPLE_S)

    def growth(self) -> dict[str, tuple[float, float]]:
        """Return the median of the second and of the last quarter of the run, in MiB."""
        found = {}
        for name, samples in self.samples.items():
            quarter = max(1, len(samples) // 4)
            early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
            found[name] = (statistics.median(early) / 2**20, statistics.median(late) / 2**20)
        return found

    def grown(self) -> list[str]:
        """Return the services whose memory is not flat."""
        slack = _GROWTH_BYTES / 2**20
        return [name for name, (early, late) in self.growth().items() if late > early * (1 + _GROWTH_SHARE) + slack]


async def _soak(arguments: argparse.Namespace) -> int:
    begun, memory = time.monotonic(), Memory()
    told = 0
    async with AsyncExitStack() as opened:
        record = None
        if arguments.history:
            file = opened.enter_context(arguments.history.open("w", encoding="utf-8"))

            def record(event: Event) -> None:
                file.write(f"{event!r}\n")

        fleet = await opened.enter_async_context(
            new_fleet(shared=arguments.shared, processes=arguments.processes, clocks=CLOCK_JUMP in arguments.faults)
        )
        watching = spawn(memory.watch(fleet), "watch-memory")

        def between(load: Load) -> None:
            nonlocal told
            took = time.monotonic() - begun
            found = sum(load.judge.verdict.found.values())
            sys.stdout.write(
                f"{took:7.0f} s  {load.sent:>9,} sent  {load.judge.verdict.ok_count:>9,} OK  {found} violations\n"
            )
            violations = load.judge.verdict.violations
            for one in violations[told:]:
                sys.stdout.write(f"          {one.kind}: request {one.request}: {one.text}\n")
            told = len(violations)
            sys.stdout.flush()

        verdict, load = await prove(
            fleet, faults=arguments.faults, rate=arguments.rate, count=arguments.count, seed=arguments.seed,
            connections=4, record=record, between=between,
        )  # fmt: skip
        watching.cancel()
        if verdict.violations:
            sys.stdout.write(f"{verdict.story()}\n{fleet.story()}\n")
    text = _report(arguments, verdict, load, memory, time.monotonic() - begun)
    arguments.output.write_text(text, "utf-8")
    sys.stdout.write(text)
    return 1 if verdict.violations or memory.grown() else 0


def _report(arguments: argparse.Namespace, verdict: Verdict, load: Load, memory: Memory, took_s: float) -> str:
    judged = "0" if not verdict.violations else ", ".join(f"{count:,} {kind}" for kind, count in verdict.found.items())
    setting = (
        f"`make soak`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}: {load.sent:,} requests in {took_s / 60:.0f} minutes, open loop at {arguments.rate:g}/s, over "
        "gRPC, REST and OIP through two routers (one in Envoy, one grpcio behind an Envoy) and at two replicas of inference "
        "(one behind each door) directly. 4 % were cancelled, 3 % of gRPC had 1 to 20 ms, 1 % held a row that makes the model "
        f"raise, 1 % were slow. {'The versions of a replica shared a model process. ' if arguments.shared else ''}"
        f"{f'{arguments.processes} processes on each port. ' if arguments.processes > 1 else ''}"
        f"Meanwhile, in turn: {', '.join(arguments.faults) or 'no faults'}."
    )
    lines = [
        "# Soak: is every answer the right one?",
        "",
        setting,
        "",
        f"**Wrong, lost, doubled, swapped, of the wrong version, or refused without cause: {judged}.**",
        "",
        "| how requests ended | count |",
        "|---|---|",
        *(f"| {name.strip()} | {count:,} |" for name, count in verdict.outcomes.most_common()),
        "",
        "| answered OK | count |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in sorted(verdict.by_surface.items())),
        "",
        "| memory, MiB, workers included | second quarter of the run | last quarter |",
        "|---|---|---|",
        *(f"| {name} | {early:,.0f} | {late:,.0f} |" for name, (early, late) in memory.growth().items()),
    ]
    if grown := memory.grown():
        lines += ["", f"Memory grew: {', '.join(grown)}."]
    if load.not_sent:
        lines += [
            "",
            f"{load.not_sent:,} arrivals were not sent: too many were in flight, or a port was being taken over.",
        ]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="requests to send")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second, open loop")
    # Allocators keep much of what 20 MB needed, some rounds more than others: that would hide whether memory is flat.
    default = [name for name in FAULTS if name != "large-tensors"]
    parser.add_argument("--faults", nargs="*", default=default, choices=list(FAULTS), help="what is broken, in turn")
    parser.add_argument(
        "--processes", type=int, default=1, help="on the port of each router, and of inference in Envoy"
    )
    parser.add_argument("--shared", action="store_true", help="the versions of a replica share a model process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--history", type=Path, help="file that keeps every event")
    parser.add_argument("--output", type=Path, default=_RESULT)
    arguments = parser.parse_args()
    if CLOCK_JUMP in arguments.faults and LIBRARY is None:
        parser.error(f"{CLOCK_JUMP} needs libfaketime: install the package faketime")
    return arguments


if __name__ == "__main__":
    sys.exit(asyncio.run(_soak(_arguments())))
