"""How many calls the process answers at a time."""

from types import TracebackType

from services.router.domain.failure import TooManyCalls


class Admission:
    """Counts calls and refuses those beyond the limit: a queue nobody bounds serves nobody.

    A block under it is one call; entering raises TooManyCalls at the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_flight = 0

    @property
    def full(self) -> bool:
        """Whether a call would be refused."""
        return self.in_flight >= self._limit

    def __enter__(self) -> None:
        if self.full:
            raise TooManyCalls(self._limit)
        self.in_flight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.in_flight -= 1
