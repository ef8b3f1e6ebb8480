"""One coalescing stream: requests for one version to one replica, gathered by the share rule."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from interlock.inference.v1 import inference_service_pb2 as inference_pb

from services.common.call import Call
from services.common.errors import MESSAGE_TOO_LARGE, ResourceExhausted, ServiceError
from services.router.adapters.inference_client.failure import is_expected_end, stream_ended
from services.router.adapters.inference_client.message import (
    Item,
    Outcome,
    batch_message,
    batches,
    cancel_message,
    open_message,
    split_results,
)
from services.router.domain.failure import InvalidModelOutput
from services.router.domain.gathering import Gathering
from services.router.domain.ports import Job
from services.router.domain.tensor import Tensor

if TYPE_CHECKING:
    from interlock.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

_LOG: Final = structlog.get_logger("inference_stream")
# Joined messages stay well under the limit of a message; one big request may come near it alone.
_JOINED_SHARE: Final = 4

OnSent = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How streams behave; sizes in bytes, times in seconds."""

    client_id: str
    gather_s: float
    message_limit_bytes: int
    on_sent: OnSent
    """Told of each message's number of requests."""


class InferStream:
    """A stream that lives as long as the replica holds the version; whoever runs it opens the next one."""

    def __init__(self, model: str, version: str, options: StreamOptions, on_draining: Callable[[], None]) -> None:
        self._model = model
        self._version = version
        self._options = options
        self._on_draining = on_draining
        self._gathering: Gathering[Item] = Gathering(options.gather_s, time.monotonic)
        self._ids = itertools.count(1)
        self._unanswered: dict[int, Item] = {}
        self._outbox: deque[list[Item]] = deque()
        self._withdrawn: list[int] = []
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_at = 0.0
        self._opened = False
        self.closed = False
        """Nothing more goes out; what has gone out may still be answered."""
        self.queue_time_us = 0
        """What the replica said last of its queue."""

    @property
    def in_flight(self) -> int:
        """Requests that wait here or at the replica."""
        return self._gathering.in_flight

    async def infer(self, job: Job, call: Call, attempt: int, traceparent: str) -> tuple[Tensor, ...]:
        """Return the outputs of a job's rows; raises ServiceError, HopFailed where another try may help."""
        if self.closed:
            raise stream_ended(ran=False)
        item = self._new_item(job, call, attempt, traceparent)
        self._check_size(item)
        self._gathering.in_flight += 1
        self._unanswered[item.id] = item
        self._gathering.add(item)
        self._leave_when_due()
        try:
            return await item.outcome
        except asyncio.CancelledError:
            self._withdraw(item)
            raise
        finally:
            self._gathering.in_flight -= 1
            self._unanswered.pop(item.id, None)
            # One call less in flight: those that wait may be half of the rest now.
            self._leave_when_due()

    async def run(self, stub: "InferenceServiceAsyncStub") -> None:
        """Serve until the replica ends the stream or it is closed; every request gets an outcome."""
        try:
            async for response in stub.CoalescedInfer(self._outgoing()):
                self._take(response)
        except grpc.aio.AioRpcError as error:
            write = _LOG.info if is_expected_end(error) else _LOG.error
            write("stream_ended", model=self._model, version=self._version, code=error.code().name)
        finally:
            self.close()
            for item in list(self._unanswered.values()):
                self._settle(item, stream_ended(ran=item.sent))

    def close(self) -> None:
        """Send nothing more and fail what has not left, so that it goes elsewhere."""
        self.closed = True
        self._stop_timer()
        unsent = self._gathering.take() + [item for batch in self._outbox for item in batch]
        self._outbox.clear()
        for item in unsent:
            self._settle(item, stream_ended(ran=False))
        self._wake.set()

    def _new_item(self, job: Job, call: Call, attempt: int, traceparent: str) -> Item:
        return Item(
            id=next(self._ids),
            job=job,
            deadline=call.deadline,
            traceparent=traceparent,
            request_id=call.request_id,
            tenant=call.principal,
            attempt=attempt,
            outcome=asyncio.get_running_loop().create_future(),
        )

    def _check_size(self, item: Item) -> None:
        if item.size_bytes > self._options.message_limit_bytes:
            limit = self._options.message_limit_bytes
            raise ResourceExhausted(
                f"the tensors of the request have about {item.size_bytes} bytes, a message may have {limit}",
                reason=MESSAGE_TOO_LARGE,
                metadata={"size_bytes": str(item.size_bytes), "limit_bytes": str(limit)},
            )

    def _leave_when_due(self) -> None:
        if not self._opened or self.closed or not self._gathering.waiting:
            return
        if self._gathering.is_due():
            self._leave()
            return
        due_in_s = self._gathering.due_in_s()
        # The rule's clock, not the timer's own time: uvloop's handles of less than a millisecond have none.
        due_at = time.monotonic() + due_in_s
        if self._timer is None or due_at < self._timer_due_at:
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_later(due_in_s, self._leave)
            self._timer_due_at = due_at

    def _leave(self) -> None:
        self._stop_timer()
        self._outbox.extend(batches(self._gathering.take(), self._options.message_limit_bytes // _JOINED_SHARE))
        self._wake.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _withdraw(self, item: Item) -> None:
        if item.sent:
            self._withdrawn.append(item.id)
            self._wake.set()
        else:
            self._gathering.remove(item)

    async def _outgoing(self) -> AsyncIterator[inference_pb.CoalescedInferRequest]:
        yield open_message(self._model, self._version, self._options.client_id)
        while not self.closed:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                # Those whose callers have gone since need not travel.
                items = [item for item in self._outbox.popleft() if not item.outcome.done()]
                if items:
                    yield self._sent(items)
            if self._withdrawn:
                ids, self._withdrawn = self._withdrawn, []
                yield cancel_message(ids)

    def _sent(self, items: list[Item]) -> inference_pb.CoalescedInferRequest:
        for item in items:
            item.sent = True
        self._options.on_sent(len(items))
        return batch_message(items, time.monotonic())

    def _take(self, response: inference_pb.CoalescedInferResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "results":
            self.queue_time_us = response.results.queue_time_us
            for item_id, rows, outcome in split_results(response.results):
                self._answer(item_id, rows, outcome)
        elif kind == "opened":
            self._opened = True
            self._leave_when_due()
        elif kind == "draining":
            self.close()
            self._on_draining()

    def _answer(self, item_id: int, rows: int, outcome: Outcome) -> None:
        item = self._unanswered.get(item_id)
        if item is None:
            return
        if not isinstance(outcome, ServiceError) and rows != item.job.rows:
            outcome = InvalidModelOutput(f"want {item.job.rows} rows, got {rows}")
        self._settle(item, outcome)

    def _settle(self, item: Item, outcome: Outcome) -> None:
        if item.outcome.done():
            return
        if isinstance(outcome, ServiceError):
            item.outcome.set_exception(outcome)
        else:
            item.outcome.set_result(outcome)
