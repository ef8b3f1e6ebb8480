"""Keeps one Envoy running until it is told to stop: start, watch, restart, drain.

The Python inside Envoy cannot see signals, so the process that owns them is this one.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from services.common.edge.process import EnvoyProcess, StartFailed
from services.common.notify import READY, STOPPING
from services.common.tasks import spawn

_LOG: Final = structlog.get_logger("edge")
_READY_POLL_S: Final = 0.1

Start = Callable[[], Awaitable[EnvoyProcess]]
Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor waits for what, in seconds."""

    start_s: float = 60.0
    """From spawn to the first answer."""
    probe_interval_s: float = 1.0
    probe_misses: int = 2
    """Missed probes in a row before Envoy is killed; the admin interface stays healthy while a Python loop is dead."""
    backoff_first_s: float = 0.1
    backoff_most_s: float = 5.0
    stable_s: float = 30.0
    """After this long without an end the back-off starts over."""
    drain_longest_s: float = 60.0
    """Calls in flight get at most this long: the longest deadline."""
    stop_grace_s: float = 10.0


class Supervisor:
    """Runs one Envoy at a time. `run` returns the exit code of the launcher."""

    def __init__(self, start: Start, patience: Patience, notify: Notify) -> None:
        self._start_envoy = start
        self._patience = patience
        self._notify = notify
        self._current: EnvoyProcess | None = None
        self._signals = 0
        self._stopping = asyncio.Event()
        self._now = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; 0 after a clean drain, 1 when Envoy cannot start or had to be killed."""
        async with _handled_signals(self.interrupt):
            try:
                envoy = await self._start()
            except StartFailed as error:
                _LOG.error("edge_start_failed", problem=str(error))
                return 1
            if envoy is not None:
                announcement = spawn(self._announce(), "edge-announcement")
                envoy = await self._keep(envoy)
                announcement.cancel()
            self._notify(STOPPING)
            return 0 if envoy is None else await self._end(envoy)

    def interrupt(self) -> None:
        """Drain and stop; called a second time, stop without draining."""
        self._signals += 1
        self._stopping.set()
        if self._signals > 1:
            self._now.set()

    async def _start(self) -> EnvoyProcess | None:
        """Return a serving Envoy, None when the stop came first."""
        envoy = await self._start_envoy()
        try:
            if await _first(envoy.wait_ready(self._patience.start_s), self._stopping.wait()):
                return envoy
        except StartFailed:
            await envoy.kill()
            raise
        await envoy.kill()
        return None

    async def _announce(self) -> None:
        """Say READY once traffic is welcome: answering, and holding what it needs."""
        while self._current is None or not await self._current.serves():  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(_READY_POLL_S)
        self._notify(READY)

    async def _keep(self, envoy: EnvoyProcess) -> EnvoyProcess | None:
        """Restart Envoy whenever it ends; return the running one when the stop comes."""
        backoff_s = self._patience.backoff_first_s
        current: EnvoyProcess | None = envoy
        while current is not None:
            self._current = current
            started = time.monotonic()
            if not await _first(self._watch(current), self._stopping.wait()):
                return current
            if time.monotonic() - started > self._patience.stable_s:
                backoff_s = self._patience.backoff_first_s
            _LOG.warning("edge_ended", exit_code=current.exit_code, restart_in_s=backoff_s)
            current, backoff_s = await self._restart(backoff_s)
        return None

    async def _restart(self, backoff_s: float) -> tuple[EnvoyProcess | None, float]:
        while await _first(asyncio.sleep(backoff_s), self._stopping.wait()):
            backoff_s = min(2 * backoff_s, self._patience.backoff_most_s)
            try:
                return await self._start(), backoff_s
            except StartFailed as error:
                _LOG.error("edge_restart_failed", problem=str(error), retry_in_s=backoff_s)
        return None, backoff_s

    async def _watch(self, envoy: EnvoyProcess) -> None:
        """Return when Envoy has ended, by itself or killed because Python inside stopped answering."""
        misses = 0
        while not await _ends_within(envoy, self._patience.probe_interval_s):
            misses = 0 if await envoy.answers() else misses + 1
            if misses >= self._patience.probe_misses:
                _LOG.error("edge_hangs", misses=misses)
                await envoy.kill()
                return

    async def _end(self, envoy: EnvoyProcess) -> int:
        drained = await _first(envoy.drain(self._patience.drain_longest_s), self._now.wait())
        if not drained:
            await envoy.kill()
            return 1
        code = await envoy.stop(self._patience.stop_grace_s)
        return 0 if code == 0 else 1


async def _ends_within(envoy: EnvoyProcess, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await envoy.wait()
    except TimeoutError:
        return False
    return True


async def _first(work: Awaitable[object], stop: Awaitable[object]) -> bool:
    """Wait for both; return True when `work` is done first, and cancel the other. `work`'s error is raised."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stop)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
            return True
        return False
    finally:
        for task in tasks:
            task.cancel()
        # An error of work that lost the race has nobody to tell.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _handled_signals(handler: Callable[[], None]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
