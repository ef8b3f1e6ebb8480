"""Reads features for rows: gathered by the share rule, under a deadline of their own, behind a breaker.

Nobody waits longer for features than that deadline, whatever the connection does, and nobody at all once the service is
known to be down: whether it is back is found out in the background, by reading what was last asked for.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from services.common.breaker import AsyncBreaker, CircuitOpen
from services.common.call import Call
from services.common.chain import REQUEST_ID_KEY, TRACEPARENT_KEY
from services.common.door_turns import Turns
from services.common.errors import ServiceError
from services.common.tasks import spawn
from services.common.tracing import Tracing
from services.router.adapters.features_client.message import (
    UnusableAnswer,
    fetched_rows,
    read_request,
    refused_rows,
    rows_limit,
    violations_of,
)
from services.router.adapters.metrics import FetchMetrics
from services.router.domain.enrichment import FeatureAsk, FetchedRow
from services.router.domain.failure import FeaturesUnavailable, InvalidField
from services.router.domain.gathering import Gathering
from services.router.domain.ports import RowReceiver

if TYPE_CHECKING:
    from interlock.features.v1.feature_service_pb2_grpc import FeatureServiceAsyncStub

_LOG: Final = structlog.get_logger("features")
_LEAST_TIMEOUT_S: Final = 0.001
# A message that got less of the time than this says nothing about the service when it runs out.
_FAIR_SHARE: Final = 0.5
_PEER_FAILED: Final = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip

Outcome = FetchedRow | ServiceError


@dataclass(eq=False, slots=True)
class _Item:
    """Rows of one request that are read together; `deadline` of `time.monotonic()`."""

    reads: "FeatureReads"
    group: "_Group"
    rows: Sequence[FeatureAsk]
    deadline: float
    traceparent: str
    request_id: str
    settle: Callable[[Sequence[Outcome] | None], None]
    """Takes what is known for each row; None where the service did not answer."""
    timer: asyncio.TimerHandle | None = None
    message: "_Message | None" = None
    """What it is read with, from when it leaves to its end."""
    over: bool = False

    def take_back(self) -> None:
        """End the read where nobody else waits for it, in features and its store too: for callers who went."""
        message = self.message
        if self.reads.end(self) and message is not None and all(fellow.over for fellow in message.items):
            message.sent.cancel()


@dataclass(slots=True)
class _Message:
    """Requests whose rows are read together."""

    items: list[_Item]
    sent: "asyncio.Task[None]"


class _Group:
    """Requests for the same features as of the same time."""

    __slots__ = ("as_of_us", "gathering", "look_due", "sources", "timer")

    def __init__(self, sources: tuple[str, ...], as_of_us: int | None, gathering: Gathering[_Item]) -> None:
        self.sources = sources
        self.as_of_us = as_of_us
        self.gathering = gathering
        self.timer: asyncio.TimerHandle | None = None
        self.look_due = False


class _TooLate(Exception):
    """A message had too little time from the start; not the service's failure."""


