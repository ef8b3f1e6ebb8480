"""One coalescing stream: requests for one version to one replica, gathered by the share rule.

What carries it, gRPC or frames, asks for `next_message` whenever `on_wake` is called, and hands over what comes.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from interlock.inference.v1 import inference_service_pb2 as inference_pb

from services.common.arrivals import no_arrivals
from services.common.call import Call
from services.common.door_turns import Turns
from services.common.errors import MESSAGE_TOO_LARGE, ResourceExhausted, ServiceError
from services.router.adapters.inference_client.failure import AttemptTimedOut, stream_ended
from services.router.adapters.inference_client.message import (
    Item,
    Outcome,
    Waiter,
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

# Joined messages stay well under the limit of a message; one big request may come near it alone.
_JOINED_SHARE: Final = 4
# Messages that wait for a peer that does not read; more requests wait unjoined, where they can still be taken back.
_OUTBOX_LIMIT: Final = 2
_BYTES_IN_FLIGHT: Final = 64 * 1024 * 1024
_ITEMS_IN_FLIGHT: Final = 4_096
# How much the newest answer counts in the time that a row takes.
_NEWEST: Final = 0.1

# A turn of the loop.
_READ_S: Final = 0.001

OnSent = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How streams behave; sizes in bytes, times in seconds."""

    client_id: str
    gather_s: float
    message_limit_bytes: int
    on_sent: OnSent
    """Told of each message's number of requests."""
    use_frames: bool = True
    """Whether messages travel as frames where a replica takes them so."""
    arriving: Callable[[], int] = no_arrivals
    """How many calls are on their way in."""
    turns: Turns = field(default_factory=Turns)
    """Those of the door, whose calls are gathered."""


