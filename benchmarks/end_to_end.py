"""The first figure: Predict through the whole path, both doors, next to the same model called directly.

    python -m benchmarks.end_to_end            writes benchmarks/results/end_to_end.md

Everything under test (edge, router, inference, model worker, registry, monitor, features, Redis) runs on core 0, the load
on core 1, closed loop, 2,000 distinct rows, prediction cache absent. Before the load every row's answer is compared with
the model called directly; after it the servers' count of good answers must equal the client's. Read the ratios: the
absolute figures are this machine's. The tables of processor time, by process, also hold on a busy machine.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
from interlock.router.v1 import router_service_pb2 as router_pb
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.h2_load import Load, Tally
from benchmarks.processor_time import ProcessorTime
from interlock_cli.demo.cache import TrainedVersion, cached_version
from interlock_cli.demo.data import CATEGORICAL, LATER, RECIPES, load_flights
from interlock_cli.demo.direct import model_inputs
from interlock_cli.demo.publish import MODEL
from interlock_cli.demo.traffic import request_bodies
from interlock_sdk.onnx_export import PROBABILITIES_OUTPUT

ROOT = Path(__file__).resolve().parent.parent
PREDICT = "interlock.router.v1.RouterService/Predict"
ROW_COUNT = 2_000
IN_FLIGHT = {1: 1, 16: 2, 64: 4}
"""Calls in flight, and over how many connections."""
PORT_OFFSET = 20_000
UNDER_TEST, LOAD = 0, 1
READY_TIMEOUT_S = 240.0
TOLERANCE = 1e-5


def main() -> None:
    arguments = _arguments()
    psutil.Process().cpu_affinity([LOAD])
    state = Path(tempfile.mkdtemp(prefix="il-"))
    cells: list[dict[str, Any]] = []
    try:
        for door in arguments.doors:
            with stack(state, door) as suite:
                trained = prepare(state)
                bodies, rows = requests()
                check_answers(bodies, rows, trained)
                for round_number in range(arguments.rounds):
                    for in_flight, connections in IN_FLIGHT.items():
                        tally, cpu_us, switches = measure(suite, bodies, in_flight, connections, arguments.seconds)
                        cells.append(
                            cell(door, in_flight, round_number, tally) | {"cpu_us": cpu_us, "switches": switches}
                        )
                        print(cells[-1], flush=True)
        direct = direct_calls(trained.artifact_path, rows, arguments.seconds)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    write(cells, direct, arguments)


@contextmanager
def stack(state: Path, door: str, **variables: str) -> Iterator[int]:
    """Runs the whole suite on core 0; gives the id of the process that all others come from.

    `variables` are added to its environment; PYTHONPATH goes before the repository's.
    """
    paths = (variables.pop("PYTHONPATH", ""), str(ROOT), str(ROOT / "gen"))
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(state),
        "INTERLOCK_PORT_OFFSET": str(PORT_OFFSET),
        "INTERLOCK_DOOR": door,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **variables,
    }
    command = ["taskset", "-c", str(UNDER_TEST), sys.executable, "-m", "interlock_cli", "up"]
    with (state / "up.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
    try:
        run_demo(environment, process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def run_demo(environment: dict[str, str], stack_process: subprocess.Popen[bytes]) -> None:
    """Trains, registers and deploys once the edge is up; a later door finds all of it in the state folder."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not edge_ready():
        if stack_process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the stack did not come up")
        time.sleep(0.2)
    demo = [sys.executable, "-m", "interlock_cli", "demo", "--flights", "200"]
    subprocess.run(demo, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def edge_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{8080 + PORT_OFFSET}/health/ready", timeout=1):
            return True
    except OSError:
        return False


def prepare(state: Path) -> TrainedVersion:
    """Gives version 1, which is what is measured: it fetches no features."""
    found = cached_version(RECIPES[0], state / "demo")
    if found is None:
        raise SystemExit("the demo has trained nothing")
    return found


def requests() -> tuple[list[bytes], "object"]:
    """Gives the request messages of distinct later flights, and the same rows as a data frame."""
    later = load_flights().within(LATER)
    flights = later.take(np.flatnonzero(~later.features.duplicated())[:ROW_COUNT])
    bodies = []
    for asked in request_bodies(flights, MODEL, timedelta()):
        user_id = asked["user_id"]
        message = router_pb.PredictRequest(model=MODEL, version="1", user_id=user_id, include_probabilities=True)
        put_features(message, asked["features"])
        bodies.append(message.SerializeToString())
    if len(set(bodies)) != ROW_COUNT:
        raise SystemExit(f"{len(set(bodies))} distinct rows, {ROW_COUNT} wanted")
    return bodies, flights.features


def put_features(message: router_pb.PredictRequest, features: Mapping[str, Any]) -> None:
    """Puts a flight's features into a request."""
    for name, value in features.items():
        if name in CATEGORICAL:
            message.features[name].string_value = value
        else:
            message.features[name].int64_value = value


def check_answers(bodies: list[bytes], rows: "object", trained: TrainedVersion) -> None:
    """Compares every row's answer with the version called directly."""
    tally = run_load(bodies, 64, 4, None, keep_answers=True)
    if tally.failures or len(tally.answers) != len(bodies):
        raise SystemExit(f"{len(tally.answers)} answers to {len(bodies)} rows, failures: {tally.failures}")
    (wanted,) = session(trained.artifact_path).run([PROBABILITIES_OUTPUT], model_inputs(RECIPES[0], rows))
    for index, answer in tally.answers.items():
        said = router_pb.PredictResponse.FromString(answer).prediction
        want = wanted[index]
        if not np.allclose(said.probabilities, want, atol=TOLERANCE):
            raise SystemExit(f"row {index}: got {list(said.probabilities)}, the model says {want}")


def measure(
    suite: int, bodies: list[bytes], in_flight: int, connections: int, seconds: float
) -> tuple[Tally, dict[str, float], dict[str, float]]:
    """Gives what the load saw, and by process microseconds of processor time and switches a request."""
    run_load(bodies, in_flight, connections, 1.0)
    before, spent_before = server_ok_count(), ProcessorTime([suite])
    tally = run_load(bodies, in_flight, connections, seconds)
    spent = ProcessorTime([suite])
    counted = server_ok_count() - before
    if tally.failures or counted != tally.ok_count:
        raise SystemExit(f"client: {tally.ok_count} good, {tally.failures}; server: {counted} good")
    return tally, *spent.since(spent_before, tally.ok_count)


def run_load(
    bodies: list[bytes], in_flight: int, connections: int, seconds: float | None, *, keep_answers: bool = False
) -> Tally:
    load = Load(bodies, keep_answers=keep_answers)
    port = 8080 + PORT_OFFSET
    return load.run("127.0.0.1", port, f"/{PREDICT}", in_flight=in_flight, connections=connections, seconds=seconds)


def server_ok_count() -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{9101 + PORT_OFFSET}/metrics", timeout=5) as response:
        text = response.read().decode()
    wanted = {"method": PREDICT, "code": "OK"}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "interlock_router_requests_total" and sample.labels == wanted:
                return int(sample.value)
    return 0


def session(artifact: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])


