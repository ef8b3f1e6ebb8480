"""How many calls the process answers at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.router.domain.failure import TooManyCalls


class Admission:
    """Counts calls and refuses those beyond the limit: a queue nobody bounds serves nobody."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_flight = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count one call while the block runs; raises TooManyCalls at the limit."""
        if self.in_flight >= self._limit:
            raise TooManyCalls(self._limit)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
