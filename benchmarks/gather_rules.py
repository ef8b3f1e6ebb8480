"""Which rule should say when requests leave together? The share rule next to others, closed and open loop, one and two cores.

    python -m benchmarks.gather_rules            8 minutes; writes benchmarks/results/gather_rules.md

The product has one rule, the share rule: leave when half of the calls in flight wait here, after 2 ms at the latest. The
others stand in `other_rules.py`, and a running service changes between them: leave when idle (nothing waits while nothing is
on its way or at the model), windows of 1, 5 and 10 ms, and no batches at all. Inference alone changes its batcher. On the
whole path, router + inference, "idle" and "off" change both the router's gatherer and the batcher; a window stands in the
router alone, since two of them would wait twice, and what comes joined from there leaves by the share rule.

Tabular model, one row a request, behind the doors in Envoy; load and checks are those of `benchmarks.serving`: sampled
answers are the model's, the server's count of good calls is the load's. Closed loop at 1, 16 and 64 in flight; open loop
(Poisson) at 30, 60 and 90 % of what the share rule reached with 64 in flight in the first round. Everything under test on
core 0 and the load on core 1; then everything under test on both cores, which it shares with the load.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.other_rules import FILE, INFERENCE, ROUTER, WINDOWS_S, Rule, open_rules
from benchmarks.serving.asks import oip_grpc
from benchmarks.serving.loading import Loader, LoadFailed
from benchmarks.serving.models import TABULAR
from benchmarks.serving.report import Measured as Figures
from benchmarks.serving.servers import CannotStart, Server, all_servers

RESULT = Path(__file__).resolve().parent / "results" / "gather_rules.md"
ALONE, WHOLE = "inference, envoy", "router + inference, envoy"
CORES = ("0", "0,1")
NAMES = {
    Rule.SHARE: "share (ours)",
    Rule.IDLE: "leave when idle",
    Rule.WINDOW_1_MS: "window 1 ms",
    Rule.WINDOW_5_MS: "window 5 ms",
    Rule.WINDOW_10_MS: "window 10 ms",
    Rule.OFF: "no batching",
}
ENTRIES = {name: ["benchmarks.other_rules", name] for name in ("router", "inference")}
CAPACITY_IN_FLIGHT = 64
# More are out only where a rule does not keep up; the rest then waits in the load.
_OPEN_IN_FLIGHT = 640
_CONNECTIONS = 8
_WARM_UP_S = 0.15
# Starting and ending the load's process, and looking at counters.
_AROUND_S = 0.45


@dataclass(frozen=True)
class Load:
    """Calls always in flight, or a share of the capacity that comes as it comes."""

    in_flight: int = 0
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.in_flight} in flight" if self.in_flight else f"open, {self.share:.0%}"


# The capacity first: the open loop is told by it.
LOADS = (Load(64), Load(16), Load(1), Load(share=0.3), Load(share=0.6), Load(share=0.9))


@dataclass(frozen=True)
class Measured(Figures):
    """A cell of one round."""

    rows: float
    """Mean rows of a batch at the model."""
    joined: float
    """Mean requests of a message from router to inference; 0 where there is no router."""


@dataclass(frozen=True)
class Key:
    """A cell."""

    cores: str
    server: str
    load: Load
    rule: Rule


Results = dict[Key, list[Measured]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.0, help="for all cells together; starting takes more")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cores", nargs="+", default=CORES, choices=CORES)
    parser.add_argument("--servers", nargs="+", default=(ALONE, WHOLE), choices=(ALONE, WHOLE))
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    psutil.Process().cpu_affinity([1])
    load_before = os.getloadavg()[0]
    cells = len(arguments.cores) * len(arguments.servers) * len(LOADS) * len(NAMES) * arguments.rounds
    seconds = max(0.3, arguments.minutes * 60 / cells - _WARM_UP_S - _AROUND_S)
    results: Results = defaultdict(list)
    failures: list[str] = []
    for cores in arguments.cores:
        folder = Path(tempfile.mkdtemp(prefix="il-"))
        try:
            for key, found in _measure_all(folder, cores, arguments.servers, arguments.rounds, seconds):
                if isinstance(found, Measured):
                    results[key].append(found)
                else:
                    failures.append(f"{key.server}, cores {cores}, {key.load}, {NAMES[key.rule]}: {found}")
                print(cores, key.server, key.load, NAMES[key.rule], found, flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    arguments.output.write_text(report(results, failures, arguments, seconds, load_before), "utf-8")


def _measure_all(
    folder: Path, cores: str, wanted: Sequence[str], rounds: int, seconds: float
) -> Iterator[tuple[Key, Measured | str]]:
    """Give each cell of each round, or why it has no figures; the order of the rules turns with the rounds."""
    TABULAR.write(folder)
    path = folder / "rules"
    path.write_bytes(bytes(2))
    rules, loader, order = open_rules(str(path)), Loader(folder, _CONNECTIONS), list(NAMES)
    os.environ[FILE] = str(path)
    capacity: dict[str, float] = {}
    with all_servers(folder, wanted, cores, models=(TABULAR,), entries=ENTRIES) as (servers, _):
        if missing := set(wanted) - servers.keys():
            raise CannotStart(f"{', '.join(missing)}: not started")
        for turn in range(rounds):
            for name in wanted:
                for load in LOADS:
                    for rule in order[turn % len(order) :] + order[: turn % len(order)]:
                        key = Key(cores, name, load, rule)
                        _choose(rules, name, rule)
                        rate = load.share * capacity.get(name, 0.0)
                        try:
                            found = _measure(loader, servers[name], load, rate, seconds)
                        except LoadFailed as error:
                            yield key, str(error)
                            continue
                        if load.in_flight == CAPACITY_IN_FLIGHT and rule is Rule.SHARE:
                            capacity.setdefault(name, found.per_second)
                        yield key, found


def _choose(rules: "memoryview | bytearray", server: str, rule: Rule) -> None:
    rules[ROUTER] = rule
    rules[INFERENCE] = Rule.SHARE if server == WHOLE and rule in WINDOWS_S else rule


def _measure(loader: Loader, server: Server, load: Load, rate: float, seconds: float) -> Measured:
    in_flight = load.in_flight or _OPEN_IN_FLIGHT
    asks = oip_grpc(TABULAR)
    loader.run(server.port, asks, in_flight, _WARM_UP_S, rate)
    counted, cpu_s, joined = server.settled_count(), server.cpu_s(), _histograms(server)
    cell = loader.run(server.port, asks, in_flight, seconds, rate)
    cpu_s = server.cpu_s() - cpu_s
    server.compare_count(counted, cell)
    means = [
        (total - total_before) / max(1.0, count - count_before)
        for (total, count), (total_before, count_before) in zip(_histograms(server), joined, strict=True)
    ]
    return Measured(
        cell.per_second, cell.percentile_ms(50), cell.percentile_ms(99), cpu_s / cell.ok_count * 1e6, means[0], means[1]
    )


def _histograms(server: Server) -> list[tuple[float, float]]:
    """Return sum and count so far of: rows of a batch, requests of a message."""
    names = ("interlock_inference_batch_rows", "interlock_router_coalesced_requests")
    found: dict[str, float] = defaultdict(float)
    for url in server.metrics:
        with urllib.request.urlopen(url, timeout=10) as response:
            for family in text_string_to_metric_families(response.read().decode()):
                for sample in family.samples if family.name in names else ():
                    found[sample.name] += sample.value
    return [(found[f"{name}_sum"], found[f"{name}_count"]) for name in names]


def report(
    results: Results, failures: Sequence[str], arguments: argparse.Namespace, seconds: float, load_before: float
) -> str:
    """Return the whole page."""
    about = (__doc__ or "").partition("gather_rules.md\n\n")[2].strip()
    lines = [
        "# The share rule next to others",
        "",
        (
            f"`python -m benchmarks.gather_rules`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}, load average {load_before:.1f} before it began; "
            f"{arguments.rounds} interleaved rounds of {seconds:.1f} s a cell, medians."
        ),
        "",
        about,
        "",
        (
            "Closed loop: requests/s (ratio to the share rule's in the same round), p50/p99 in ms, processor time of "
            "everything under test in us a request (ratio), mean rows of a batch and, on the whole path, mean requests of a "
            "message. Open loop: p50/p99 in ms (ratios), then the same; where a rule did not keep up it says what it reached."
        ),
    ]
    for cores in arguments.cores:
        place = "one core" if cores == "0" else "two cores, shared with the load"
        for server in arguments.servers:
            for title, loads in (("closed loop", (LOADS[2], LOADS[1], LOADS[0])), ("open loop", LOADS[3:])):
                heads = "".join(f" {_head(results, cores, server, load)} |" for load in loads)
                lines += ["", f"## {server}: {place}, {title}", "", f"| |{heads}", "|---|" + "---|" * len(loads)]
                for rule, name in NAMES.items():
                    cells = [_cell(results, Key(cores, server, load, rule)) for load in loads]
                    lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"- failed: {each}" for each in failures)] if failures else []
    return "\n".join(lines) + "\n"


def _head(results: Results, cores: str, server: str, load: Load) -> str:
    if load.in_flight:
        return str(load)
    found = results.get(Key(cores, server, Load(CAPACITY_IN_FLIGHT), Rule.SHARE))
    return f"{load} ({load.share * found[0].per_second:,.0f}/s)" if found else str(load)


def _cell(results: Results, key: Key) -> str:
    found = results.get(key)
    if not found:
        return ""

    def ratio(field: str) -> str:
        base = results.get(Key(key.cores, key.server, key.load, Rule.SHARE), [])
        both = [getattr(one, field) / getattr(other, field) for one, other in zip(found, base, strict=False)]
        return f" (x{statistics.median(both):.2f})" if both and key.rule is not Rule.SHARE else ""

    rate, p50, p99, cpu, rows, joined = (
        statistics.median(getattr(one, field) for one in found) for field in Measured.__dataclass_fields__
    )
    sizes = f"{rows:.1f}" + (f" and {joined:.1f}" if joined else "")
    shared = f"{cpu:.0f} us{ratio('cpu_us')}, {sizes}"
    if key.load.in_flight:
        return f"{rate:,.0f}{ratio('per_second')}, {p50:.2f}/{p99:.2f}, {shared}"
    capacity = results[Key(key.cores, key.server, Load(CAPACITY_IN_FLIGHT), Rule.SHARE)][0].per_second
    late = "" if rate > 0.93 * key.load.share * capacity else f", only {rate:,.0f}/s"
    return f"{p50:.2f}{ratio('p50_ms')}/{p99:.2f}{ratio('p99_ms')}{late}, {shared}"


if __name__ == "__main__":
    main()
