"""Where the time of one request goes at the router's door: CPU microseconds by thread, and Python's share by layer.

    python -m benchmarks.door_profile --title "after x"    appends a table to benchmarks/results/door_profile.md

Everything under test runs on core 0, the load on core 1, closed loop, distinct rows, every answer checked for success.
CPU time is the scheduler's (/proc/*/schedstat). The layers are shares of py-spy's samples of the thread that holds the
interpreter's lock (none where py-spy is missing). On one core they flatter nobody: a thread that is interrupted while it
writes to another still holds the lock, so places that wake somebody look larger than they are. `benchmarks.door_alone`
has the router's own Python without that.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.door_stand import ROOT, Stand, infer_bodies, open_stand, predict_bodies
from benchmarks.h2_load import Load, Tally

UNDER_TEST, LOAD_ON = 0, 1
PYTHON = "the thread that runs Python"
ROWS = 1_000
IN_FLIGHT = {1: 1, 16: 2, 64: 4}
SHAPES = {
    "infer": ("/inference.GRPCInferenceService/ModelInfer", infer_bodies),
    "predict": ("/interlock.router.v1.RouterService/Predict", predict_bodies),
}
# The first that matches a frame, from the innermost frame outwards, names the layer.
LAYERS = {
    "hop to inference": r"adapters/inference_client|interlock/inference",
    "door": r"common/(door_|grpc_wire|http_rules)",
    "chain, metrics, tracing": r"common/(chain|call|metrics|tracing|rest_twin|errors|logs)|prometheus_client|opentelemetry",
    "convert": r"router/convert|common/(json_body|names|text_check)",
    "domain": r"router/domain|router/servicer",
    "events to the monitor": r"adapters/monitor_client",
    "prediction metrics": r"router/adapters/metrics",
    "grpc.aio": r"grpc/",
    "asyncio": r"asyncio/|contextlib|uvloop",
}


@dataclass
class Cell:
    """One shape at one load: CPU microseconds a request."""

    shape: str
    in_flight: int
    per_second: float
    threads_us: dict[str, float]
    inference_us: float
    switches: float
    layers: Counter[str] = field(default_factory=Counter)

    @property
    def door_us(self) -> float:
        return sum(self.threads_us.values())


def main() -> None:
    """Measure every shape at every load and write the table."""
    arguments = _arguments()
    psutil.Process().cpu_affinity([LOAD_ON])
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    cells = []
    try:
        with open_stand(folder, arguments.door, UNDER_TEST) as stand:
            for shape in arguments.shapes:
                for in_flight in arguments.in_flight:
                    cells.append(_cell(stand, shape, in_flight, arguments.seconds, py_spy=arguments.py_spy))
                    print(_show(cells[-1]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.title:
        _append(arguments, cells)


def _cell(stand: Stand, shape: str, in_flight: int, seconds: float, *, py_spy: bool) -> Cell:
    path, bodies_of = SHAPES[shape]
    bodies = bodies_of(ROWS)
    _run(stand, path, bodies, in_flight, 1.0)
    pid = stand.serving_pid()
    inference = [stand.inference.pid, *(c.pid for c in psutil.Process(stand.inference.pid).children(recursive=True))]
    before, inference_before = _threads_ns(pid), sum(sum(_threads_ns(p).values()) for p in inference)
    switches_before = sum(map(_switches, (pid, *inference)))
    tally = _run(stand, path, bodies, in_flight, seconds)
    after, inference_after = _threads_ns(pid), sum(sum(_threads_ns(p).values()) for p in inference)
    spent = Counter[str]()
    busiest = sorted(after, key=lambda thread: before.get(thread, 0) - after[thread])
    # Neither of pyvoy's threads has a name: the loop does more than the one that feeds it.
    others = iter((PYTHON, "pyvoy's feeding thread"))
    for thread in busiest:
        name = _thread_name(pid, thread)
        if name.startswith("wrk"):
            known = "Envoy's worker"
        elif name.startswith(("event_engine", "grpc")):
            known = "grpc's threads"
        else:
            known = next(others, "other threads")
        spent[known] += after[thread] - before.get(thread, 0)
    count = tally.ok_count
    cell = Cell(
        shape=shape,
        in_flight=in_flight,
        per_second=count / tally.elapsed_s,
        threads_us={name: ns / 1e3 / count for name, ns in spent.items()},
        inference_us=(inference_after - inference_before) / 1e3 / count,
        switches=(sum(map(_switches, (pid, *inference))) - switches_before) / count,
    )
    if py_spy and shutil.which("py-spy", path=_path()):
        cell.layers = _layers(stand, path, bodies, in_flight, seconds)
    return cell


def _run(stand: Stand, path: str, bodies: Sequence[bytes], in_flight: int, seconds: float) -> Tally:
    load = Load(bodies, keep_answers=False)
    tally = load.run(
        "127.0.0.1", stand.port, path, in_flight=in_flight, connections=IN_FLIGHT[in_flight], seconds=seconds
    )
    if tally.failures:
        raise SystemExit(f"{path}: {tally.failures}")
    return tally


def _threads_ns(pid: int) -> dict[int, int]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _switches(pid: int) -> int:
    texts = (status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if "ctxt_switches" in line)


def _thread_name(pid: int, thread: int) -> str:
    return Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()


def _layers(stand: Stand, path: str, bodies: Sequence[bytes], in_flight: int, seconds: float) -> Counter[str]:
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        raw = Path(folder) / "stacks.txt"
        command = [
            "py-spy", "record", "--pid", str(stand.serving_pid()), "--duration", str(max(2, int(seconds))), "--rate", "500",
            "--format", "raw", "--gil", "--nonblocking", "--output", str(raw),
        ]  # fmt: skip
        environment = {**os.environ, "PATH": _path()}
        spy = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        while spy.poll() is None:
            _run(stand, path, bodies, in_flight, 0.5)
        return _by_layer(raw.read_text() if raw.exists() else "")


def _by_layer(stacks: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        found[next((layer for frame in reversed(frames) if (layer := _layer(frame))), "rest")] += int(count)
    return found


def _layer(frame: str) -> str:
    return next((name for name, pattern in LAYERS.items() if re.search(pattern, frame)), "")


def _path() -> str:
    return f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"


def _show(cell: Cell) -> str:
    parts = ", ".join(f"{name} {us:.0f}" for name, us in _parts(cell).items())
    return (
        f"{cell.shape} {cell.in_flight} in flight: {cell.per_second:.0f}/s, door {cell.door_us:.0f} us ({parts}), "
        f"inference {cell.inference_us:.0f} us, {cell.switches:.1f} switches"
    )


def _parts(cell: Cell) -> dict[str, float]:
    """Gives microseconds by part: threads, and of the one that runs Python its layers where py-spy saw them."""
    parts = {name: us for name, us in cell.threads_us.items() if name != PYTHON}
    loop_us, total = cell.threads_us.get(PYTHON, 0.0), sum(cell.layers.values())
    if not total:
        return parts | {PYTHON: loop_us}
    return parts | {f"Python: {name}": loop_us * count / total for name, count in cell.layers.most_common()}


def _append(arguments: argparse.Namespace, cells: Sequence[Cell]) -> None:
    columns = [_parts(cell) for cell in cells]
    names = list(dict.fromkeys(name for column in columns for name in sorted(column, key=lambda n: -column[n])))
    heads = [f"{cell.shape}, {cell.in_flight}" for cell in cells]
    lines = [
        f"## {arguments.title}",
        "",
        f"Door {arguments.door}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC.",
        "",
    ]
    lines += [f"| us of CPU a request | {' | '.join(heads)} |", f"|---|{'---|' * len(cells)}"]
    for name in names:
        lines.append(
            f"| {name} | {' | '.join(f'{column[name]:.0f}' if name in column else '' for column in columns)} |"
        )
    lines.append(f"| **the router's process** | {' | '.join(f'**{cell.door_us:.0f}**' for cell in cells)} |")
    lines.append(f"| inference and its model | {' | '.join(f'{cell.inference_us:.0f}' for cell in cells)} |")
    lines.append(f"| switches of threads a request | {' | '.join(f'{cell.switches:.1f}' for cell in cells)} |")
    lines.append(f"| requests/s | {' | '.join(f'{cell.per_second:,.0f}' for cell in cells)} |")
    with arguments.output.open("a", encoding="utf-8") as output:
        output.write("\n".join(lines) + "\n\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--door", default="envoy", choices=["envoy", "grpcio"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 16, 64], choices=list(IN_FLIGHT))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-py-spy", dest="py_spy", action="store_false")
    parser.add_argument("--title", default="", help="append the table to the results under this heading")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "door_profile.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
