"""One process of a service: started, heard, stopped."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interlock_cli.settings import child_environment
from interlock_cli.stack.log_file import LogFile, OutputPump
from interlock_cli.stack.parent_death import die_with_parent
from interlock_cli.stack.ready_socket import ReadySocket
from interlock_cli.stack.spec import ReadyProbe, ServiceSpec
from services.common.tasks import spawn

_PROBE_POLL_S: Final = 0.05


class NotReady(Exception):
    """A process ended, or took too long, before it said that it serves."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its exit code, or minus the signal that ended it."""

    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"signal {signal.Signals(-self.code).name}"
        except ValueError:
            return f"signal {-self.code}"


class Child:
    """A running process in a session of its own, so that a Ctrl-C reaches it through the supervisor only."""

    def __init__(self, process: asyncio.subprocess.Process, ready: ReadySocket, pump: OutputPump) -> None:
        self._process = process
        self._ready = ready
        self._pump = pump
        self.started_at_s = time.monotonic()
        self.exited = spawn(self._reap(), f"reap-{process.pid}")
        """Resolves to an Exit once the process and everything it left behind are gone."""

    @classmethod
    async def start(cls, spec: ServiceSpec, folder: Path, log: LogFile, additions: Mapping[str, str]) -> "Child":
        """Start a process; `folder` takes its readiness socket, `log` what it writes. Raises NotReady."""
        pump = OutputPump(log)
        ready = ReadySocket(folder / f"ready-{spec.name}-{time.monotonic_ns() % 10**9}.sock")
        environment = {**spec.environment, **additions, "NOTIFY_SOCKET": str(ready.path)}
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                env=child_environment(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pump.child_end,
                stderr=pump.child_end,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            pump.close()
            ready.close()
            raise NotReady(f"{spec.command[0]} cannot be started: {error.strerror}") from None
        finally:
            os.close(pump.child_end)
        return cls(process, ready, pump)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.returncode is None

    async def wait_ready(self, probe: ReadyProbe | None, timeout_s: float) -> None:
        """Return once the process serves; raises NotReady when it ends first or takes longer than `timeout_s`."""
        ready = spawn(_hear(self._ready.ready) if probe is None else _ask(probe), "wait-ready")
        try:
            await asyncio.wait({ready, self.exited}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self.exited.done():
            raise NotReady(f"it ended before it was ready ({self.exited.result()})")
        if not ready.done() or ready.cancelled():
            raise NotReady(f"it was not ready after {timeout_s:g} s")

    async def stop(self, timeout_s: float) -> Exit:
        """Ask the process to drain, kill it when it takes longer than `timeout_s`, and return how it ended."""
        self.send(signal.SIGTERM)
        await asyncio.wait((self.exited,), timeout=timeout_s)
        if not self.exited.done():
            self.kill()
        return await asyncio.shield(self.exited)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, if it still runs."""
        if self.alive:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    async def _reap(self) -> Exit:
        code = await self._process.wait()
        # What a crashed launcher leaves behind would hold its ports.
        self.kill()
        self._ready.close()
        self._pump.close()
        return Exit(code)


async def _ask(probe: ReadyProbe) -> None:
    while True:
        try:
            if await probe():
                return
        except OSError:
            pass
        await asyncio.sleep(_PROBE_POLL_S)


async def _hear(ready: asyncio.Event) -> None:
    await ready.wait()