class FeatureReads:
    """Implements the domain's `Features`.

    `timeout_s`: longest wait of a request; one with little time left waits half of what it has, so that its policies can
    still answer. `gather_s`: longest wait for others to be read with; a lone request never waits. `arriving` counts the
    calls that are on their way in, `turns` lets those come first that are here.
    """

    def __init__(
        self,
        stub: "FeatureServiceAsyncStub",
        *,
        timeout_s: float,
        gather_s: float,
        arriving: Callable[[], int],
        turns: Turns,
        tracing: Tracing,
        metrics: FetchMetrics,
    ) -> None:
        self._stub = stub
        self._timeout_s = timeout_s
        self._gather_s = gather_s
        self._arriving = arriving
        self._turns = turns
        self._tracing = tracing
        self._metrics = metrics
        self._groups: dict[tuple[tuple[str, ...], int | None], _Group] = {}
        self._told: set[tuple[tuple[str, ...], grpc.StatusCode | None]] = set()
        self._breaker = AsyncBreaker("features", _failures, self._probe, on_state=metrics.breaker)
        self._newest: tuple[tuple[str, ...], FeatureAsk] | None = None

    async def close(self) -> None:
        """End what runs in the background."""
        await self._breaker.close()

    def begin(self, sources: tuple[str, ...], row: FeatureAsk, call: Call, receiver: RowReceiver) -> _Item | None:
        """Set out to read for one row without a task; None while the service is known to be down. Traces nothing."""
        if self._refuses(sources, row):
            return None
        started = time.perf_counter()

        def settle(outcomes: Sequence[Outcome] | None) -> None:
            self._metrics.fetched(time.perf_counter() - started)
            receiver.take_row(None if outcomes is None else outcomes[0])

        return self._add(sources, [row], call, call.traceparent, settle)

    async def read(self, sources: tuple[str, ...], rows: Sequence[FeatureAsk], call: Call) -> list[Outcome]:
        """Return what is known for each row, in order, or what is wrong with its keys; raises FeaturesUnavailable."""
        if self._refuses(sources, rows[0]):
            raise FeaturesUnavailable
        started = time.perf_counter()
        try:
            with self._tracing.span("interlock.router/features", call.traceparent) as span:
                return await self._read_all(sources, rows, call, span.traceparent)
        finally:
            self._metrics.fetched(time.perf_counter() - started)

    def end(self, item: _Item) -> bool:
        """Count out an item; returns whether it had not ended before.

        A read that takes too long goes on to its deadline without it: the breaker must hear of it.
        """
        if item.over:
            return False
        item.over = True
        if item.timer is not None:
            item.timer.cancel()
            item.timer = None
        group = item.group
        group.gathering.in_flight -= 1
        if item.message is None:
            group.gathering.remove(item)
        # They know each other: a circle for each message would keep the garbage collector busy.
        item.message = None
        if group.gathering.in_flight == 0:
            del self._groups[group.sources, group.as_of_us]
        # One request less in flight: those that wait may be half of the rest now.
        self._look_soon(group)
        return True

    def _refuses(self, sources: tuple[str, ...], row: FeatureAsk) -> bool:
        self._newest = (sources, row)
        if self._breaker.refuses:
            self._metrics.refused()
            return True
        return False

    async def _read_all(
        self, sources: tuple[str, ...], rows: Sequence[FeatureAsk], call: Call, traceparent: str
    ) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        parts: list[tuple[_Item, Sequence[int], asyncio.Future[Sequence[Outcome] | None]]] = []
        for part in _parts(rows, rows_limit(sources)):
            outcomes: asyncio.Future[Sequence[Outcome] | None] = loop.create_future()
            asked = [rows[index] for index in part]
            parts.append((self._add(sources, asked, call, traceparent, partial(_give, outcomes)), part, outcomes))
        found: dict[int, Outcome] = {}
        try:
            for _, indices, answered in parts:
                known = await answered
                if known is None:
                    raise FeaturesUnavailable
                found.update(zip(indices, known, strict=True))
        except asyncio.CancelledError:
            for item, _, _ in parts:
                item.take_back()
            raise
        finally:
            for item, _, _ in parts:
                self.end(item)
        return [found[index] for index in range(len(rows))]

    def _add(
        self,
        sources: tuple[str, ...],
        rows: Sequence[FeatureAsk],
        call: Call,
        traceparent: str,
        settle: Callable[[Sequence[Outcome] | None], None],
    ) -> _Item:
        """Let rows that are asked as of the same time wait for others."""
        as_of_us = rows[0].as_of_us
        group = self._groups.get((sources, as_of_us))
        if group is None:
            gathering: Gathering[_Item] = Gathering(self._gather_s, time.monotonic, self._arriving)
            group = self._groups[sources, as_of_us] = _Group(sources, as_of_us, gathering)
        budget_s = min(self._timeout_s, call.remaining_s() / 2)
        item = _Item(self, group, rows, time.monotonic() + budget_s, traceparent, call.request_id, settle)
        item.timer = asyncio.get_running_loop().call_later(budget_s, self._settle, item, None)
        group.gathering.in_flight += 1
        group.gathering.add(item)
        self._look_soon(group)
        return item

    def _settle(self, item: _Item, outcomes: Sequence[Outcome] | None) -> None:
        if self.end(item):
            item.settle(outcomes)

    def _look_soon(self, group: _Group) -> None:
        """Look once for all that this turn of the loop brings."""
        if not group.look_due:
            group.look_due = True
            self._turns.soon(partial(self._leave_when_due, group), gathers=self._gather_s > 0)

    def _leave_when_due(self, group: _Group) -> None:
        group.look_due = False
        gathering = group.gathering
        if not gathering.waiting:
            _stop_timer(group)
        elif gathering.is_due():
            self._leave(group)
        elif group.timer is None:
            group.timer = asyncio.get_running_loop().call_later(gathering.due_in_s(), self._leave, group)

    def _leave(self, group: _Group) -> None:
        _stop_timer(group)
        limit = rows_limit(group.sources)
        message: list[_Item] = []
        rows = 0
        for item in group.gathering.take():
            if message and rows + len(item.rows) > limit:
                self._begin_message(group, message)
                message, rows = [], 0
            message.append(item)
            rows += len(item.rows)
        if message:
            self._begin_message(group, message)

    def _begin_message(self, group: _Group, items: list[_Item]) -> None:
        message = _Message(items, spawn(self._send(group, items), "read features"))
        for item in items:
            item.message = message

    async def _send(self, group: _Group, items: Sequence[_Item]) -> None:
        """Read the rows of some requests in one message and give each its own; raises nothing but its cancellation."""
        rows = [row for item in items for row in item.rows]
        try:
            outcomes = await self._outcomes(group, rows, items)
        except Exception as error:  # noqa: BLE001 - every request of the message must get an answer
            self._tell(group, error)
            for item in items:
                self._settle(item, None)
            return
        first = 0
        for item in items:
            self._settle(item, outcomes[first : first + len(item.rows)])
            first += len(item.rows)

    def _tell(self, group: _Group, error: Exception) -> None:
        """Log a failure that is no outage, once for the same features: definitions or releases do not fit together."""
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        known = code in _PEER_FAILED or code is grpc.StatusCode.RESOURCE_EXHAUSTED
        if known or isinstance(error, (CircuitOpen, _TooLate)) or (group.sources, code) in self._told:
            return
        self._told.add((group.sources, code))
        _LOG.error(
            "features_unreadable", features=group.sources, error=type(error).__name__, code=code, text=str(error)
        )

    async def _outcomes(self, group: _Group, rows: Sequence[FeatureAsk], items: Sequence[_Item]) -> list[Outcome]:
        """Return the outcome of each row. A row that is refused must not cost the others of its message theirs.

        Rows that the refusal names have their outcome; the rest is asked again. A refusal that names none is narrowed
        down by halves.
        """
        try:
            return [*await self._call(group, rows, items)]
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            if len(rows) == 1:
                return [InvalidField(violations_of(error))]
            refused = {index: found for index, found in refused_rows(error).items() if index < len(rows)}
        if not refused:
            middle = len(rows) // 2
            halves = (rows[:middle], rows[middle:])
            first, second = await asyncio.gather(*(self._outcomes(group, half, items) for half in halves))
            return first + second
        found: dict[int, Outcome] = {index: InvalidField(violations) for index, violations in refused.items()}
        left = [index for index in range(len(rows)) if index not in found]
        if left:
            outcomes = await self._outcomes(group, [rows[index] for index in left], items)
            found.update(zip(left, outcomes, strict=True))
        return [found[index] for index in range(len(rows))]

    async def _call(self, group: _Group, rows: Sequence[FeatureAsk], items: Sequence[_Item]) -> list[FetchedRow]:
        with self._breaker.guard():
            timeout_s = max(item.deadline for item in items) - time.monotonic()
            try:
                return await self._ask(group.sources, group.as_of_us, rows, timeout_s, _metadata(items[0]))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s < _FAIR_SHARE * self._timeout_s:
                    raise _TooLate from None
                raise

    async def _probe(self) -> None:
        """Read one row of what was last asked for, also by requests that were refused at once."""
        assert self._newest is not None, "what was never asked cannot have failed"
        sources, row = self._newest
        await self._ask(sources, row.as_of_us, [row], self._timeout_s, [])

    async def _ask(
        self,
        sources: tuple[str, ...],
        as_of_us: int | None,
        rows: Sequence[FeatureAsk],
        timeout_s: float,
        metadata: list[tuple[str, str]],
    ) -> list[FetchedRow]:
        code = "UNUSABLE_ANSWER"
        try:
            response = await self._stub.ReadFeatures(
                read_request(sources, rows, as_of_us), timeout=max(timeout_s, _LEAST_TIMEOUT_S), metadata=metadata
            )
            found = fetched_rows(response, sources, len(rows))
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            self._metrics.read(len(rows), code)
        return found


