"""MLPerf LoadGen's Server scenario, unmodified, at half of what the machine can do: VALID, with the 99th percentile below 50 ms?

    python -m benchmarks.loadgen            60 s at router + inference, 60 s at inference; benchmarks/results/loadgen.md

Needs the foreign clients (`make clients`). Both in Envoy, everything under test on core 0, the load on core 1. The capacity
is what `load.c` gets with 64 calls in flight just before; LoadGen sends by its own Poisson schedule through Triton's gRPC
client. The model is a CNN on [3, 64, 64]: half of what we can do with a small one (`--models tabular`) is more than Triton's
client, in Python, can send from one core; its share of the core stands in the table.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.serving import asks
from benchmarks.serving.loading import LOAD_CORE, Loader
from benchmarks.serving.models import CNN, MLP, TABULAR, Model
from benchmarks.serving.servers import OURS, Server, all_servers
from tests.clients.install import PYTHON

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "tests" / "clients" / "loadgen_client.py"
ROWS = 1_000
IN_FLIGHT = 64
MODELS = {model.name: model for model in (CNN, MLP, TABULAR)}


def main() -> None:
    arguments = _arguments()
    if not PYTHON.exists():
        sys.exit("the foreign clients are not installed: run `make clients`")
    psutil.Process().cpu_affinity([LOAD_CORE])
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    models = [MODELS[name] for name in arguments.models]
    found = []
    try:
        for model in models:
            model.write(folder)
            np.save(folder / model.name, model.rows[:ROWS])
        loader = Loader(folder)
        with all_servers(folder, arguments.servers, "0", models=models) as (servers, _):
            for model, (name, server) in itertools.product(models, servers.items()):
                ask = asks.oip_grpc(model)
                loader.run(server.port, ask, IN_FLIGHT, 1.0)
                capacity = loader.run(server.port, ask, IN_FLIGHT, 5.0).per_second
                said = _loadgen(server, model, folder, capacity * arguments.share, arguments)
                found.append((name, model, capacity, said))
                print(name, model.name, f"{capacity:,.0f}/s", said["summary"], sep="\n", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    arguments.output.write_text(_report(arguments, found), "utf-8")
    sys.exit(0 if all(said["verdict"] == "VALID" and not said["failure_count"] for *_, said in found) else 1)


def _loadgen(server: Server, model: Model, folder: Path, qps: float, arguments: argparse.Namespace) -> dict:
    file = str(folder / f"{model.name}.npy")
    job = {
        "grpc": f"127.0.0.1:{server.port}",
        "model": model.name,
        "version": "",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [ROWS, *model.row_shape], "file": file}],
        "qps": qps,
        "seconds": arguments.seconds,
        "latency_ms": arguments.latency_ms,
        "queries": 1,
    }
    command = ["taskset", "-c", str(LOAD_CORE), str(PYTHON), str(CLIENT)]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, timeout=arguments.seconds * 3 + 120, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def _report(arguments: argparse.Namespace, found: list[tuple[str, Model, float, dict]]) -> str:
    setting = (
        f"`python -m benchmarks.loadgen --models {' '.join(arguments.models)}`, {time.strftime('%Y-%m-%d', time.gmtime())}, "
        f"{platform.machine()}, {os.cpu_count()} cores: Server scenario, {arguments.seconds:g} s, bound {arguments.latency_ms:g} ms at "
        f"the 99th percentile, at {arguments.share:.0%} of the capacity measured just before with {IN_FLIGHT} calls in flight. "
        f"{ROWS:,} distinct rows, through Triton's gRPC client, both unmodified."
    )
    lines = ["# MLPerf LoadGen", "", setting, ""]
    lines += [
        "| under test | model | capacity/s | asked/s | LoadGen says | p50 ms | p99 ms | failed | client's share of its core |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, model, capacity, said in found:
        fields = dict(line.split(":", 1) for line in said["summary"].splitlines() if ":" in line)
        p50, p99 = (
            next(int(value) / 1e6 for key, value in fields.items() if key.startswith(f"{at} percentile"))
            for at in ("50.00", "99.00")
        )
        lines.append(
            f"| {name} | {model.name} | {capacity:,.0f} | {capacity * arguments.share:,.0f} | {said['verdict']} | {p50:.2f} | {p99:.2f} "
            f"| {said['failure_count']} | {said['processor_s'] / arguments.seconds:.0%} |"
        )
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=0.5, help="of the capacity, 0 to 1")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--models", nargs="+", default=[CNN.name], choices=list(MODELS))
    parser.add_argument("--servers", nargs="+", default=[OURS[0], OURS[2]], choices=OURS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "loadgen.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
