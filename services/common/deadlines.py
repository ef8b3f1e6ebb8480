"""Deadlines of calls: one timer for all calls of a process, set for the earliest of them.

A timer of its own costs a call more than anything else that the chain does for it, and nearly every call is over long
before its deadline.
"""

import asyncio
import math
import time
from types import TracebackType
from typing import Any

from services.common.call import Call
from services.common.errors import DEADLINE_PASSED, DeadlineExceeded

# A loop whose timers count whole milliseconds may fire one that much too early.
_TIMER_STEP_S = 0.001


class Deadlines:
    """Cancels tasks whose deadline passes."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._set_for = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: Call, before: str = "the answer was ready") -> "Watched":
        """Return a block of the call's own task that raises DeadlineExceeded once the call's deadline has passed.

        `before` tells the caller what was not done by then.
        """
        assert call.task is not None, "a call is answered in a task"
        return Watched(self, call.task, call.deadline, before)

    def add(self, watched: "Watched") -> None:
        """Watch a block that begins."""
        self._watched.add(watched)
        if watched.deadline < self._set_for:
            self._set_timer(watched.deadline)

    def remove(self, watched: "Watched") -> None:
        """Forget a block that ends. The timer stays: it finds the next one when it fires."""
        self._watched.discard(watched)

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._set_for = deadline
        wait_s = max(0.0, deadline - time.monotonic()) + _TIMER_STEP_S
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._fire)

    def _fire(self) -> None:
        self._timer, self._set_for = None, math.inf
        now = time.monotonic()
        for watched in tuple(self._watched):
            if watched.deadline <= now:
                self._watched.discard(watched)
                watched.expire()
        if self._watched:
            self._set_timer(min(watched.deadline for watched in self._watched))


class Watched:
    """A block of one task under a deadline; it tells the deadline's cancellation from others as asyncio.timeout does."""

    __slots__ = ("_before", "_cancelling", "_deadlines", "_expired", "_task", "deadline")

    def __init__(self, deadlines: Deadlines, task: asyncio.Task[Any], deadline: float, before: str) -> None:
        self.deadline = deadline
        self._task = task
        self._before = before
        self._deadlines = deadlines
        self._expired = False

    def __enter__(self) -> None:
        self._cancelling = self._task.cancelling()
        if self.deadline != math.inf:
            self._deadlines.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.remove(self)
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise DeadlineExceeded(f"the deadline passed before {self._before}", reason=DEADLINE_PASSED) from None

    def expire(self) -> None:
        """Cancel the task: the deadline has passed."""
        self._expired = True
        self._task.cancel()
