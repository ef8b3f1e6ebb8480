"""Keeps the processes of a launcher running until it is told to stop: start, watch, restart, drain.

Python inside Envoy cannot see signals, and several processes must be told together: who owns them is this process.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from services.common.notify import READY, STOPPING
from services.common.supervised import StartFailed, Supervised
from services.common.tasks import spawn

_LOG: Final = structlog.get_logger("launcher")
_READY_POLL_S: Final = 0.1

Start = Callable[[], Awaitable[Supervised]]
Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor waits for what, in seconds."""

    start_s: float = 60.0
    """From spawn to the first answer."""
    probe_interval_s: float = 1.0
    probe_misses: int = 2
    """Missed probes in a row before a process is killed; Envoy's admin interface stays healthy while a Python loop is dead."""
    backoff_first_s: float = 0.1
    backoff_most_s: float = 5.0
    stable_s: float = 30.0
    """After this long without an end the back-off starts over."""
    drain_longest_s: float = 60.0
    """Calls in flight get at most this long: the longest deadline."""
    stop_grace_s: float = 10.0


class Supervisor:
    """Runs one process for each of `starts`, each on its own. `run` returns the exit code of the launcher.

    They start together and drain together; the first is stopped last, for the others may need it until then.
    """

    def __init__(self, starts: Sequence[Start], patience: Patience, notify: Notify) -> None:
        self._stopping = asyncio.Event()
        self._keepers = [_Keeper(number, start, patience, self._stopping) for number, start in enumerate(starts)]
        self._patience = patience
        self._notify = notify
        self._signals = 0
        self._now = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; 0 after a clean drain, 1 when a process cannot start or had to be killed."""
        async with _handled_signals(self.interrupt):
            if not all(await asyncio.gather(*(keeper.begin() for keeper in self._keepers))):
                await asyncio.gather(*(process.kill() for process in self._running()))
                return 1
            announcement = spawn(self._announce(), "launcher-announcement")
            await asyncio.gather(*(keeper.keep() for keeper in self._keepers))
            announcement.cancel()
            self._notify(STOPPING)
            return await self._end(self._running())

    def interrupt(self) -> None:
        """Drain and stop; called a second time, stop without draining."""
        self._signals += 1
        self._stopping.set()
        if self._signals > 1:
            self._now.set()

    def _running(self) -> list[Supervised]:
        return [keeper.current for keeper in self._keepers if keeper.current is not None]

    async def _announce(self) -> None:
        """Say READY once traffic is welcome everywhere: answering, and holding what it needs."""
        for keeper in self._keepers:
            while keeper.current is None or not await keeper.current.serves():  # noqa: ASYNC110 - another process tells
                await asyncio.sleep(_READY_POLL_S)
        self._notify(READY)

    async def _end(self, processes: Sequence[Supervised]) -> int:
        draining = asyncio.gather(*(self._drain(turn, process) for turn, process in enumerate(processes)))
        if not await _first(draining, self._now.wait()):
            await asyncio.gather(*(process.kill() for process in processes))
            return 1
        grace_s = self._patience.stop_grace_s
        codes = await asyncio.gather(*(process.stop(grace_s) for process in processes[1:]))
        codes += [await process.stop(grace_s) for process in processes[:1]]
        return 1 if any(codes) else 0

    async def _drain(self, turn: int, process: Supervised) -> None:
        await asyncio.sleep(turn * process.turn_s)
        process.steer_away(turn)
        await process.drain(self._patience.drain_longest_s)


class _Keeper:
    """Keeps one process running, whatever becomes of the others, until `stopping`."""

    def __init__(self, number: int, start: Start, patience: Patience, stopping: asyncio.Event) -> None:
        self._number = number
        self._start = start
        self._patience = patience
        self._stopping = stopping
        self.current: Supervised | None = None
        """The process that serves, None while there is none."""

    async def begin(self) -> bool:
        """Start for the first time; False when that fails, and then the others need not go on. A stop is no failure."""
        try:
            self.current = await self._serving()
        except StartFailed as error:
            _LOG.error("process_start_failed", process=self._number, problem=str(error))
            self._stopping.set()
            return False
        return True

    async def keep(self) -> None:
        """Start the process again whenever it ends; return when the stop comes."""
        backoff_s = self._patience.backoff_first_s
        while self.current is not None:
            started = time.monotonic()
            if not await _first(self._watch(self.current), self._stopping.wait()):
                return
            if time.monotonic() - started > self._patience.stable_s:
                backoff_s = self._patience.backoff_first_s
            _LOG.warning(
                "process_ended", process=self._number, exit_code=self.current.exit_code, restart_in_s=backoff_s
            )
            self.current = None
            backoff_s = await self._restart(backoff_s)

    async def _restart(self, backoff_s: float) -> float:
        while await _first(asyncio.sleep(backoff_s), self._stopping.wait()):
            backoff_s = min(2 * backoff_s, self._patience.backoff_most_s)
            try:
                self.current = await self._serving()
            except StartFailed as error:
                _LOG.error("process_restart_failed", process=self._number, problem=str(error), retry_in_s=backoff_s)
            else:
                break
        return backoff_s

    async def _serving(self) -> Supervised | None:
        """Return a serving process, None when the stop came first."""
        process = await self._start()
        try:
            if await _first(process.wait_ready(self._patience.start_s), self._stopping.wait()):
                return process
        except StartFailed:
            await process.kill()
            raise
        await process.kill()
        return None

    async def _watch(self, process: Supervised) -> None:
        """Return when the process has ended, by itself or killed because its Python stopped answering."""
        misses = 0
        while not await _ends_within(process, self._patience.probe_interval_s):
            misses = 0 if await process.answers() else misses + 1
            if misses >= self._patience.probe_misses:
                _LOG.error("process_hangs", process=self._number, misses=misses)
                await process.kill()
                return


async def _ends_within(process: Supervised, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
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
