"""The bounded queue of prediction events: what does not fit pushes the oldest out, and is counted."""

import asyncio
from collections import deque
from collections.abc import Callable

from services.router.adapters.monitor_client.columns import BATCH_ROWS_LIMIT, event_bytes
from services.router.domain.ports import PredictionEvent


class EventQueue:
    """Implements the domain's `EventSink`; bounded in predictions and in bytes."""

    def __init__(self, limit_rows: int, limit_bytes: int, on_dropped: Callable[[int], None]) -> None:
        self._limit_rows = limit_rows
        self._limit_bytes = limit_bytes
        self._on_dropped = on_dropped
        self._events: deque[tuple[PredictionEvent, int]] = deque()
        self._rows = 0
        self._bytes = 0
        self._dropped = 0
        self.filled = asyncio.Event()
        """Set once there is enough for a whole batch; who empties the queue clears it."""

    def __len__(self) -> int:
        """Return the number of predictions that wait."""
        return self._rows

    def record(self, event: PredictionEvent) -> None:
        """Take an event; the oldest ones go when there is no room."""
        size_bytes = event_bytes(event)
        self._events.append((event, size_bytes))
        self._rows += len(event.ids)
        self._bytes += size_bytes
        while self._rows > self._limit_rows or self._bytes > self._limit_bytes:
            self.count_dropped(len(self._pop().ids))
        if self._rows >= BATCH_ROWS_LIMIT:
            self.filled.set()

    def take(self, rows: int) -> list[PredictionEvent]:
        """Return the oldest events, as many as make up `rows` predictions."""
        taken: list[PredictionEvent] = []
        found = 0
        while self._events and found < rows:
            taken.append(self._pop())
            found += len(taken[-1].ids)
        return taken

    def count_dropped(self, rows: int) -> None:
        """Count predictions that the monitor will not get."""
        self._dropped += rows
        self._on_dropped(rows)

    def take_dropped(self) -> int:
        """Return how many were dropped since the last time."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def _pop(self) -> PredictionEvent:
        event, size_bytes = self._events.popleft()
        self._rows -= len(event.ids)
        self._bytes -= size_bytes
        return event
