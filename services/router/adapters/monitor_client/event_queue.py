"""The bounded queue of prediction events: what does not fit pushes the oldest out, and is counted."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from services.router.adapters.monitor_client.columns import EventColumns, Form, form_of
from services.router.domain.ports import PredictionEvent

_BATCH_ROWS_LIMIT: Final = 2048
_BATCH_LIMIT_BYTES: Final = 4 * 1024 * 1024
_BATCHES_AT_LEAST: Final = 4
"""What is pushed out is a batch: so large a part of all that may wait at most."""


class EventQueue:
    """Implements the domain's `EventSink`; bounded in predictions and in bytes, kept as the batches that will leave."""

    def __init__(self, limit_rows: int, limit_bytes: int, on_dropped: Callable[[int], None]) -> None:
        self._limit_rows = limit_rows
        self._limit_bytes = limit_bytes
        self._on_dropped = on_dropped
        self._batch_rows = min(_BATCH_ROWS_LIMIT, max(1, limit_rows // _BATCHES_AT_LEAST))
        self._batch_bytes = min(_BATCH_LIMIT_BYTES, max(1, limit_bytes // _BATCHES_AT_LEAST))
        self._full: deque[EventColumns] = deque()
        self._filling: dict[Form, EventColumns] = {}
        self._rows = 0
        self._bytes = 0
        self._dropped = 0
        self.filled = asyncio.Event()
        """Set once there is enough for a whole batch; who empties the queue clears it."""

    def __len__(self) -> int:
        """Return the number of batches that wait."""
        return len(self._full) + len(self._filling)

    def record(self, event: PredictionEvent) -> None:
        """Take an event; the oldest batch goes when there is no room."""
        rows = len(event.ids)
        if not rows:
            return
        form, data, size_bytes = form_of(event)
        columns = self._filling.get(form)
        if columns is not None and (
            len(columns) + rows > self._batch_rows or columns.size_bytes + size_bytes > self._batch_bytes
        ):
            self._full.append(self._filling.pop(form))
            columns = None
        if columns is None:
            columns = self._filling[form] = EventColumns(event)
        columns.add(event, data, size_bytes)
        self._rows += rows
        self._bytes += size_bytes
        while self._rows > self._limit_rows or self._bytes > self._limit_bytes:
            self.count_dropped(len(self.take()))
        if self._rows >= _BATCH_ROWS_LIMIT:
            self.filled.set()

    def take(self) -> EventColumns:
        """Return the oldest batch; there is one."""
        columns = self._full.popleft() if self._full else self._filling.pop(next(iter(self._filling)))
        self._rows -= len(columns)
        self._bytes -= columns.size_bytes
        return columns

    def count_dropped(self, rows: int) -> None:
        """Count predictions that the monitor will not get."""
        self._dropped += rows
        self._on_dropped(rows)

    def take_dropped(self) -> int:
        """Return how many were dropped since the last time."""
        dropped, self._dropped = self._dropped, 0
        return dropped
