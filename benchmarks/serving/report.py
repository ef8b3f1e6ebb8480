"""What is measured, and the page that says how it came out."""

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.serving import asks
from benchmarks.serving.loading import Asks
from benchmarks.serving.models import CNN, MEAN_1M, MEAN_2K, MLP, NAMED_1M, NAMED_2K, TABULAR, Model
from benchmarks.serving.servers import OURS, RIVALS, SEVERAL

ROUTER, ROUTER_GRPCIO, INFERENCE, INFERENCE_GRPCIO = OURS
TRITON, MOSEC, BY_HAND = RIVALS
OIP_SERVERS = (TRITON, INFERENCE, INFERENCE_GRPCIO, ROUTER, ROUTER_GRPCIO, BY_HAND)
_FLOOR = "the model alone"
PROCESSES = "processes"


@dataclass(frozen=True)
class Workload:
    """One table: a way to ask, who is asked, how many calls are in flight. `base` is what ratios are to."""

    title: str
    levels: Sequence[int]
    ask: Callable[[str], Asks | None]
    servers: Sequence[str]
    base: str = TRITON
    model: Model | None = None
    rows: int = 1


def _oip(model: Model, rows: int = 1) -> Callable[[str], Asks | None]:
    def ask(server: str) -> Asks | None:
        if server == MOSEC:
            return asks.mosec(model) if rows == 1 else None
        return asks.oip_grpc(model, rows)

    return ask


FORMS: dict[str, Callable[[Model], Asks]] = {
    "gRPC Predict": asks.predict_grpc,
    "REST /v1/predict": asks.predict_json,
    "gRPC OIP": asks.oip_grpc,
    "REST /v2 JSON": asks.oip_json,
    "REST /v2 binary": asks.oip_binary,
}
_TENSOR_FORMS = ("gRPC OIP", "REST /v2 JSON", "REST /v2 binary")


def _form(model: Model) -> Callable[[str], Asks | None]:
    return lambda form: FORMS[form](model)


