"""What can be asked of the prediction log, and what it answers."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

EVER_US = 1 << 60
"""A time after all others, microseconds."""


@dataclass(frozen=True, slots=True)
class LogQuestion:
    """A query and what its view holds."""

    sql: str
    model: str
    """Empty: all."""
    start_us: int
    end_us: int
    max_row_count: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next bytes of an Arrow IPC stream."""

    content: bytes
    truncated: bool = False
    """Whether rows were left out; only true of the last one."""


@dataclass(frozen=True, slots=True)
class PageQuestion:
    """Which predictions to list, newest first."""

    model: str
    version: str
    """Empty: all."""
    variant: str
    """Empty: all."""
    start_us: int
    end_us: int
    errors_only: bool
    labelled_only: bool
    size: int
    before: bytes
    """Only predictions with smaller ids."""


@dataclass(slots=True)
class PredictionFeedback:
    """What became of one prediction."""

    number: float | None = None
    text: str | None = None
    event_us: int | None = None
    """When the label became true; None = there is no label."""
    rewards: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoggedPrediction:
    """One prediction as the log has it: `row` holds the columns of the log's table."""

    prediction_id: bytes
    row: Mapping[str, Any]
    feedback: PredictionFeedback


class PredictionLog(Protocol):
    """The log."""

    async def get(self, prediction_id: bytes) -> LoggedPrediction | None:
        """Return one prediction; raises LogUnavailable."""

    async def page(self, question: PageQuestion) -> list[LoggedPrediction]:
        """Return predictions, newest first; fewer than asked for are the last. Raises LogUnavailable."""


class LogQueries(Protocol):
    """Runs queries."""

    def ask(self, question: LogQuestion) -> AsyncGenerator[Chunk, None]:
        """Yield the answer; raises InvalidQuery, QueryTooLarge, LogUnavailable. Closing the iterator ends the query."""
