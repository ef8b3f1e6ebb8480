"""Runs the foreign clients as programs of their own and gives what they saw."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.clients.install import NODE, NODE_CLIENT, PYTHON
from tests.e2e.flight import FEATURES, MODEL
from tests.e2e.stack import ROOT

CLIENTS = ROOT / "tests" / "clients"
USER = "u-42"
TIMEOUT_S = 60.0
# The flight of the README, and one to an airport that no training flight went to.
CATEGORIES = [["B6", "JFK", "LAX"], ["UA", "EWR", "Zürich"]]
NUMBERS = [[17, 9, 5, 2475], [6, 12, 1, 700.5]]
TENSORS: list[dict[str, Any]] = [
    {"name": "categories", "datatype": "BYTES", "shape": [2, 3], "data": CATEGORIES},
    {"name": "numbers", "datatype": "FP32", "shape": [2, 4], "data": NUMBERS},
]
OUTPUT = "probabilities"


class Clients:
    """The programs; each runs once per address and job, and its answers are kept for the tests that follow."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Any] = {}

    def triton(self, protocol: str, address: str, *, version: str = "", extensions: bool = False) -> Any:
        """Triton's Python client over `grpc` or `http`."""
        job = {"model": MODEL, "version": version, "inputs": TENSORS, "output": OUTPUT, "extensions": extensions}
        return self._run([str(PYTHON), str(CLIENTS / "triton_client.py"), protocol], address, job, Path("/"))

    def other(self, program: str, grpc: str, http: str, **more: Any) -> Any:
        """One of the programs that take an address for gRPC and one for HTTP, which may be empty; version 1 is asked."""
        job = {"model": MODEL, "version": "1", "inputs": TENSORS, "output": OUTPUT, "grpc": grpc, "http": http, **more}
        return self._run([str(PYTHON), str(CLIENTS / program)], grpc, job, Path("/"))

    def node(self, address: str) -> Any:
        """A client in JavaScript, from stubs that its own generator made."""
        return self._run([str(NODE), "client.js"], address, _flight_job(), NODE_CLIENT)

    def python(self, address: str) -> Any:
        """A client that has our Python stubs and nothing else of ours."""
        command = [sys.executable, "-P", str(CLIENTS / "python_client.py")]
        return self._run(command, address, _flight_job(), ROOT / "gen")

    def _run(self, command: Sequence[str], address: str, job: dict[str, Any], folder: Path) -> Any:
        given = json.dumps({"address": address, **job})
        return self._once((*command, given), lambda: json.loads(run(command, given, folder)))

    def _once(self, key: tuple[str, ...], answer: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = answer()
        return self._kept[key]


def run(command: Sequence[str], given: str, folder: Path) -> str:
    """Run a program that must succeed with an environment that holds nothing of ours; returns what it printed."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(folder),
        "PYTHONUTF8": "1",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    done = subprocess.run(
        command,
        input=given,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def buf_curl(address: str, method: str, body: object) -> "subprocess.CompletedProcess[str]":
    """Call a method as `grpcurl` would: over HTTP/2 without TLS, with nothing but reflection to know the contract."""
    command = [str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    return subprocess.run(
        [*command, f"http://{address}/{method}", "-d", json.dumps(body)],
        cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def _flight_job() -> dict[str, Any]:
    return {"model": MODEL, "features": FEATURES, "user_id": USER}
