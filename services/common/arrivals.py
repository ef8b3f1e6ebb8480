"""Calls on their way in: their headers are here, their bodies are not yet.

Who gathers requests must know of them. Of a burst of calls the first one that is read would find nobody else in flight, and
leave alone.
"""

import time
from collections.abc import Callable
from typing import Final

# Nobody waits for a caller who takes his time over the body.
_DAWDLING_S: Final = 0.020


def no_arrivals() -> int:
    """Say that nobody is known to be on the way."""
    return 0


class Arrivals:
    """Counts the calls on their way in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # In the order of age.
        self._since: dict[object, float] = {}

    def begin(self, arriving: object) -> None:
        """Count a call whose headers have come."""
        self._since[arriving] = self._clock()

    def end(self, arriving: object) -> None:
        """Count a call no more: its body has begun to come, or never will."""
        self._since.pop(arriving, None)

    def count(self) -> int:
        """Return how many calls will be here in a moment."""
        oldest = self._clock() - _DAWDLING_S
        while self._since:
            arriving = next(iter(self._since))
            if self._since[arriving] >= oldest:
                break
            del self._since[arriving]
        return len(self._since)
