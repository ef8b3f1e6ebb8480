"""One push stream: batches in sequence, no more rows outstanding than agreed, acknowledged in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.common.errors import ResourceExhausted, Violation
from services.common.refusals import InvalidRequest
from services.features.domain.push import GivenRow

OUTSTANDING_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class OpenedStream:
    """What a stream's first message agreed on; `view` is an id."""

    view: str
    client_id: str
    max_outstanding_rows: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that came in one message."""

    sequence: int
    rows: Sequence[GivenRow]


class TooManyOutstanding(ResourceExhausted):
    """The client sent more rows than it may have unacknowledged."""

    def __init__(self, got: int, limit: int) -> None:
        super().__init__(
            f"want at most {limit} unacknowledged rows, got {got}",
            reason="TOO_MANY_OUTSTANDING",
            metadata={"limit": str(limit), "got": str(got)},
        )


class StreamState:
    """What came and what was acknowledged."""

    def __init__(self, max_outstanding_rows: int) -> None:
        self._limit = max_outstanding_rows
        self._last = 0
        self._outstanding_rows = 0

    def check(self, sequence: int, row_count: int) -> None:
        """Take note of a batch; raises InvalidRequest for a gap and TooManyOutstanding."""
        if sequence != self._last + 1:
            raise InvalidRequest([Violation("batch.sequence", f"want {self._last + 1}, got {sequence}")])
        self._last = sequence
        self._outstanding_rows += row_count
        if self._outstanding_rows > self._limit:
            raise TooManyOutstanding(self._outstanding_rows, self._limit)

    def acknowledge(self, row_count: int) -> None:
        """Take note of rows that are acknowledged with the next message."""
        self._outstanding_rows -= row_count
