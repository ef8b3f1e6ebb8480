"""FeatureService: values for entities now, and new values."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

import structlog
from interlock.features.v1 import feature_service_pb2 as pb

from services.common.call import Call
from services.common.errors import DRAINING, InvalidArgument, Unavailable
from services.common.refusals import request_id_of
from services.common.tasks import spawn
from services.features.convert.push import (
    acknowledgement,
    batch_from_proto,
    opened_from_proto,
    view_of,
)
from services.features.convert.push import answer_to_proto as push_answer
from services.features.convert.push import rows_from_proto as given_rows
from services.features.convert.read import answer_to_proto, as_of_from_proto, rows_from_proto
from services.features.domain.failure import QueueFull
from services.features.domain.online_read import FeatureReader, ReadPlans
from services.features.domain.ports import Column, Outcome, ViewWriter
from services.features.domain.push import Pusher, Writers, now_us
from services.features.domain.push_stream import Batch, StreamState

_TOGETHER_ROWS: Final = 5_000
_LOG: Final = structlog.get_logger(part="push")


class Metrics(Protocol):
    """What is counted of reads and pushes."""

    def read(self, views: Sequence[str], columns: Sequence[Column], rows: int, seconds: float) -> None:
        """Count a read."""

    def pushed(self, view: str, outcomes: Sequence[Outcome], refused: int) -> None:
        """Count the rows of a push."""


class PushAnswers(Protocol):
    """Answers to pushes that carried a request id."""

    async def recall(
        self, principal: str, request_id: str, request: pb.PushFeaturesRequest
    ) -> pb.PushFeaturesResponse | None:
        """Return the answer that was given before."""

    async def remember(
        self, principal: str, request_id: str, request: pb.PushFeaturesRequest, answer: pb.PushFeaturesResponse
    ) -> None:
        """Keep an answer."""


class FeatureServicer:
    """One method for each RPC of FeatureService."""

    def __init__(
        self,
        *,
        plans: ReadPlans,
        reader: FeatureReader,
        writers: Writers,
        pusher: Pusher,
        answers: PushAnswers,
        metrics: Metrics,
        draining: asyncio.Event,
        clock_tolerance_s: float,
    ) -> None:
        self._plans = plans
        self._reader = reader
        self._writers = writers
        self._pusher = pusher
        self._answers = answers
        self._metrics = metrics
        self._draining = draining
        self._tolerance_us = round(clock_tolerance_s * 1e6)

    async def ReadFeatures(self, request: pb.ReadFeaturesRequest, call: Call) -> pb.ReadFeaturesResponse:
        """Return a column for each feature asked."""
        started = time.perf_counter()
        plan = self._plans.find(request.features)
        as_of_us = as_of_from_proto(request, now_us(), self._tolerance_us)
        rows = rows_from_proto(request, with_values=plan.computes)
        columns = await self._reader.read(plan, rows, as_of_us)
        self._metrics.read(plan.views_of_features, columns, len(rows), time.perf_counter() - started)
        return answer_to_proto(plan, columns, as_of_us, include_times=request.include_times)

    async def PushFeatures(self, request: pb.PushFeaturesRequest, call: Call) -> pb.PushFeaturesResponse:
        """Take rows; each has its own result."""
        writer = self._writers.pushable(view_of(request.feature_view))
        rows = await given_rows(request.rows)
        request_id = request_id_of(request.request_id)
        if request_id:
            known = await self._answers.recall(call.principal, request_id, request)
            if known is not None:
                return known
        (results,) = await self._pusher.push(writer, [rows])
        self._count(writer, results)
        answer = push_answer(results, call.request_id)
        if request_id:
            await self._answers.remember(call.principal, request_id, request, answer)
        return answer

    async def PushFeaturesStream(
        self, requests: AsyncIterator[pb.PushFeaturesStreamRequest], call: Call
    ) -> AsyncIterator[pb.PushFeaturesStreamResponse]:
        """Take batches until the client has sent all, and acknowledge them."""
        first = await anext(requests, pb.PushFeaturesStreamRequest())
        opened = opened_from_proto(first)
        writer = self._writers.pushable(opened.view)
        _LOG.info("push_stream_opened", view=opened.view, client_id=opened.client_id)
        limit = opened.max_outstanding_rows
        yield acknowledgement(0, limit, (), call.request_id)
        inbox = _Inbox(requests, StreamState(limit), self._draining)
        try:
            while batches := await inbox.take():
                writer = self._writers.pushable(opened.view)
                results = await self._push_waiting(writer, batches)
                for found in results:
                    self._count(writer, found)
                inbox.acknowledge(batches)
                numbered = [(batch.sequence, found) for batch, found in zip(batches, results, strict=True)]
                yield acknowledgement(batches[-1].sequence, limit, numbered, call.request_id)
        finally:
            await inbox.close()
        inbox.check()

    async def _push_waiting(
        self, writer: ViewWriter, batches: Sequence[Batch]
    ) -> list[list[Outcome | InvalidArgument]]:
        """Push batches; where a unary call would be refused because too much waits, a stream waits."""
        while True:
            try:
                return await self._pusher.push(writer, [batch.rows for batch in batches])
            except QueueFull as full:
                await asyncio.sleep(full.retry_after_s or 0.0)

    def _count(self, writer: ViewWriter, results: Sequence[Outcome | InvalidArgument]) -> None:
        outcomes = [result for result in results if isinstance(result, Outcome)]
        self._metrics.pushed(writer.view.id, outcomes, len(results) - len(outcomes))


class _Inbox:
    """Batches that a task reads while earlier ones are being written; ends with the stream, an error or the drain."""

    def __init__(
        self, requests: AsyncIterator[pb.PushFeaturesStreamRequest], state: StreamState, draining: asyncio.Event
    ) -> None:
        self._state = state
        self._batches: list[Batch] = []
        self._changed = asyncio.Event()
        self._ended = False
        self._failure: Exception | None = None
        self._tasks = [spawn(self._read(requests), "push-stream"), spawn(self._end_at(draining), "push-stream-drain")]

    async def take(self) -> Sequence[Batch]:
        """Return what has come, as much as is well pushed together; nothing once the stream has ended."""
        while not self._batches and not self._ended:
            await self._changed.wait()
            self._changed.clear()
        count = rows = 0
        while count < len(self._batches) and rows < _TOGETHER_ROWS:
            rows += len(self._batches[count].rows)
            count += 1
        taken, self._batches = self._batches[:count], self._batches[count:]
        return taken

    def acknowledge(self, batches: Sequence[Batch]) -> None:
        """Let the client send as many rows more."""
        self._state.acknowledge(sum(len(batch.rows) for batch in batches))

    def check(self) -> None:
        """Raise what ended the stream, unless it was the client."""
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """End the tasks; nobody reads the stream after that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.PushFeaturesStreamRequest]) -> None:
        try:
            async for request in requests:
                if self._ended:
                    return
                batch = batch_from_proto(request)
                self._state.check(batch.sequence, len(batch.rows))
                rows = await given_rows(batch.rows, "batch.rows")
                # Not in one line with the wait: meanwhile `take` may have put another list in the place of this one.
                self._batches.append(Batch(batch.sequence, rows))
                self._changed.set()
            self._end(None)
        except Exception as error:  # noqa: BLE001 - the servicer raises it once what came before is acknowledged
            self._end(error)

    async def _end_at(self, draining: asyncio.Event) -> None:
        await draining.wait()
        self._end(
            Unavailable("the process drains; open the stream again and send what is not acknowledged", reason=DRAINING)
        )

    def _end(self, failure: Exception | None) -> None:
        if not self._ended:
            self._ended, self._failure = True, failure
            self._changed.set()