def direct_calls(artifact: Path, rows: "object", seconds: float) -> dict[int, float]:
    """Gives rows per second of the model alone on core 0, by batch size."""
    psutil.Process().cpu_affinity([UNDER_TEST])
    model, inputs = session(artifact), model_inputs(RECIPES[0], rows)
    figures = {}
    for size in (1, 64):
        batches = [{name: value[at : at + size] for name, value in inputs.items()} for at in range(0, 1_920, size)]
        done, begun = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begun) < seconds:
            model.run(None, batches[done % len(batches)])
            done += 1
        figures[size] = done * size / elapsed
    return figures


def cell(door: str, in_flight: int, round_number: int, tally: Tally) -> dict[str, Any]:
    return {
        "door": door,
        "in_flight": in_flight,
        "round": round_number,
        "per_second": round(tally.ok_count / tally.elapsed_s),
        "p50_ms": round(tally.percentile_ms(50), 2),
        "p99_ms": round(tally.percentile_ms(99), 2),
        "ok_count": tally.ok_count,
    }


def write(cells: list[dict[str, Any]], direct: dict[int, float], arguments: argparse.Namespace) -> None:
    setting = (
        f"`python -m benchmarks.end_to_end`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}; median of {arguments.rounds} rounds of "
        f"{arguments.seconds:g} s. gRPC `RouterService/Predict`, flight-delay model (60 small trees, texts encoded in the "
        f"graph), one row a request, {ROW_COUNT:,} distinct rows, everything under test on core 0, the load on core 1. "
        "Answers compared with the model, counts equal on both sides."
    )
    head = "| path | in flight | predictions/s | p50 ms | p99 ms | of the model alone |"
    lines = ["# Predict through the whole path", "", setting, "", head, "|---|---|---|---|---|---|"]
    for door in arguments.doors:
        for in_flight in IN_FLIGHT:
            found = [c for c in cells if c["door"] == door and c["in_flight"] == in_flight]
            speed, p50, p99 = (float(np.median([c[key] for c in found])) for key in ("per_second", "p50_ms", "p99_ms"))
            lines.append(
                f"| door {door} | {in_flight} | {speed:,.0f} | {p50:.2f} | {p99:.2f} | {speed / direct[1]:.1%} |"
            )
    for size, speed in direct.items():
        lines.append(
            f"| model called directly | batch of {size} | {speed:,.0f} | {1000 * size / speed:.2f} | | {speed / direct[1]:.1%} |"
        )
    for door in arguments.doors:
        lines += ["", *spent_table([c for c in cells if c["door"] == door], f"Door {door}")]
    text = "\n".join(lines) + "\n"
    arguments.output.write_text(text, encoding="utf-8")
    arguments.output.with_suffix(".json").write_text(json.dumps({"cells": cells, "direct": direct}, indent=1) + "\n")
    print(text)


def spent_table(cells: list[dict[str, Any]], title: str) -> list[str]:
    """Gives the table of processor time by process; what does not follow the requests gets smaller with their rate."""
    head = " | ".join(f"{in_flight} in flight" for in_flight in IN_FLIGHT)
    lines = [
        f"## {title}: microseconds of processor time a request, and switches of threads",
        "",
        f"| what | {head} |",
        f"|---|{'---|' * len(IN_FLIGHT)}",
    ]
    roles = sorted({role for c in cells for role in c["cpu_us"]}, key=lambda role: -cells[-1]["cpu_us"].get(role, 0.0))
    for role in [*roles, "all"]:
        row = []
        for in_flight in IN_FLIGHT:
            found = [c for c in cells if c["in_flight"] == in_flight]
            us, switches = (
                float(np.median([sum(c[key].values()) if role == "all" else c[key].get(role, 0.0) for c in found]))
                for key in ("cpu_us", "switches")
            )
            row.append(f"{us:.0f} ({switches:.2f})")
        lines.append(f"| {role} | {' | '.join(row)} |")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--doors", nargs="+", default=["envoy", "grpcio"], choices=["envoy", "grpcio"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "end_to_end.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
