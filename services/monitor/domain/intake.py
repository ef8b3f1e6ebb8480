"""What happens to predictions once they are in: decoded, then offered to every sink, never in anybody's way."""

import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, Final

import structlog

from services.monitor.domain.bounded_queue import BoundedQueue, Drops
from services.monitor.domain.columns import PredictionColumns
from services.monitor.domain.decode import MalformedTensor, columns_of
from services.monitor.domain.ports import PredictionSink, Versions
from services.monitor.domain.raw_batch import RawBatch

_LOG: Final = structlog.get_logger(part="intake")
PART: Final = "intake"
_REMEMBERED_BATCHES: Final = 4096


class Intake:
    """Takes batches. Each part has a queue of fixed size, and what does not fit is dropped and counted under its name."""

    def __init__(
        self,
        versions: Versions,
        sinks: Mapping[str, PredictionSink],
        drops: Drops,
        *,
        limit_bytes: int,
        sink_limit_rows: int,
        after_us: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`after_us` is the last receive time that was given before; the clock may have been set back since."""
        self._versions = versions
        self._drops = drops
        self._clock = clock
        self._last_us = after_us
        self._queue: BoundedQueue[RawBatch] = BoundedQueue(limit_bytes, lambda batch: batch.size_bytes)
        self._sinks = dict(sinks)
        self._sink_queues: dict[str, BoundedQueue[PredictionColumns]] = {
            name: BoundedQueue(sink_limit_rows, lambda columns: columns.count) for name in sinks
        }
        # A router that sends a batch again after a broken stream sends the same ids in the same order.
        self._seen: OrderedDict[int, None] = OrderedDict()

    def offer(self, batch: RawBatch) -> bool:
        """Take a batch, or drop and count it; returns False for one that came before."""
        mark = hash(batch.ids.tobytes())
        if mark in self._seen:
            self._drops.add(PART, "resent", batch.prediction_count)
            return False
        self._seen[mark] = None
        if len(self._seen) > _REMEMBERED_BATCHES:
            self._seen.popitem(last=False)
        if not self._queue.offer(batch):
            self._drops.add(PART, "queue_full", batch.prediction_count)
        return True

    def works(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """Yield what has to run in the background, by name."""
        yield PART, self._queue.work(self._spread)
        for name, queue in self._sink_queues.items():
            yield f"{PART}-{name}", queue.work(partial(self._give, name, self._sinks[name]))

    async def drained(self, *sinks: str) -> None:
        """Return once every sink, or these, have taken everything offered so far."""
        await self._queue.drained()
        for name in sinks or self._sink_queues:
            await self._sink_queues[name].drained()

    async def _spread(self, batch: RawBatch) -> None:
        info = await self._versions.get(batch.key.model, batch.key.version) if batch.key.version else None
        try:
            columns = columns_of(batch, info, self._next_time_us())
        except MalformedTensor as error:
            _LOG.warning("batch_malformed", model=batch.key.model, version=batch.key.version, error=str(error))
            self._drops.add(PART, "malformed", batch.prediction_count)
            return
        except Exception as error:  # noqa: BLE001 - whatever one batch holds, the next ones are taken
            _LOG.error("batch_not_decoded", model=batch.key.model, version=batch.key.version, exc_info=error)
            self._drops.add(PART, "failed", batch.prediction_count)
            return
        for name, queue in self._sink_queues.items():
            if not queue.offer(columns):
                self._drops.add(name, "queue_full", columns.count)

    def _next_time_us(self) -> int:
        """Return the time, later than every one before: what has been taken in is known by it."""
        self._last_us = max(self._last_us + 1, int(self._clock() * 1e6))
        return self._last_us

    async def _give(self, name: str, sink: PredictionSink, columns: PredictionColumns) -> None:
        try:
            await sink.take(columns)
        except Exception as error:  # noqa: BLE001 - one batch that a sink cannot digest must not stop the others
            _LOG.error("sink_failed", sink=name, exc_info=error)
            self._drops.add(name, "failed", columns.count)
