"""How fast is it? The model alone, our doors and paths, Triton, mosec and a server by hand, in one run.

    python -m benchmarks.serving --minutes 3        quick; writes benchmarks/results/serving.md
    python -m benchmarks.serving --minutes 30       for figures to quote, on a quiet machine

Everything under test on core 0, the load (C, `load.c`) on core 1. All servers run the whole time; rounds are interleaved,
their order turns, and ratios are taken within a round. Distinct rows, no cache. A cell counts only when every call was
good, the server's count of good calls equals the load's, and the sampled answers are the model's.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.serving.loading import Loader, LoadFailed
from benchmarks.serving.models import CNN, MLP, MODELS, TABULAR
from benchmarks.serving.report import FORMS, PROCESSES, ROUTER, WORKLOADS, Measured, Run, Workload, report
from benchmarks.serving.servers import OURS, PLACEMENTS, RIVALS, SEVERAL, TEST_CORE, Server, all_servers

RESULT = Path(__file__).resolve().parents[1] / "results" / "serving.md"
_WARM_UP_S = 0.25


def main() -> None:
    arguments = _arguments()
    psutil.Process().cpu_affinity([1])
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    try:
        for model in MODELS:
            model.write(folder)
        workloads = {name: WORKLOADS[name] for name in arguments.workloads}
        run = Run(
            arguments.minutes,
            arguments.rounds,
            arguments.cores,
            workloads,
            _floors(arguments.seconds),
            arguments.placement,
        )
        loader = Loader(folder, arguments.connections)
        with all_servers(folder, arguments.servers, arguments.cores, arguments.placement) as (
            servers,
            run.missing,
        ):
            for name, why in run.missing.items():
                print(f"{name}: skipped: {why}", flush=True)
            cells = len(_plan(workloads, servers, 0)) * arguments.rounds
            run.seconds = max(0.5, arguments.minutes * 60 / cells - _WARM_UP_S - 0.15)
            for round_number in range(arguments.rounds):
                for key in _plan(workloads, servers, round_number):
                    run.results[key].append(_measure(loader, servers, key, run))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = report(run)
    arguments.output.write_text(text, "utf-8")
    data = {" | ".join(map(str, key)): [one and one.__dict__ for one in found] for key, found in run.results.items()}
    arguments.output.with_suffix(".json").write_text(json.dumps({"cells": data, "floors": run.floors}, indent=1) + "\n")
    print(text)


def _plan(workloads: dict[str, Workload], servers: dict[str, Server], round_number: int) -> list[tuple[str, str, int]]:
    """All cells of a round; servers of one level stand side by side, and each round begins with another one."""
    cells = []
    for name, workload in workloads.items():
        asked = [one for one in workload.servers if _server_of(one, servers) is not None]
        first = round_number % max(1, len(asked))
        cells += [(name, one, level) for level in workload.levels for one in asked[first:] + asked[:first]]
    return cells


def _server_of(asked: str, servers: dict[str, Server]) -> Server | None:
    """A form is asked of the whole path."""
    return servers.get(ROUTER if asked in FORMS else asked)


def _measure(loader: Loader, servers: dict[str, Server], key: tuple[str, str, int], run: Run) -> Measured | None:
    name, asked, level = key
    workload = run.workloads[name]
    server, ask = _server_of(asked, servers), workload.ask(asked)
    assert server is not None
    assert ask is not None
    try:
        loader.run(server.port, ask, level, _WARM_UP_S)
        before, cpu_before = server.settled_count(), server.cpu_s()
        cell = loader.run(server.port, ask, level, run.seconds)
        cpu_s = server.cpu_s() - cpu_before
        server.compare_count(before, cell)
    except LoadFailed as error:
        run.failures[f"{name}, {asked}, {level} in flight"] = str(error)
        print(f"{name:12} {asked:28} {level:4}  FAILED: {error}", flush=True)
        return None
    found = Measured(
        cell.per_second * workload.rows, cell.percentile_ms(50), cell.percentile_ms(99), cpu_s / cell.ok_count * 1e6
    )
    print(f"{name:12} {asked:28} {level:4} {found.per_second:10,.0f}/s  p50 {found.p50_ms:8.2f}  p99 {found.p99_ms:8.2f}  cpu {found.cpu_us:7.0f} us", flush=True)  # fmt: skip
    return found


def _floors(seconds: float) -> dict[str, dict[str, float]]:
    """Rows a second of each model called in a loop on the core under test: one row at a time, and the best batch."""
    here = psutil.Process()
    before = here.cpu_affinity()
    here.cpu_affinity([TEST_CORE])
    found: dict[str, dict[str, float]] = {}
    try:
        for model in (TABULAR, MLP, CNN):
            session, speeds = model.session(), {}
            for size in (1, 16, 64, 256):
                parts = [model.rows[at : at + size] for at in range(0, model.row_count - size, size)]
                done, begun, cpu = 0, time.perf_counter(), time.process_time()
                while time.perf_counter() - begun < seconds:
                    session.run(None, {"x": parts[done % len(parts)]})
                    done += 1
                # By processor time: nobody else's work is in it.
                speeds[size] = done * size / (time.process_time() - cpu)
            best = max(speeds, key=speeds.__getitem__)
            found[model.name] = {"batch of 1": speeds[1], "best batch": speeds[best], "best size": best}
    finally:
        here.cpu_affinity(before)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="time for all measurements; starting takes more")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each size of the model alone")
    usual = [name for name in WORKLOADS if name != PROCESSES]
    parser.add_argument("--workloads", nargs="+", default=usual, choices=list(WORKLOADS))
    parser.add_argument("--servers", nargs="+", default=[*OURS, *RIVALS], choices=[*OURS, *SEVERAL, *RIVALS])
    parser.add_argument(
        "--connections", type=int, default=4, help="of the load; a process keeps those that it has taken"
    )
    parser.add_argument(
        "--placement",
        default="process",
        choices=list(PLACEMENTS),
        help="where models run that ours serve, if short enough",
    )
    parser.add_argument("--cores", default=str(TEST_CORE), help="cores under test, as taskset takes them: 0 or 0,1")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
