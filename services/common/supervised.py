"""A process that a launcher keeps alive: what the supervisor asks of each, and what all kinds have in common."""

import asyncio
import contextlib
import signal
import time
from abc import ABC, abstractmethod
from typing import Final

import structlog

from services.common.handover import share_evenly, steer_to_successor

_LOG: Final = structlog.get_logger("launcher")
_POLL_S: Final = 0.05


class StartFailed(RuntimeError):
    """The process ended, or did not serve in time; its own output says why."""


class Supervised(ABC):
    """A running child of the launcher that listens on `port`, as one of `processes` that do.

    When all drain, they begin `turn_s` seconds after one another.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, kind: str, port: int, processes: int, turn_s: float
    ) -> None:
        self._process = process
        self._kind = kind
        self._port = port
        self._processes = processes
        self.turn_s = turn_s

    @abstractmethod
    async def answers(self) -> bool:
        """Return whether it answers in time, ready for traffic or not."""

    @abstractmethod
    async def serves(self) -> bool:
        """Return whether it answers and says that it is ready for traffic."""

    @abstractmethod
    async def drain(self, longest_s: float) -> None:
        """Send clients away and return when the last call is answered, after `longest_s` at the latest."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, None while it runs; negative for a signal."""
        return self._process.returncode

    async def wait(self) -> int:
        """Return the exit code once the process has ended."""
        return await self._process.wait()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once it answers; raises `StartFailed`."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.exit_code is not None:
                raise StartFailed(f"{self._kind} ended with code {self.exit_code} while starting")
            if await self.answers():
                share_evenly(self._port, self.pid)
                return
            await asyncio.sleep(_POLL_S)
        raise StartFailed(f"{self._kind} did not serve within {timeout_s:g} s")

    def steer_away(self, turn: int) -> None:
        """Send new connections to those that took the port up after this process and its siblings, if anybody has."""
        steer_to_successor(self._port, self.pid, leaving=self._processes, turn=turn)

    async def stop(self, grace_s: float) -> int:
        """End the process: SIGTERM, and SIGKILL when it is still there after `grace_s`. Returns the exit code."""
        self._signal(signal.SIGTERM)
        return await self._end_within(grace_s)

    async def kill(self) -> int:
        """End the process at once."""
        self._signal(signal.SIGKILL)
        return await self._process.wait()

    def _close_input(self) -> None:
        """End its standard input, which tells the Python inside to drain."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def _end_within(self, grace_s: float) -> int:
        try:
            async with asyncio.timeout(grace_s):
                return await self._process.wait()
        except TimeoutError:
            _LOG.warning("process_killed", kind=self._kind, pid=self.pid, grace_s=grace_s)
            return await self.kill()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
