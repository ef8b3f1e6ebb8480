"""Processor time and switches of a running suite, by what its processes and threads do.

The scheduler's own count (/proc/*/schedstat): it holds on a busy machine, where a rate says nothing. A switch is a thread
that gave up its core, because it had nothing to do or because somebody else was due.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.proof.processes import process_tree

# The first that matches a command line names the process.
_ROLES = {
    "model worker": r"services\.inference\.worker",
    "inference": r"services\.inference",
    "monitor": r"services\.monitor",
    "features": r"services\.features",
    "registry": r"services\.registry",
    "router: launcher": r"services\.router",
    "router: Envoy": r"/envoy --config-path",
    "Redis": r"redis-server",
}
_PYTHON = "router: Python in Envoy"


class ProcessorTime:
    """Nanoseconds of processor time and switches by role, since the start of every thread."""

    def __init__(self, roots: Iterable[int]) -> None:
        self.ns: Counter[str] = Counter()
        self.switches: Counter[str] = Counter()
        for root in roots:
            for process in process_tree(root):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._add(process.pid, _role(" ".join(process.cmdline())))

    def since(self, before: "ProcessorTime", requests: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return microseconds a request and switches a request by role, what took most first."""
        spent = Counter(self.ns)
        spent.subtract(before.ns)
        switched = Counter(self.switches)
        switched.subtract(before.switches)
        us = {role: round(ns / 1e3 / requests, 1) for role, ns in spent.most_common() if ns > 0}
        return us, {role: round(switched[role] / requests, 2) for role in us}

    def _add(self, pid: int, role: str) -> None:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                part = _part_of_envoy(thread) if role == "router: Envoy" else role
                self.ns[part] += int((thread / "schedstat").read_text().split()[0])
                status = (thread / "status").read_text()
                self.switches[part] += sum(map(int, re.findall(r"ctxt_switches:\s*(\d+)", status)))


def _role(command: str) -> str:
    return next((role for role, pattern in _ROLES.items() if re.search(pattern, command)), "others")


def _part_of_envoy(thread: Path) -> str:
    # pyvoy's threads, the loop and the one that feeds it, have no name of their own.
    name = (thread / "comm").read_text().strip()
    if name == "envoy":
        return _PYTHON
    return "router: grpcio's threads" if name.startswith(("event_engine", "grpc")) else "router: Envoy"