_LEVELS = (1, 16, 64, 256)
WORKLOADS = {
    "tabular": Workload("Tabular: 100 trees, 30 floats", _LEVELS, _oip(TABULAR), (*OIP_SERVERS, MOSEC), model=TABULAR),
    "mlp": Workload("MLP 256-1024-1024-10", _LEVELS, _oip(MLP), (*OIP_SERVERS, MOSEC), model=MLP),
    "cnn": Workload("CNN on [3, 64, 64]", _LEVELS, _oip(CNN), (*OIP_SERVERS, MOSEC), model=CNN),
    "tabular-64": Workload("Tabular, 64 rows a request", (4,), _oip(TABULAR, 64), OIP_SERVERS, model=TABULAR, rows=64),
    "mlp-64": Workload("MLP, 64 rows a request", (4,), _oip(MLP, 64), OIP_SERVERS, model=MLP, rows=64),
    "forms": Workload("Forms, whole path, tabular", (1, 64), _form(TABULAR), tuple(FORMS), base="gRPC Predict"),
    "2 KB": Workload("Bodies of 2 KB, as JSON 10 KB, whole path", (16,), _form(MEAN_2K), _TENSOR_FORMS, base="gRPC OIP"),
    "1 MB": Workload("Bodies of 1 MB, as JSON 5 MB, whole path", (4,), _form(MEAN_1M), _TENSOR_FORMS, base="gRPC OIP"),
    "features, 2 KB": Workload(
        "64 features, with their names 2 KB, whole path", (16,), _form(NAMED_2K), tuple(FORMS), base="gRPC Predict",
    ),
    "features, 1 MB": Workload(
        "10,000 features, with their names 1 MB, whole path", (4,), _form(NAMED_1M), tuple(FORMS), base="gRPC Predict",
    ),
    PROCESSES: Workload(
        "One and two processes on a port, tabular", (16, 64, 256), _oip(TABULAR),
        (ROUTER, SEVERAL[0], INFERENCE, SEVERAL[1], TRITON, MOSEC, BY_HAND), base=ROUTER, model=TABULAR,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A cell of one round: the load's figures and the processor time of the processes under test."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


# Of a workload, a server and a level: one Measured for each round, None where the cell failed.
Results = dict[tuple[str, str, int], list[Measured | None]]


@dataclass
class Run:
    """All that a run found; `failures` and `missing` say why a cell or a server has no figures."""

    minutes: float
    rounds: int
    cores: str
    workloads: dict[str, Workload]
    floors: dict[str, dict[str, float]]
    placement: str
    seconds: float = 0.0
    results: Results = field(default_factory=lambda: defaultdict(list))
    missing: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def report(run: Run) -> str:
    """Return the whole page."""
    setting = (
        f"`python -m benchmarks.serving --minutes {run.minutes:g}`, {time.strftime('%Y-%m-%d', time.gmtime())}, "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {run.rounds} rounds of {run.seconds:.1f} s a cell, "
        f"everything under test on core {run.cores}, the load on core 1, our models' "
        f"placement {run.placement}, load average {os.getloadavg()[1]:.1f} at the end. "
        "A cell: rows/s (ratio), p50/p99 ms, processor time of the server's processes in us a request (ratio of what one core "
        "can do by that). Ratios are medians over rounds. Sampled answers are the model's, counts equal on both sides."
    )
    lines = [
        "# Serving: how fast, next to others",
        "",
        setting,
        "",
    ]
    for name, workload in run.workloads.items():
        lines += _table(name, workload, run.results, run.floors)
    lines += _aims(run.results, run.floors)
    lines += [f"- {name}: skipped, {why}" for name, why in run.missing.items()]
    lines += [f"- failed: {name}: {why}" for name, why in run.failures.items()]
    return "\n".join(lines) + "\n"


def _table(name: str, workload: Workload, results: Results, floors: dict[str, dict[str, float]]) -> list[str]:
    heads = "".join(f" {level} in flight |" for level in workload.levels)
    lines = [
        f"## {workload.title}",
        "",
        f"| ratios to {workload.base} |{heads}",
        "|---|" + "---|" * len(workload.levels),
    ]
    for asked in workload.servers:
        cells = [_cell(results, name, workload, asked, level) for level in workload.levels]
        if any(cells):
            lines.append(f"| {asked} | " + " | ".join(cells) + " |")
    if workload.model is not None and workload.model.name in floors:
        floor = floors[workload.model.name]
        text = f"batch of 1: {floor['batch of 1']:,.0f} rows/s; {floor['best size']:.0f}: {floor['best batch']:,.0f} rows/s"
        lines.append(f"| {_FLOOR} | {text} |" + " |" * (len(workload.levels) - 1))
    return [*lines, ""]


def _cell(results: Results, name: str, workload: Workload, asked: str, level: int) -> str:
    found = [one for one in results.get((name, asked, level), []) if one is not None]
    if not found:
        return ""
    rate, p50, p99, cpu = (
        statistics.median(getattr(one, field) for one in found)
        for field in ("per_second", "p50_ms", "p99_ms", "cpu_us")
    )
    ratio, by_cpu = (_ratio(results, name, asked, workload.base, level, cpu=how) for how in (False, True))
    shown = ["" if one is None else f" x{one:.2f}" for one in (ratio, by_cpu)]
    return f"{rate:,.0f}{shown[0]}, {p50:.2f}/{p99:.2f}, {cpu:.0f} us{shown[1]}"


def _ratio(results: Results, name: str, asked: str, base: str, level: int, *, cpu: bool = False) -> float | None:
    """Median over rounds of what one does to what the other does in the same round."""
    pairs = zip(results.get((name, asked, level), []), results.get((name, base, level), []), strict=False)
    found = [
        (other.cpu_us / one.cpu_us if cpu else one.per_second / other.per_second)
        for one, other in pairs
        if one is not None and other is not None and one.cpu_us and other.cpu_us
    ]
    return statistics.median(found) if found else None


# What is aimed at: workload, who, to whom, and the ratio by calls in flight.
AIMS: Sequence[tuple[str, str, str, dict[int, float]]] = (
    ("tabular", ROUTER, TRITON, {1: 0.6, 16: 0.7, 64: 1.2, 256: 1.3}),
    ("mlp", ROUTER, TRITON, {64: 1.1}),
    ("cnn", ROUTER, TRITON, {64: 1.0}),
    ("tabular", INFERENCE, TRITON, {1: 0.9, 16: 0.95, 64: 1.4, 256: 1.5}),
    ("mlp", INFERENCE, TRITON, {64: 1.25}),
    ("cnn", INFERENCE, TRITON, {64: 1.0}),
    ("tabular", ROUTER_GRPCIO, BY_HAND, {64: 0.6}),
    ("tabular-64", ROUTER_GRPCIO, BY_HAND, {4: 0.9}),
    ("forms", "REST /v1/predict", "gRPC Predict", {64: 0.8}),
    ("tabular-64", INFERENCE, TRITON, {4: 1.5}),
)


def _aims(results: Results, floors: dict[str, dict[str, float]]) -> list[str]:
    lines = ["## Aims", "", "| what | in flight | aim | now | by processor time |", "|---|---|---|---|---|"]
    for name, asked, base, levels in AIMS:
        for level, aim in levels.items():
            now, by_cpu = (_ratio(results, name, asked, base, level, cpu=how) for how in (False, True))
            if now is not None and by_cpu is not None:
                lines.append(f"| {name}: {asked} to {base} | {level} | {aim:g} | {now:.2f} | {by_cpu:.2f} |")
    for name, model, aim, level in (("cnn", "cnn", 0.95, 64), ("mlp-64", "mlp", 0.8, 4)):
        found = [one for one in results.get((name, INFERENCE, level), []) if one is not None]
        if found:
            share = statistics.median(one.per_second for one in found) / floors[model]["best batch"]
            rows = WORKLOADS[name].rows
            by_cpu = rows * 1e6 / statistics.median(one.cpu_us for one in found) / floors[model]["best batch"]
            lines.append(f"| {name}: {INFERENCE} to {_FLOOR} | {level} | {aim:g} | {share:.2f} | {by_cpu:.2f} |")
    found = [one for one in results.get(("tabular", ROUTER, 64), []) if one is not None]
    if found:
        lines.append(f"| tabular: {ROUTER}, p99 in ms | 64 | 10 | {np.median([one.p99_ms for one in found]):.1f} | |")
    return [*lines, ""]
