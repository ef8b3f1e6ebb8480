"""Deadlines of calls: one timer for all calls of a process, set for the earliest of them.

A timer of its own costs a call more than anything else that the chain does for it, and nearly every call is over long
before its deadline. The calls that are watched here are also those of which a door may find that nobody waits for them.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from services.common.call import Call
from services.common.errors import DEADLINE_PASSED, DeadlineExceeded

# A loop whose timers count whole milliseconds may fire one that much too early.
TIMER_STEP_S: Final = 0.001

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


class Deadlines:
    """Cancels tasks whose deadline passes."""

    def __init__(self) -> None:
        # The blocks themselves, in the order of age. Not ids of calls: those are given to later calls while a question about
        # an earlier one is still open, and its late "disconnected" would cancel a stranger.
        self.watched: dict[Watching, None] = {}
        self.busy = asyncio.Event()
        """Set while something is watched; who clears it looks first."""
        self.looks_at = math.inf
        """When the timer looks; infinite while it is off."""
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: Call) -> "Watched":
        """Return a block of the call's own task that raises DeadlineExceeded once the call's deadline has passed.

        It raises ClientGone where the call's door has found that nobody waits for it.
        """
        assert call.task is not None, "a call is answered in a task"
        return Watched(self, call.task, call)

    def add(self, watching: "Watching") -> None:
        """Watch a call until `remove`."""
        if not self.watched:
            self.busy.set()
        self.watched[watching] = None
        if watching.deadline < self.looks_at:
            self.set_timer(watching.deadline)

    def remove(self, watching: "Watching") -> None:
        """Watch it no more. The timer stays: it finds the next one when it fires."""
        del self.watched[watching]

    def set_timer(self, deadline: float) -> None:
        """Look at this time, which is before all others."""
        if self._timer is not None:
            self._timer.cancel()
        self.looks_at = deadline
        wait_s = max(0.0, deadline - time.monotonic()) + TIMER_STEP_S
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._fire)

    def _fire(self) -> None:
        self._timer, self.looks_at = None, math.inf
        now = time.monotonic()
        for watched in tuple(self.watched):
            if watched.deadline <= now and not watched.expired:
                watched.expire()
        earliest = min((watched.deadline for watched in self.watched if not watched.expired), default=math.inf)
        if earliest != math.inf:
            self.set_timer(earliest)


class Watching(Protocol):
    """A call that is watched: what answers it ends at its deadline, and once nobody waits for the answer."""

    deadline: float
    since: float
    """When it came."""
    expired: bool
    receive: Receive | None
    """What a sweeper asks whether the client is still there; None for a call that needs no asking."""
    asked: bool
    """Whether a question is open."""

    def expire(self) -> None:
        """End: the deadline has passed."""

    def leave(self) -> None:
        """End: the client is gone."""


class Watched:
    """A block of one task under a deadline; it tells the deadline's cancellation from others as asyncio.timeout does."""

    __slots__ = (
        "_cancelling",
        "_deadlines",
        "_task",
        "asked",
        "before",
        "deadline",
        "expired",
        "gone",
        "receive",
        "since",
    )

    def __init__(self, deadlines: Deadlines, task: asyncio.Task[Any], call: Call) -> None:
        self.deadline = call.deadline
        self.before = "the answer was ready"
        """What was not done by the deadline, for the caller."""
        self.expired = False
        self.gone = False
        self.receive: Receive | None = None
        self.since = call.arrived
        self.asked = False
        self._task = task
        self._deadlines = deadlines

    def __enter__(self) -> Self:
        self._cancelling = self._task.cancelling()
        self._deadlines.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.remove(self)
        if not (self.expired or self.gone):
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            if self.gone:
                raise ClientGone from None
            raise DeadlineExceeded(f"the deadline passed before {self.before}", reason=DEADLINE_PASSED) from None

    def expire(self) -> None:
        """Cancel the task: the deadline has passed."""
        if not self.gone:
            self.expired = True
            self._task.cancel()

    def leave(self) -> None:
        """Cancel the task: the client is gone."""
        if not self.expired:
            self.gone = True
            self._task.cancel()
