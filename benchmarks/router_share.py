"""What the router adds to a prediction when it fetches features and tells the monitor: its own processor time, and all other.

    python -m benchmarks.router_share            writes benchmarks/results/router_share.md

The whole suite (edge, router, inference, model worker, registry, monitor, features, Redis) on core 0, the load on core 1,
closed loop, 2,000 distinct rows. `Predict` for version 1 of the demo, which has 7 features in the request, and for version 2,
which has 7 more that are fetched: 4 views in Redis, read for 3 to 4 entities. Each is asked at the suite's own router and at
a second one, the same but that it throws its events away. The four take turns in every round. Processor time is the
scheduler's own count by process, so it holds on a busy machine; what does not follow the requests is in it too.
"""

import argparse
import importlib
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from interlock.router.v1 import router_service_pb2 as router_pb

from benchmarks.end_to_end import (
    LOAD,
    MODEL,
    PORT_OFFSET,
    PREDICT,
    READY_TIMEOUT_S,
    ROOT,
    ROW_COUNT,
    UNDER_TEST,
    put_features,
    stack,
)
from benchmarks.h2_load import Load, Tally
from benchmarks.processor_time import ProcessorTime
from interlock_cli.demo.data import LATER, LIVE, load_flights
from interlock_cli.demo.replay import REPLAYED, departure_times, shift_to
from interlock_cli.demo.traffic import request_bodies
from services.common.edge.launcher import launch
from services.common.server import main as serve
from services.common.settings import METRICS_PORT_STEP, PORTS
from services.router import app as router_app
from services.router.adapters.monitor_client.event_queue import EventQueue
from services.router.settings import Settings

RESULT = ROOT / "benchmarks" / "results" / "router_share.md"
SECOND_OFFSET = PORT_OFFSET + 500
IN_FLIGHT = {1: 1, 16: 2, 64: 4}
WITHOUT_EVENTS = "BENCHMARK_WITHOUT_EVENTS"
# What is the router's own; the rest is in the services that it asks.
OWN = ("router: Python in Envoy", "router: Envoy")
_GOOD = (f'method="{PREDICT}"', 'code="OK"', "interlock_router_requests_total{")
_SILENT = ("interlock_router_degraded_predictions_total{", "features_unavailable")
GROUPS = {
    "inference and model worker": ("inference", "model worker"),
    "features and Redis": ("features", "Redis"),
    "monitor": ("monitor",),
}


@dataclass(frozen=True)
class Form:
    """One way to ask."""

    name: str
    version: str
    offset: int


FORMS = (
    Form("neither", "1", SECOND_OFFSET),
    Form("events", "1", PORT_OFFSET),
    Form("features", "2", SECOND_OFFSET),
    Form("features and events", "2", PORT_OFFSET),
)


@dataclass
class Cells:
    """What the rounds of one form and load gave."""

    tallies: list[Tally] = field(default_factory=list)
    us: list[dict[str, float]] = field(default_factory=list)
    silent: int = 0
    """Answers that did not wait for the features service."""

    def median(self, roles: Sequence[str]) -> float:
        """Give microseconds of processor time a request of some processes."""
        return statistics.median(sum(us.get(role, 0.0) for role in roles) for us in self.us)

    @property
    def whole(self) -> float:
        return statistics.median(sum(us.values()) for us in self.us)

    def figures(self) -> list[float]:
        return [self.median(OWN), *(self.median(roles) for roles in GROUPS.values()), self.whole]


if WITHOUT_EVENTS in os.environ:
    EventQueue.record = lambda self, event: None  # type: ignore[method-assign]


def __getattr__(name: str) -> Any:
    """Give the application that Envoy asks for."""
    if name != "router_door":
        raise AttributeError(name)
    return importlib.import_module("services.router.door").app


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each cell")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([LOAD])
    state = Path(tempfile.mkdtemp(prefix="il-"))
    cells = {(form, level): Cells() for form in FORMS for level in IN_FLIGHT}
    try:
        with stack(state, "envoy") as suite, second_router(state) as second:
            bodies = {version: requests(version) for version in ("1", "2")}
            fetched = check(bodies["2"])
            for turn in range(arguments.rounds):
                for level in IN_FLIGHT:
                    for at in range(len(FORMS)):
                        form = FORMS[(at + turn) % len(FORMS)]
                        tally, us, silent = measure(
                            form, bodies[form.version], level, arguments.seconds, [suite, second]
                        )
                        cells[form, level].tallies.append(tally)
                        cells[form, level].us.append(us)
                        cells[form, level].silent += silent
                        print(form.name, level, f"{cells[form, level].whole:.0f} us", flush=True)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    arguments.output.write_text(report(cells, arguments, fetched), "utf-8")


