"""Finds out, before anything starts, which ports are taken and by whom."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from interlock_cli.errors import CommandFailed
from interlock_cli.stack.spec import Port


@dataclass(frozen=True, slots=True)
class TakenPort:
    """A port that somebody else holds; `pid` is None when the system does not tell who."""

    service: str
    port: Port
    pid: int | None
    command: str

    def __str__(self) -> str:
        holder = f"pid {self.pid} ({self.command})" if self.pid else "a process that this user may not see"
        return f"port {self.port.number} ({self.service}: {self.port.purpose}) is held by {holder}"


def taken_ports(host: str, ports: Iterable[tuple[str, Port]]) -> list[TakenPort]:
    """Return the ports that cannot be bound on `host`.

    Asked without SO_REUSEPORT, which would let a second stack in and split the calls between the two.
    """
    return [_holder(service, port) for service, port in ports if not is_free(host, port.number)]


def is_free(host: str, number: int) -> bool:
    """Return whether nobody listens on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError:
            return False
    return True


def require_free(taken: list[TakenPort]) -> None:
    """Raise CommandFailed, naming every port, its holder and the setting that moves it, unless `taken` is empty."""
    if taken:
        setting = taken[0].port.setting
        raise CommandFailed(
            "; ".join(str(port) for port in taken),
            [
                f"stop the holder, or move this stack: {setting}=100 adds 100 to each of its ports",
                "`interlock down` stops a stack that you started in this folder",
            ],
        )


def _holder(service: str, port: Port) -> TakenPort:
    for connection in _listening():
        if connection.laddr and connection.laddr.port == port.number and connection.pid:
            return TakenPort(service, port, connection.pid, _command(connection.pid))
    return TakenPort(service, port, None, "")


def _listening() -> Iterable[Any]:
    try:
        return [c for c in psutil.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        return []


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:120] or "unknown"
    except psutil.Error:
        return "unknown"
