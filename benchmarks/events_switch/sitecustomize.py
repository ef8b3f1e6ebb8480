"""Lets a benchmark turn the router's prediction events off and on while it serves; on PYTHONPATH of a stack, no other.

Every Python that starts with this folder on its path imports it. In a router, once the file named by EVENT_SLICES_FILE is
there, events are on and off in turn, a tenth of a second each: while they are off, a prediction ends with its metrics, and no
event is made. Each line that is added to the file is two such slices: nanoseconds of processor time of the whole process and
predictions that ended, with events and without.
"""

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_MODULE = "services.router.domain.observation"
_SLICE_S = 0.1


def _alternate(file: Path) -> None:
    while not (file.exists() and hasattr(sys.modules.get(_MODULE), "Observation")):
        time.sleep(_SLICE_S)
    module: Any = sys.modules[_MODULE]
    as_it_is = module.Observation.end
    with_events = without = 0

    def with_event(self: Any, error: BaseException | None) -> None:
        nonlocal with_events
        with_events += 1
        as_it_is(self, error)

    def without_event(self: Any, error: BaseException | None) -> None:
        nonlocal without
        without += 1
        _, code = module._outcome(error, self._call)  # noqa: SLF001 - what `end` itself does, without the event
        seconds = time.perf_counter() - self._started
        self._metrics.observe(self._choice, code, len(self.ids), seconds, fixed=self.fixed)

    def one_slice(end: Any) -> int:
        module.Observation.end = end
        before = time.process_time_ns()
        time.sleep(_SLICE_S)
        return time.process_time_ns() - before

    counted = (0, 0)
    with file.open("a", buffering=1) as lines:
        for turn in itertools.cycle((with_event, without_event)):
            other = without_event if turn is with_event else with_event
            spent = {turn: one_slice(turn), other: one_slice(other)}
            now = with_events, without
            print(spent[with_event], now[0] - counted[0], spent[without_event], now[1] - counted[1], file=lines)
            counted = now


if named := os.environ.get("EVENT_SLICES_FILE"):
    threading.Thread(target=_alternate, args=(Path(named),), daemon=True).start()
