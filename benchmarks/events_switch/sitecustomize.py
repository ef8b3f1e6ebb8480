"""Lets a benchmark turn the router's prediction events off and on while it serves; on PYTHONPATH of a stack, no other.

Every Python that starts with this folder on its path imports it. In a router, events are off while the file named by
EVENTS_OFF_FILE is there: a prediction then ends with its metrics, and no event is made. Looked at five times a second.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_MODULE = "services.router.domain.observation"
_PAUSE_S = 0.2


def _watch(file: Path) -> None:
    while not hasattr(sys.modules.get(_MODULE), "Observation"):
        time.sleep(_PAUSE_S)
    module: Any = sys.modules[_MODULE]
    with_event = module.Observation.end

    def without_event(self: Any, error: BaseException | None) -> None:
        _, code = module._outcome(error, self._call)  # noqa: SLF001 - what `end` itself does, without the event
        seconds = time.perf_counter() - self._started
        self._metrics.observe(self._choice, code, len(self.ids), seconds, fixed=self.fixed)

    while True:
        wanted = without_event if file.exists() else with_event
        if module.Observation.end is not wanted:
            module.Observation.end = wanted
        time.sleep(_PAUSE_S)


if named := os.environ.get("EVENTS_OFF_FILE"):
    threading.Thread(target=_watch, args=(Path(named),), daemon=True).start()
