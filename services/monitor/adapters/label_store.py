"""Labels and rewards in the database, many senders in one transaction: what was answered is on the disk."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Insert, delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.common.errors import ServiceError
from services.common.tasks import to_the_end
from services.monitor.adapters.table import FEEDBACK_ANSWER, LABEL
from services.monitor.domain.failure import FeedbackQueueFull, RequestIdReused
from services.monitor.domain.feedback import LABEL as LABEL_METRIC
from services.monitor.domain.feedback import Feedback, Held, LabelState, Outcome, judge_all
from services.monitor.domain.feedback_desk import Answered, Taken

_DAY_US: Final = 24 * 3600 * 1_000_000
_ONE_TRANSACTION: Final = 5_000
_ONE_STATEMENT: Final = 500
_C: Final = LABEL.c


@dataclass(slots=True)
class _Waiting:
    feedback: Sequence[Feedback]
    answered: Answered | None
    done: "asyncio.Future[Taken]" = field(default_factory=asyncio.Future)


class LabelStore:
    """Takes feedback and tells what is held."""

    def __init__(self, database: Database, *, queue_limit: int, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._limit = queue_limit
        self._clock = clock
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._filled = asyncio.Event()

    async def take(self, feedback: Sequence[Feedback], answered: Answered | None = None) -> Taken:
        """Keep feedback durably and return what became of it.

        Raises FeedbackQueueFull when too much waits, RequestIdReused, and what the database cannot do.
        """
        if not feedback and answered is None:
            return Taken()
        if self._queue and self._queued + len(feedback) > self._limit:
            raise FeedbackQueueFull(self._queued)
        waiting = _Waiting(feedback, answered)
        self._queue.append(waiting)
        self._queued += len(feedback)
        self._filled.set()
        return await waiting.done

    async def run(self) -> None:
        """Write what waits, for good."""
        try:
            while True:
                await self._filled.wait()
                await to_the_end(self._write(list(self._next())))
        finally:
            for waiting in self._next():
                waiting.done.cancel()

    def _next(self) -> Iterator[_Waiting]:
        size = 0
        while self._queue and (size == 0 or size + len(self._queue[0].feedback) <= _ONE_TRANSACTION):
            waiting = self._queue.popleft()
            size += len(waiting.feedback)
            self._queued -= len(waiting.feedback)
            yield waiting
        if not self._queue:
            self._filled.clear()

    async def _write(self, group: Sequence[_Waiting]) -> None:
        results: Sequence[Taken | Exception]
        try:
            results = await self._transact_again(group)
        except ServiceError as error:
            results = [error] * len(group)
        except Exception as error:  # noqa: BLE001 - its sender is told, and nobody who shared a transaction with it
            if len(group) > 1:
                for waiting in group:
                    await self._write([waiting])
                return
            results = [error]
        except BaseException:
            for waiting in group:
                waiting.done.cancel()
            raise
        for waiting, result in zip(group, results, strict=True):
            _settle(waiting, result)

    async def _transact_again(self, group: Sequence[_Waiting]) -> "list[Taken | ServiceError]":
        try:
            return await self._transact(group)
        except IntegrityError:
            # Another monitor on the same database answered the same request id just now.
            return await self._transact(group)

    async def _transact(self, group: Sequence[_Waiting]) -> list[Taken | ServiceError]:
        results: list[Taken | ServiceError] = []
        async with self._database.write() as connection:
            now_us = int(self._clock() * 1e6)
            held = await self._held(connection, [new.prediction_id for waiting in group for new in waiting.feedback])
            for waiting in group:
                before = await self._answer(connection, waiting.answered, now_us)
                if before is not None:
                    results.append(before)
                    continue
                outcomes, changes = judge_all(held, waiting.feedback)
                for key, change in changes.items():
                    new = change.feedback
                    held[key] = Held(new.number, new.text, new.event_us, change.revision)
                rows = [_row(change.feedback, change.revision, now_us) for change in changes.values()]
                if rows:
                    await connection.execute(self._upsert(), rows)
                await self._keep_answer(connection, waiting.answered, outcomes, now_us)
                results.append(Taken(tuple(outcomes)))
        return results

    async def _held(self, connection: AsyncConnection, ids: Iterable[bytes]) -> dict[tuple[bytes, str], Held]:
        found: dict[tuple[bytes, str], Held] = {}
        columns = (_C.prediction_id, _C.metric, _C.number, _C.text, _C.event_us, _C.revision)
        for some in _chunks(sorted(set(ids))):
            query = select(*columns).where(_C.prediction_id.in_(some)).with_for_update()
            for row in await connection.execute(query):
                found[row[0], row[1]] = Held(*row[2:])
        return found

    def _upsert(self) -> Insert:
        statement = self._database.insert(LABEL)
        changed = ("number", "text", "event_us", "source", "receive_us", "revision", "state", "due_us")
        found: Insert = statement.on_conflict_do_update(
            index_elements=["prediction_id", "metric"], set_={name: statement.excluded[name] for name in changed}
        )
        return found

    async def _answer(
        self, connection: AsyncConnection, answered: Answered | None, now_us: int
    ) -> Taken | ServiceError | None:
        if answered is None:
            return None
        known = FEEDBACK_ANSWER.c
        await connection.execute(
            delete(FEEDBACK_ANSWER).where(known.request_id == answered.request_id, known.create_us < now_us - _DAY_US)
        )
        query = select(known.digest, known.answer).where(known.request_id == answered.request_id)
        row = (await connection.execute(query)).first()
        if row is None:
            return None
        if row.digest != answered.digest:
            return RequestIdReused(answered.request_id)
        return Taken(answer=bytes(row.answer))

    async def _keep_answer(
        self, connection: AsyncConnection, answered: Answered | None, outcomes: Sequence[Outcome], now_us: int
    ) -> None:
        if answered is not None:
            values = {
                "request_id": answered.request_id,
                "digest": answered.digest,
                "answer": answered.encode(outcomes),
                "create_us": now_us,
            }
            await connection.execute(insert(FEEDBACK_ANSWER).values(values))


def _row(new: Feedback, revision: int, now_us: int) -> dict[str, Any]:
    return {
        "prediction_id": new.prediction_id,
        "metric": new.metric,
        "number": new.number,
        "text": new.text,
        "event_us": new.event_us,
        "source": new.source,
        "receive_us": now_us,
        "revision": revision,
        # A reward is not joined with anything.
        "state": LabelState.OPEN if new.metric == LABEL_METRIC else LabelState.JOINED,
        "due_us": now_us,
    }


def _chunks(ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(ids), _ONE_STATEMENT):
        yield ids[start : start + _ONE_STATEMENT]


def _settle(waiting: _Waiting, result: Taken | Exception) -> None:
    if waiting.done.done():
        return
    if isinstance(result, Exception):
        waiting.done.set_exception(result)
    else:
        waiting.done.set_result(result)
