"""Says when the event loop stands still: nothing is answered then, the metrics page included, and no keepalive tells.

A thread looks whether the loop still turns. It counts its own looks, not the time: a process that was stopped as a whole,
or a machine that slept, is no loop that is blocked.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Gauge

_LOG: Final = structlog.get_logger(part="loop")
_LOOK_S: Final = 0.25
_BLOCKED_LOOKS: Final = 4
_FRAMES: Final = 3


class LoopLag:
    """The lag of one loop. `alarm` is called by a thread of its own, once for each time that the loop stands still."""

    def __init__(self, alarm: Callable[[str], None], look_s: float = _LOOK_S) -> None:
        self._alarm = alarm
        self._look_s = look_s
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._turned = False
        self._worst_s = 0.0
        self._over = threading.Event()
        self._timer = self._loop.call_later(look_s, self._turn, time.monotonic())
        self._watcher = threading.Thread(target=self._watch, name="loop lag", daemon=True)
        self._watcher.start()

    def worst_s(self) -> float:
        """Return the longest time that anything had to wait for the loop since this was asked last. Seconds."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()
        self._over.set()
        self._watcher.join()

    def _turn(self, asked_at: float) -> None:
        now = time.monotonic()
        self._turned = True
        self._worst_s = max(self._worst_s, now - asked_at - self._look_s)
        self._timer = self._loop.call_later(self._look_s, self._turn, now)

    def _watch(self) -> None:
        looks = 0
        while not self._over.wait(self._look_s):
            looks, self._turned = 0 if self._turned else looks + 1, False
            if looks == _BLOCKED_LOOKS:
                self._alarm(self._place())

    def _place(self) -> str:
        """Return where the loop's thread is, innermost first."""
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 - its documentation says that it is for this
        stack = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
        return " < ".join(f"{each.name}:{each.lineno}" for each in reversed(stack))


@contextmanager
def watching_loop(service: str, registry: CollectorRegistry) -> Iterator[None]:
    """Log when the running loop stands still for about a second, and show its lag, while the block runs."""
    lag = LoopLag(lambda place: _LOG.error("loop_blocked", blocked_s=_BLOCKED_LOOKS * _LOOK_S, place=place))
    name = f"interlock_{service}_loop_lag_seconds"
    gauge = Gauge(name, "Longest wait for the event loop since the last scrape.", registry=registry)
    gauge.set_function(lag.worst_s)
    try:
        yield
    finally:
        lag.stop()