@contextmanager
def second_router(state: Path) -> Iterator[int]:
    """Run a router of the suite that tells nobody; gives its process."""
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(state / "second"),
        "INTERLOCK_PORT_OFFSET": str(SECOND_OFFSET),
        "INTERLOCK_DOOR": "envoy",
        "INTERLOCK_POOLS": f'{{"default": ["127.0.0.1:{PORTS["inference"] + PORT_OFFSET}"]}}',
        **{
            f"INTERLOCK_{name.upper()}_ADDRESS": f"127.0.0.1:{PORTS[name] + PORT_OFFSET}"
            for name in ("registry", "features", "monitor")
        },
        # As `interlock up` sets it: the demo's replay runs ahead of the clock.
        "INTERLOCK_CLOCK_TOLERANCE_S": "432000",
        WITHOUT_EVENTS: "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
    }
    command = ["taskset", "-c", str(UNDER_TEST), sys.executable, "-m", "benchmarks.router_share", "router"]
    (state / "second").mkdir()
    with (state / "second" / "out.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
    try:
        end = time.monotonic() + READY_TIMEOUT_S
        while not ready(SECOND_OFFSET):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit((state / "second" / "out.log").read_text()[-2_000:])
            time.sleep(0.2)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def ready(offset: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORTS['edge'] + offset}/health/ready", timeout=1):
            return True
    except OSError:
        return False


def requests(version: str) -> list[bytes]:
    """Give the messages of distinct later flights, with the keys of what is fetched."""
    whole = load_flights()
    later, played = whole.within(LATER), whole.within(REPLAYED)
    flights = later.take(np.flatnonzero(~later.features.duplicated())[:ROW_COUNT])
    # When the demo's replay has just ended: now, what it pushed would be too old.
    as_of = max(departure_times(played, shift_to(datetime.now(UTC).date())))
    bodies = []
    for asked in request_bodies(flights, MODEL, timedelta()):
        message = router_pb.PredictRequest(model=MODEL, version=version, user_id=asked["user_id"])
        message.as_of_time.FromDatetime(as_of)
        if version == "2":
            message.entities.update(asked["entities"])
        put_features(message, asked["features"])
        bodies.append(message.SerializeToString())
    return bodies


def check(bodies: Sequence[bytes]) -> str:
    """Raise unless both routers answer all of them; says how many fetched values there were."""
    asked, missing, silent = 0, 0, 0
    for offset in (PORT_OFFSET, SECOND_OFFSET):
        load = Load(bodies, keep_answers=True)
        tally = load.run("127.0.0.1", PORTS["edge"] + offset, f"/{PREDICT}", in_flight=64, connections=4, seconds=None)
        if tally.failures or len(tally.answers) != len(bodies):
            raise SystemExit(f"{len(tally.answers)} answers to {len(bodies)} rows, failures: {tally.failures}")
        for body in tally.answers.values():
            answer = router_pb.PredictResponse.FromString(body).prediction
            asked += len(LIVE)
            missing += len(answer.missing_features)
            silent += "features_unavailable" in answer.degraded
    return (
        f"Of {asked:,} values {missing:,} were missing or too old (the demo replays 200 flights: not every aircraft has flown), "
        f"and {silent:,} answers of {2 * len(bodies):,} did not wait for the features service."
    )


def measure(
    form: Form, bodies: list[bytes], level: int, seconds: float, roots: Sequence[int]
) -> tuple[Tally, dict[str, float], int]:
    """Ask in one form.

    Gives the load's tally, microseconds a request by process, and how many answers did not wait for features. The server's
    count of good answers must be the load's.
    """

    def run(lasting_s: float) -> Tally:
        connections, port = IN_FLIGHT[level], PORTS["edge"] + form.offset
        load = Load(bodies, keep_answers=False)
        return load.run("127.0.0.1", port, f"/{PREDICT}", in_flight=level, connections=connections, seconds=lasting_s)

    run(0.3)
    count, silent, before = settled_count(form.offset), counted(form.offset, *_SILENT), ProcessorTime(roots)
    tally = run(seconds)
    us, _ = ProcessorTime(roots).since(before, max(1, tally.ok_count))
    good = settled_count(form.offset) - count
    if tally.failures or good != tally.ok_count:
        raise SystemExit(f"{form.name}: {tally.ok_count} good, failures {tally.failures}, the server counts {good}")
    return tally, us, counted(form.offset, *_SILENT) - silent


def settled_count(offset: int) -> int:
    """Give the count of good answers once it has come to rest: it may come a moment late."""
    before, count = -1, counted(offset, *_GOOD)
    while count != before:
        time.sleep(0.05)
        before, count = count, counted(offset, *_GOOD)
    return count


def counted(offset: int, *wanted: str) -> int:
    """Give the sum of the router's counters whose lines hold all of these."""
    url = f"http://127.0.0.1:{PORTS['router'] + METRICS_PORT_STEP + offset}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if all(part in line for part in wanted))


def report(cells: dict[tuple[Form, int], Cells], arguments: argparse.Namespace, fetched: str) -> str:
    setting = (
        f"`python -m benchmarks.router_share`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, {os.cpu_count()} "
        f"cores, Python {platform.python_version()}; medians of {arguments.rounds} rounds of {arguments.seconds:g} s."
    )
    lines = [
        "# What features and events cost the router",
        "",
        setting,
        (__doc__ or "").partition("router_share.md")[2].strip(),
        f"Before it, 64 in flight, once each: {fetched}",
    ]
    for level in IN_FLIGHT:
        lines += [
            "",
            f"## {level} in flight: microseconds of processor time a request",
            "",
            f"| the router adds | router | to neither | {' | '.join(GROUPS)} | all processes | to neither | requests/s | not waited for features |",
            f"|---|---|---|{'---|' * len(GROUPS)}---|---|---|---|",
        ]
        first = cells[FORMS[0], level].figures()
        for form in FORMS:
            found = cells[form, level]
            own, *others, whole = found.figures()
            rate = statistics.median(tally.ok_count / tally.elapsed_s for tally in found.tallies)
            lines.append(
                f"| {form.name} | {own:.0f} | {own - first[0]:+.0f} ({own / first[0]:.2f}x) | {' | '.join(f'{one:.0f}' for one in others)} "
                f"| {whole:.0f} | {whole - first[-1]:+.0f} ({whole / first[-1]:.2f}x) | {rate:,.0f} "
                f"| {found.silent / sum(tally.ok_count for tally in found.tallies):.1%} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["router"]:
        door = "benchmarks.router_share:router_door"
        serve("router", Settings, router_app.build, lambda its: launch("router", its, door, hot=router_app.HOT))
    else:
        main()
