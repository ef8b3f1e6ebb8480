"""The share rule: when requests that wait for the same version leave in one message.

Leave at once when half of the calls in flight wait here, after a short while at the latest; a lone call never waits. Calls
count from their headers, before anybody knows what they want: of a burst, the first that is read should not leave alone.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from services.common.arrivals import no_arrivals

_SHARE = 2


class Waiting(Protocol):
    """What the rule must know of a request."""

    @property
    def deadline(self) -> float:
        """When its caller stops waiting, in seconds of the rule's clock."""
        ...


WaitingT = TypeVar("WaitingT", bound=Waiting)


class Gathering(Generic[WaitingT]):
    """Requests that wait to leave together. Times in seconds of `clock`."""

    __slots__ = ("_arriving", "_clock", "_leave_at", "_max_wait_s", "in_flight", "waiting")

    def __init__(
        self, max_wait_s: float, clock: Callable[[], float], arriving: Callable[[], int] = no_arrivals
    ) -> None:
        """`arriving` counts the calls that are on their way in, and may come here."""
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._arriving = arriving
        self._leave_at = 0.0
        self.waiting: list[WaitingT] = []
        self.in_flight = 0
        """Calls from their arrival to their answer, the waiting ones among them."""

    def add(self, request: WaitingT) -> None:
        """Let a request wait."""
        latest = min(self._clock() + self._max_wait_s, request.deadline)
        self._leave_at = min(self._leave_at, latest) if self.waiting else latest
        self.waiting.append(request)

    def is_due(self) -> bool:
        """Whether what waits should leave now."""
        if not self.waiting:
            return False
        return _SHARE * len(self.waiting) >= self.in_flight + self._arriving() or self._clock() >= self._leave_at

    def due_in_s(self) -> float:
        """Return the seconds until what waits leaves whatever happens."""
        return max(0.0, self._leave_at - self._clock())

    def remove(self, request: WaitingT) -> bool:
        """Take a request back; False when it has left already."""
        try:
            self.waiting.remove(request)
        except ValueError:
            return False
        return True

    def take(self, limit: int | None = None) -> list[WaitingT]:
        """Return everything that waits, or the first of it; it has left."""
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:] if limit is not None else []
        return taken
