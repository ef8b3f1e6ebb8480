"""A whole stack as processes, started by the command that users start."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from services.common.settings import METRICS_PORT_STEP, PORTS
from tests.fakes.ports import free_offset

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
COMMAND = (sys.executable, "-m", "interlock_cli")


@dataclass
class Stack:
    """A running stack and the commands that talk to it."""

    folder: Path
    offset: int
    environment: Mapping[str, str]
    process: "subprocess.Popen[str]" = field(init=False)

    @property
    def edge(self) -> str:
        """`host:port` of the public port."""
        return f"127.0.0.1:{PORTS['edge'] + self.offset}"

    def address_of(self, service: str) -> str:
        return f"127.0.0.1:{PORTS[service] + self.offset}"

    def start(self, *arguments: str) -> None:
        """Start the stack with `interlock up` and these arguments, and return when all of it is ready."""
        out = (self.folder / "up.out").open("a", encoding="utf-8")
        # A session of its own: a signal to the tests must not reach it, and its death is the test's business.
        self.process = subprocess.Popen(
            [*COMMAND, "up", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=out,
            stderr=out,
            text=True,
            start_new_session=True,
        )
        out.close()
        self.wait_until(self.is_ready, "the stack is ready", START_TIMEOUT_S)

    def stop(self) -> int:
        """Drain the stack; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def command(self, *arguments: str, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """Run `interlock` with these arguments against this stack."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def succeed(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run a command that must succeed; returns what it printed."""
        done = self.command(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"interlock {' '.join(arguments)}: {done.stdout}{done.stderr}\n{self.story()}"
        return done.stdout

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the status table by service, as `interlock status` gets them; none when no stack answers."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            try:
                client.connect(str(self.folder / "run" / "control.sock"))
            except OSError:
                return {}
            client.sendall(b'{"do": "status"}\n')
            answer = client.makefile().readline()
        return {row["name"]: row for row in json.loads(answer)["ok"]["services"]} if answer else {}

    def pid_of(self, service: str) -> int:
        return int(self.status()[service]["pid"])

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"the stack ended with {self.process.returncode}\n{self.story()}"
        rows = self.status()
        return bool(rows) and all(row["state"] == "ready" for row in rows.values()) and self._edge_ready()

    def metric(self, service: str, sample: str) -> float:
        """Return the sum of a metric's samples over all labels."""
        port = PORTS[service] + METRICS_PORT_STEP + self.offset
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        families = text_string_to_metric_families(text)
        return sum(one.value for family in families for one in family.samples if one.name == sample)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Return when `condition` holds; fails with the stack's own words when it never does."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}\n{self.story()}"
            _pause()

    def processes(self) -> list[psutil.Process]:
        """Return the supervisor and all that it started, workers included."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def story(self) -> str:
        """Return the last words of every log, for a failure's message."""
        lines = [f"--- {self.folder}"]
        for path in (self.folder / "up.out", *sorted((self.folder / "logs").glob("*.log"))):
            if path.exists():
                lines.append(f"--- {path.name}")
                lines += path.read_text("utf-8", "replace").splitlines()[-12:]
        return "\n".join(lines)

    def _edge_ready(self) -> bool:
        try:
            return httpx.get(f"http://{self.edge}/health/ready", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


@contextmanager
def new_stack(door: str, **variables: str) -> Iterator[Stack]:
    """Give a stack that is not started yet, in a folder and on ports of its own; end it, however it is, afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    offset = free_offset()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("INTERLOCK_")} | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen"))),
        "INTERLOCK_STATE_DIR": str(folder),
        "INTERLOCK_PORT_OFFSET": str(offset),
        "INTERLOCK_DOOR": door,
        "INTERLOCK_DRAIN_DELAY_S": "0.2",
        **variables,
    }
    stack = Stack(folder, offset, environment)
    try:
        yield stack
    finally:
        _end(stack)
        shutil.rmtree(folder, ignore_errors=True)


def _end(stack: Stack) -> None:
    process = getattr(stack, "process", None)
    if process is None or process.poll() is not None:
        return
    try:
        stack.stop()
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pause() -> None:
    # A condition of another process: there is nothing here to await.
    time.sleep(0.1)
