"""The long form of bad input: `make soak`, or `python -m tests.proof.bad_input_soak --count 100000`.

All wrong requests go to a router over gRPC and by the twins of its REST paths; a quarter of them, and every body that is no
request, go over HTTP through the public port too, with the router in Envoy and behind it. Writes
`benchmarks/results/bad_input.md`; ends with an error when one was answered wrongly.
"""

import argparse
import asyncio
import logging
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from tests.fakes.router_world import World
from tests.proof.bad_input import Wrong, ask_all, faults_of_malformed, faults_over_grpc, malformed_json, requests
from tests.proof.fleet import ROOT
from tests.proof.public_port import PublicPort, public_port

_RESULT = ROOT / "benchmarks" / "results" / "bad_input.md"
_OVER_HTTP = 4
_BODIES = 100
_TIMED = 2_000
_WARM_UP = 200
_DOORS = {"envoy": "the router in Envoy", "grpcio": "Envoy before the router"}


@dataclass(frozen=True)
class Way:
    """What was asked in one way: how many, what was answered wrongly, and how long refusals took, in ms, ascending."""

    name: str
    asked: int
    faults: list[str]
    times_ms: list[float]

    def row(self) -> str:
        """Return the row of the table."""
        times = self.times_ms
        shown = (
            [f"{times[len(times) // 2]:.2f}", f"{times[len(times) * 99 // 100]:.2f}", f"{times[-1]:.1f}"]
            if times
            else ["", "", ""]
        )
        return " | ".join((f"| {self.name}", f"{self.asked:,}", f"{len(self.faults):,}", *shown)) + " |"


async def _soak(count: int, seed: int) -> list[Way]:
    async with World() as world:
        await world.start_router()
        asked, faults = await ask_all(world, requests(count, seed))
        for body in malformed_json(count // _BODIES, seed):
            faults += await faults_of_malformed(world, body)
        ways = [Way("gRPC, and the twins of REST, at the router itself", asked.total(), faults, [])]
        for door, name in _DOORS.items():
            async with public_port(world, door) as port:
                ways += await _at(port, name, count, seed)
    return ways


async def _at(port: PublicPort, name: str, count: int, seed: int) -> list[Way]:
    await port.ask_all(requests(count // _OVER_HTTP, seed + 1), malformed_json(count // _BODIES, seed))
    over_grpc: list[str] = []

    async def by_grpc(wrong: Wrong) -> bool:
        if isinstance(wrong.request, bytes):
            return False
        fault = await faults_over_grpc(port, wrong)
        over_grpc.extend([f"{wrong.fault} by gRPC at {port.door}: {fault}"] if fault else [])
        return True

    times_ms = await _times_ms(by_grpc, seed), await _times_ms(port.ask, seed)
    return [
        Way(f"gRPC, {name}", len(times_ms[0]) + _WARM_UP, over_grpc, times_ms[0]),
        Way(f"REST, {name}", port.asked, port.faults, times_ms[1]),
    ]


async def _times_ms(ask: Callable[[Wrong], Awaitable[bool]], seed: int) -> list[float]:
    """Return how long refusals take a caller who asks for one at a time, ascending."""
    taken: list[float] = []
    for wrong in requests(_TIMED + _WARM_UP, seed + 2):
        begun = time.perf_counter()
        if await ask(wrong):
            taken.append((time.perf_counter() - begun) * 1e3)
    return sorted(taken[_WARM_UP:])


def _report(ways: list[Way], took_s: float) -> str:
    setting = (
        f"`make soak`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[1]:.1f}, Python {platform.python_version()}: {sum(way.asked for way in ways):,} requests in {took_s / 60:.0f} minutes. Each is right but for one thing "
        "(name, missing, twice, extra, datatype, shape, rows, bytes, count, both forms, output; features by name, type, value), or is "
        "no request at all. Right is: refused as the caller's mistake, by the code that belongs to it, with the field, what was wanted "
        "and what came. Times are those of a caller in Python who asks for one at a time, its own work included."
    )
    return "\n".join(
        [
            "# Bad input: is every wrong request refused, by a reason, at once?",
            "",
            setting,
            "",
            "| way | asked | answered wrongly | p50 ms | p99 ms | longest ms |",
            "|---|---|---|---|---|---|",
            *(way.row() for way in ways),
            "",
        ]
    )


def _main(count: int, seed: int, output: Path) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    begun = time.monotonic()
    ways = asyncio.run(_soak(count, seed))
    text = _report(ways, time.monotonic() - begun)
    output.write_text(text, "utf-8")
    faults = [fault for way in ways for fault in way.faults]
    sys.stdout.write("".join(f"{fault}\n" for fault in {fault.partition(":")[0]: fault for fault in faults}.values()))
    sys.stdout.write(text)
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_RESULT)
    given = parser.parse_args()
    sys.exit(_main(given.count, given.seed, given.output))
