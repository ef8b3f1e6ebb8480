"""How the threads of a door take turns on a busy core.

For each part of a call Envoy's thread wakes the one that hands it to Python, that one wakes Python's, and each answer wakes
Envoy's; it is the same with grpcio's threads. By default the kernel lets whoever is woken interrupt who woke it: calls that come together are taken one by one, with
several switches of threads for each, and batches stay small. In the scheduling class BATCH a thread works off all that waits
for it first. A lone call gains nothing by that, and would wait for the time slices of other programs on its core: so the
class follows the number of calls (`benchmarks/results/door_turns.md`).
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

_LOG: Final = structlog.get_logger("door")
_TASKS: Final = Path("/proc/self/task")
# So long after the last time that calls overlapped, those that come are taken for lone ones.
_CALM_S: Final = 0.2


class Turns:
    """Moves a door's threads into the class BATCH while calls overlap; `threads` returns them."""

    def __init__(self, threads: Callable[[], list[int]]) -> None:
        self.together = False
        """Whether they are there."""
        self._threads = threads
        self._crowded_until = 0.0
        self._calls = 0
        self._allowed = True

    def __enter__(self) -> None:
        """Begin a call."""
        self._calls += 1
        self.look(self._calls)

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._calls -= 1

    def look(self, calls: int) -> None:
        """Take note of how many calls are being answered at a moment."""
        now = time.monotonic()
        if calls > 1:
            self._crowded_until = now + _CALM_S
        if self.together != (now < self._crowded_until):
            self.together = not self.together
            self._move()

    def _move(self) -> None:
        if not self._allowed:
            return
        # Processes that are started from here, such as models', are none of the door's.
        policy = (os.SCHED_BATCH if self.together else os.SCHED_OTHER) | os.SCHED_RESET_ON_FORK
        try:
            for thread in self._threads():
                with suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
        except OSError as error:
            self._allowed = False
            _LOG.warning("scheduling_not_allowed", error=str(error))


def threads_in_envoy() -> list[int]:
    """Return Envoy's workers and the threads without a name of their own, which run Python or feed it."""
    names = {int(task.name): (task / "comm").read_text().strip() for task in _TASKS.iterdir()}
    main = names.pop(os.getpid())
    return [thread for thread, name in names.items() if name.startswith("wrk:") or name == main]


def threads_of_process() -> list[int]:
    """Return all threads of the process."""
    return [int(task.name) for task in _TASKS.iterdir()]