def _give(waiting: "asyncio.Future[Sequence[Outcome] | None]", outcomes: Sequence[Outcome] | None) -> None:
    # A task that was cancelled hears of it a turn of the loop later.
    if not waiting.done():
        waiting.set_result(outcomes)


def _parts(rows: Sequence[FeatureAsk], limit: int) -> list[list[int]]:
    """Return the indices of rows that one message may ask for: as of the same time, not too many."""
    by_time: dict[int | None, list[int]] = {}
    for index, row in enumerate(rows):
        by_time.setdefault(row.as_of_us, []).append(index)
    return [indices[first : first + limit] for indices in by_time.values() for first in range(0, len(indices), limit)]


def _stop_timer(group: _Group) -> None:
    if group.timer is not None:
        group.timer.cancel()
        group.timer = None


def _metadata(item: _Item) -> list[tuple[str, str]]:
    """Return what the first request of a message passes on; the spans of the others end here."""
    pairs = ((REQUEST_ID_KEY, item.request_id), (TRACEPARENT_KEY, item.traceparent))
    return [(key, value) for key, value in pairs if value]


def _failures(error: BaseException) -> int:
    if isinstance(error, grpc.aio.AioRpcError):
        return int(error.code() in _PEER_FAILED)
    return int(isinstance(error, UnusableAnswer))
