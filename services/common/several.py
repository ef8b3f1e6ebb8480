"""Several processes of a service on one port, each with the grpcio door: what `python -m services.<name>` then supervises.

The kernel gives each new connection to one of them (SO_REUSEPORT). Each is a service of its own, with its own limits.
"""

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

from services.common.group_probes import GroupProbes
from services.common.notify import notify
from services.common.probes import serve_probes
from services.common.run_folder import RunFolder, run_folder
from services.common.server import check_ports_free
from services.common.settings import CommonSettings, child_environment, join_host_port, read_notify_socket
from services.common.supervised import Supervised
from services.common.supervisor import Patience, Start, Supervisor
from services.common.unix_http import ask

# For the adapters of a service to close, once its calls are answered.
CLOSE_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 5.0
_TURN_S: Final = 0.2


class ServerProcess(Supervised):
    """A process of the service, which drains when its standard input ends: told so, or left alone by its launcher."""

    def __init__(
        self, process: asyncio.subprocess.Process, settings: CommonSettings, port: int, probe_socket: Path
    ) -> None:
        # GOAWAY goes out when the port is closed.
        turn_s = settings.drain_delay_s + _TURN_S
        super().__init__(process, "the process", port, settings.processes, turn_s)
        self._probe_socket = probe_socket

    @classmethod
    async def spawn(cls, name: str, settings: CommonSettings, number: int, probe_socket: Path) -> "ServerProcess":
        """Start process `number` with the command and the environment of this one."""
        told = {
            "INTERLOCK_DOOR": "grpcio",
            "INTERLOCK_PROCESS": str(number),
            "INTERLOCK_PROBE_SOCKET": str(probe_socket),
            "INTERLOCK_DRAIN_FD": "0",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *sys.orig_argv[1:],
            env=child_environment(told),
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C goes to the whole process group of a terminal; the launcher passes it on.
            start_new_session=True,
        )
        return cls(process, settings, settings.port_of(name), probe_socket)

    async def answers(self) -> bool:
        """Return whether its loop answers and its start is over."""
        return await self._says("/health/startup")

    async def serves(self) -> bool:
        """Return whether it says that it is ready for traffic."""
        return await self._says("/health/ready")

    async def drain(self, longest_s: float) -> None:
        """Have it drain, and return when it has ended."""
        self._close_input()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self.wait()

    async def stop(self, grace_s: float) -> int:
        """Return the exit code of a process that was told to drain, and so ends by itself."""
        return await self._end_within(grace_s)

    async def _says(self, path: str) -> bool:
        with contextlib.suppress(OSError, TimeoutError):
            return (await ask(self._probe_socket, "GET", path, _PROBE_TIMEOUT_S))[0] == HTTPStatus.OK
        return False


def run_several(name: str, settings: CommonSettings) -> int:
    """Run as many processes of service `name` as its settings say, until told to stop; returns the exit code."""
    port = settings.port_of(name)
    if not settings.replace:
        check_ports_free(join_host_port(settings.bind_host, each) for each in (port, settings.metrics_port_of(name)))
    with run_folder(settings.state_dir, name) as folder:
        return asyncio.run(_run(name, settings, folder))


async def _run(name: str, settings: CommonSettings, folder: RunFolder) -> int:
    def start_of(number: int, socket: Path) -> Start:
        return lambda: ServerProcess.spawn(name, settings, number, socket)

    sockets = [folder.of("probes.sock", number) for number in range(settings.processes)]
    starts = [start_of(number, socket) for number, socket in enumerate(sockets)]
    longest_s = settings.drain_delay_s + settings.drain_grace_s + CLOSE_S
    return await supervise(name, settings, starts, Patience(drain_longest_s=longest_s), sockets)


async def supervise(
    name: str, settings: CommonSettings, starts: Sequence[Start], patience: Patience, probe_sockets: Sequence[Path]
) -> int:
    """Keep processes running until told to stop; with `probe_sockets`, answer for all of them on the metrics port."""
    address = read_notify_socket()
    async with contextlib.AsyncExitStack() as stack:
        if probe_sockets:
            pages = GroupProbes(name, probe_sockets)
            await stack.enter_async_context(serve_probes(pages, settings.bind_host, settings.metrics_port_of(name)))
        return await Supervisor(starts, patience, lambda state: notify(address, state)).run()
