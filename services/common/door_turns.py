"""How the threads of a door take turns on a busy core (`benchmarks/results/door_turns.md`).

For each part of a call Envoy's thread wakes the one that hands it to Python, that one wakes Python's, and each answer wakes
Envoy's; it is the same with grpcio's threads. By default the kernel lets whoever is woken interrupt who woke it: calls that
come together are taken one by one, with several switches of threads for each, and batches stay small. In the scheduling class
BATCH a thread works off all that waits for it first. A lone call gains nothing by that, and would wait for the time slices of
other programs on its core: so the class follows the number of calls.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

_LOG: Final = structlog.get_logger("door")
_TASKS: Final = Path("/proc/self/task")
# So long after the last time that calls overlapped, those that come are taken for lone ones.
_CALM_S: Final = 0.2
# grpcio needs several turns of the loop to hand over one call.
_CALM_TURNS: Final = 8
# The longest time for which calls are taken in before any is sent on.
_INTAKE_S: Final = 0.010


class Turns:
    """Moves the door's threads into the class BATCH while calls overlap, and lets them come first where that pays."""

    def __init__(self) -> None:
        self.together = False
        """Whether they are in the class BATCH."""
        self._crowded_until = 0.0
        self._calls = 0
        self._begun = 0
        self._allowed = True

    def begin(self) -> None:
        """Count a call to a hot method, or a message of a stream that is answered like one."""
        now = time.monotonic()
        self._calls += 1
        self._begun += 1
        if self._calls > 1:
            self._crowded_until = now + _CALM_S
        if self.together != (now < self._crowded_until):
            self.together = not self.together
            self._move()

    def end(self) -> None:
        """Count it no more."""
        self._calls -= 1

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a call for a block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def soon(self, callback: Callable[[], None], *, gathers: bool) -> None:
        """Call back once everything that has come by now has been taken in: in the next turn of the loop.

        Who `gathers` wants to know of all calls that are here, and a server's threads hand them over one by one. So while
        calls overlap, this yields to those threads until several turns in a row have brought no further call. Nobody stands
        idle meanwhile: it is the order of the work.
        """
        loop = asyncio.get_running_loop()
        if gathers and self.together and self._calls:
            loop.call_soon(self._turn, callback, time.monotonic() + _INTAKE_S, self._begun, 0)
        else:
            loop.call_soon(callback)

    def _turn(self, callback: Callable[[], None], latest: float, begun: int, calm: int) -> None:
        calm = calm + 1 if begun == self._begun else 0
        if calm == _CALM_TURNS or time.monotonic() >= latest:
            callback()
            return
        os.sched_yield()
        asyncio.get_running_loop().call_soon(self._turn, callback, latest, self._begun, calm)

    def _move(self) -> None:
        if not self._allowed:
            return
        try:
            if self.together:
                _set_class(os.SCHED_BATCH, _of_the_door())
            else:
                # All of them: who was started meanwhile has the class of who started it, and some may start right now.
                moved: set[int] = set()
                while new := _names().keys() - moved:
                    _set_class(os.SCHED_OTHER, new)
                    moved |= new
        except OSError as error:
            self._allowed = False
            _LOG.warning("scheduling_not_allowed", error=str(error))


def _set_class(policy: int, threads: Iterable[int]) -> None:
    for thread in threads:
        with suppress(ProcessLookupError):
            os.sched_setscheduler(thread, policy, os.sched_param(0))


def _of_the_door() -> list[int]:
    """Return all threads of the process; in Envoy its workers, and those without a name, which run Python or feed it."""
    names = _names()
    if not any(name.startswith("wrk:") for name in names.values()):
        return list(names)
    main = names.pop(os.getpid())
    return [thread for thread, name in names.items() if name.startswith("wrk:") or name == main]


def _names() -> dict[int, str]:
    found = {}
    for task in _TASKS.iterdir():
        with suppress(OSError):
            found[int(task.name)] = (task / "comm").read_text().strip()
    return found