class InferStream:
    """A stream that lives as long as the replica holds the version; whoever runs it opens the next one."""

    def __init__(
        self, model: str, version: str, options: StreamOptions, on_draining: Callable[["InferStream"], None]
    ) -> None:
        self.model = model
        self.version = version
        self._options = options
        self._on_draining = on_draining
        self._gathering: Gathering[Item] = Gathering(options.gather_s, time.monotonic, options.arriving)
        self._ids = itertools.count(1)
        self._unanswered: dict[int, Item] = {}
        self._outbox: deque[list[Item]] = deque()
        self._withdrawn: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_at = 0.0
        self._look_due = False
        self._patience: deque[tuple[float, int]] = deque()
        self._patience_timer: asyncio.TimerHandle | None = None
        self._items_limit = _ITEMS_IN_FLIGHT
        self._items_out = 0
        self._bytes_out = 0
        self.on_wake: Callable[[], None] = _do_nothing
        """Called when there is a message to send, or the stream is closed."""
        self.replica_id = ""
        """Who answers; empty until the stream is open."""
        self.limit_bytes = options.message_limit_bytes
        """The longest message that the replica takes."""
        self.closed = False
        """Nothing more goes out; what has gone out may still be answered."""
        self.heard_at = 0.0
        """When the replica said something last, in seconds of `time.monotonic()`."""
        self.queue_time_us = 0
        """What the replica said last of its queue."""
        self._row_us = 0.0

    @property
    def opening(self) -> inference_pb.CoalescedInferRequest:
        """The first message."""
        return open_message(self.model, self.version, self._options.client_id)

    @property
    def has_room(self) -> bool:
        """Whether the replica may be sent more: it reads what it is sent, and has not too much to answer."""
        return (
            len(self._outbox) < _OUTBOX_LIMIT
            and self._items_out < self._items_limit
            and self._bytes_out < _BYTES_IN_FLIGHT
        )

    @property
    def load(self) -> tuple[bool, float, int]:
        """What a request that comes now would find here; the least is the best place."""
        in_flight = self._gathering.in_flight
        return not self.has_room, self.queue_time_us + in_flight * self._row_us, in_flight

    async def infer(
        self, job: Job, call: Call, attempt: int, traceparent: str, patience_s: float | None = None
    ) -> tuple[Tensor, ...]:
        """Return the outputs of a job's rows; raises ServiceError, HopFailed where another try may help.

        With `patience_s` that is AttemptTimedOut after so many seconds; an answer that comes later is dropped.
        """
        outcome: asyncio.Future[tuple[Tensor, ...]] = asyncio.get_running_loop().create_future()
        item = self.begin(job, call, attempt, traceparent, outcome=outcome, patience_s=patience_s)
        try:
            return await outcome
        except (asyncio.CancelledError, AttemptTimedOut):
            self.withdraw(item)
            raise
        finally:
            self.end(item)

    def begin(
        self, job: Job, call: Call, attempt: int, traceparent: str, *, outcome: Waiter, patience_s: float | None
    ) -> Item:
        """Ask as `infer` does, for one who calls `end` when `outcome` is told, and `withdraw` before where it must not wait."""
        if self.closed:
            raise stream_ended(ran=False)
        item = self._new_item(job, call, attempt, traceparent, outcome)
        self._check_size(item)
        self._gathering.in_flight += 1
        self._unanswered[item.id] = item
        self._gathering.add(item)
        if patience_s is not None:
            self._be_patient(item, patience_s)
        self._look_soon()
        return item

    def end(self, item: Item) -> None:
        """Count out an item that was begun."""
        self._gathering.in_flight -= 1
        self._unanswered.pop(item.id, None)
        if item.left:
            self._items_out -= 1
            self._bytes_out -= item.size_bytes
        # One call less in flight: those that wait may be half of the rest now.
        self._look_soon()

    def withdraw(self, item: Item) -> None:
        """Take back an item without an answer."""
        if not item.sent:
            self._gathering.remove(item)
        elif not self.closed:
            self._withdrawn.append(item.id)
            self.on_wake()

    def next_message(self) -> list[bytes] | None:
        """Return the next message to send, in pieces, or None when there is nothing to say now."""
        while self._outbox and not self.closed:
            # Those whose callers have gone since need not travel.
            items = [item for item in self._outbox.popleft() if not item.outcome.done()]
            if items:
                return self._sent(items)
        if self._withdrawn:
            ids, self._withdrawn = self._withdrawn, []
            return cancel_message(ids)
        return None

    def has_sent(self) -> None:
        """The carrier has sent what there was: what has waited for that may leave."""
        self._leave_when_due()

    def take(self, response: inference_pb.CoalescedInferResponse) -> None:
        """Take a message of the replica."""
        self.heard_at = time.monotonic()
        kind = response.WhichOneof("message")
        if kind == "results":
            results = response.results
            self.queue_time_us = results.queue_time_us
            if results.batch_size:
                self._row_us += _NEWEST * (results.compute_us / results.batch_size - self._row_us)
            for item_id, rows, outcome in split_results(results):
                self._answer(item_id, rows, outcome)
        elif kind == "opened":
            self.replica_id = response.opened.replica_id
            self._items_limit = response.opened.max_in_flight or _ITEMS_IN_FLIGHT
            self._leave_when_due()
        elif kind == "draining":
            self.close()
            self._on_draining(self)

    def close(self) -> None:
        """Send nothing more and fail what has not left, so that it goes elsewhere."""
        if self.closed:
            return
        self.closed = True
        self._stop_timer()
        unsent = self._gathering.take() + [item for batch in self._outbox for item in batch]
        self._outbox.clear()
        for item in unsent:
            _settle(item, stream_ended(ran=False))
        self.on_wake()

    def ended(self) -> None:
        """The stream is gone: every request that it holds gets an outcome."""
        self.close()
        if self._patience_timer is not None:
            self._patience_timer.cancel()
        for item in list(self._unanswered.values()):
            _settle(item, stream_ended(ran=item.sent))

    def _new_item(self, job: Job, call: Call, attempt: int, traceparent: str, outcome: Waiter) -> Item:
        return Item(
            id=next(self._ids),
            job=job,
            deadline=call.deadline,
            traceparent=traceparent,
            request_id=call.request_id,
            tenant=call.principal,
            criticality=call.criticality,
            attempt=attempt,
            outcome=outcome,
        )

    def _check_size(self, item: Item) -> None:
        if item.size_bytes > self.limit_bytes:
            limit = self.limit_bytes
            raise ResourceExhausted(
                f"the tensors of the request have about {item.size_bytes} bytes, a message may have {limit}",
                reason=MESSAGE_TOO_LARGE,
                metadata={"size_bytes": str(item.size_bytes), "limit_bytes": str(limit)},
            )

    def _look_soon(self) -> None:
        """See whether something should leave once what has come by now is here, once for all of it."""
        if not self._look_due and self._gathering.waiting:
            self._look_due = True
            self._options.turns.soon(self._leave_when_due, gathers=self._options.gather_s > 0)

    def _leave_when_due(self) -> None:
        self._look_due = False
        if not self._gathering.waiting or not self.replica_id or self.closed or not self.has_room:
            return
        if self._gathering.is_due():
            self._leave()
            return
        due_in_s = self._gathering.due_in_s()
        # The rule's clock, not the timer's own time: uvloop's handles of less than a millisecond have none.
        due_at = time.monotonic() + due_in_s
        if self._timer is None or due_at < self._timer_due_at:
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_later(due_in_s, self._timer_fired)
            self._timer_due_at = due_at

    def _timer_fired(self) -> None:
        self._timer = None
        if self.has_room and not self.closed:
            self._leave()

    def _leave(self) -> None:
        self._stop_timer()
        leaving = self._gathering.take(self._items_limit - self._items_out)
        for item in leaving:
            item.left = True
            self._bytes_out += item.size_bytes
        self._items_out += len(leaving)
        self._outbox.extend(batches(leaving, self.limit_bytes // _JOINED_SHARE))
        self.on_wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _be_patient(self, item: Item, patience_s: float) -> None:
        # One timer for all: who came first runs out of time first, or nearly so.
        self._patience.append((time.monotonic() + patience_s, item.id))
        if self._patience_timer is None:
            self._patience_timer = asyncio.get_running_loop().call_later(patience_s, self._look_once_more)

    def _look_once_more(self) -> None:
        # Where this loop itself was held up, answers wait to be read: they are no later than this timer.
        self._patience_timer = asyncio.get_running_loop().call_later(_READ_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience_timer = None
        now = time.monotonic()
        while self._patience:
            due_at, ident = self._patience[0]
            item = self._unanswered.get(ident)
            if item is not None and due_at > now:
                delay_s = due_at - now
                self._patience_timer = asyncio.get_running_loop().call_later(delay_s, self._look_once_more)
                return
            self._patience.popleft()
            if item is not None:
                _settle(item, AttemptTimedOut(ran=item.sent))

    def _sent(self, items: list[Item]) -> list[bytes]:
        for item in items:
            item.sent = True
        self._options.on_sent(len(items))
        return batch_message(items, time.monotonic())

    def _answer(self, item_id: int, rows: int, outcome: Outcome) -> None:
        item = self._unanswered.get(item_id)
        if item is None:
            return
        if not isinstance(outcome, ServiceError) and rows != item.job.rows:
            outcome = InvalidModelOutput(f"want {item.job.rows} rows, got {rows}")
        _settle(item, outcome)


def _settle(item: Item, outcome: Outcome) -> None:
    if item.outcome.done():
        return
    if isinstance(outcome, ServiceError):
        item.outcome.set_exception(outcome)
    else:
        item.outcome.set_result(outcome)


def _do_nothing() -> None:
    """Nobody carries the stream yet."""
