"""How the threads of the door inside Envoy take turns on a busy core.

For each part of a call Envoy's thread wakes the one that hands it to Python, that one wakes Python's, and each answer wakes
Envoy's. By default the kernel lets whoever is woken interrupt who woke it: calls that come together are taken one by one, with
several switches of threads for each, and batches stay small. In the scheduling class BATCH a thread works off all that waits
for it first. A lone call gains nothing by that, and would wait for the time slices of other programs on its core: so the
class follows the number of calls (`benchmarks/results/door_turns.md`).
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

_LOG: Final = structlog.get_logger("door")
_TASKS: Final = Path("/proc/self/task")
# So long after the last time that calls overlapped, those that come are taken for lone ones.
_CALM_S: Final = 0.2


class Turns:
    """Moves the door's threads into the class BATCH while calls overlap."""

    def __init__(self) -> None:
        self.together = False
        """Whether they are there."""
        self._crowded_until = 0.0
        self._threads: list[int] | None = None

    def look(self, calls: int) -> None:
        """Take note of how many calls are being answered at a moment."""
        now = time.monotonic()
        if calls > 1:
            self._crowded_until = now + _CALM_S
        if self.together != (now < self._crowded_until):
            self.together = not self.together
            self._move()

    def _move(self) -> None:
        if self._threads is None:
            self._threads = _threads()
        # Processes that are started from here, such as models', are none of the door's.
        policy = (os.SCHED_BATCH if self.together else os.SCHED_OTHER) | os.SCHED_RESET_ON_FORK
        try:
            for thread in self._threads:
                with suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
        except OSError as error:
            self._threads = []
            _LOG.warning("scheduling_not_allowed", error=str(error))


def _threads() -> list[int]:
    """Return Envoy's workers and the threads without a name of their own, which run Python or feed it."""
    names = {int(task.name): (task / "comm").read_text().strip() for task in _TASKS.iterdir()}
    main = names.pop(os.getpid())
    return [thread for thread, name in names.items() if name.startswith("wrk:") or name == main]
