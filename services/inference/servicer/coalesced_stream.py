"""One coalescing stream, whatever carries it: takes batches, submits their items, collects answers as batches end.

What carries it, gRPC or frames, sends what stands in `outbox` while its peer reads, and ends when the stream is `over`.
What waits there is bounded by the items in flight.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from google.rpc.status_pb2 import Status
from interlock.inference.v1 import inference_service_pb2 as pb

from services.common.criticality import Criticality
from services.common.errors import MESSAGE_TOO_LARGE, ResourceExhausted, ServiceError, to_status
from services.common.names import parse_id
from services.inference.convert.coalesced import (
    Payload,
    Requests,
    failures_to_proto,
    open_from_proto,
    payload_from_proto,
    requests_from_proto,
    results_to_proto,
    size_of,
    split_by_size,
)
from services.inference.domain.failure import InvalidStreamMessage, InvalidTensors, QueueFull, ReplicaDraining
from services.inference.domain.item import BatchAnswer, Item, Place, Stage
from services.inference.domain.replica import Replica
from services.inference.domain.version import LoadState
from services.inference.servicer.oip import Tracer

MAX_IN_FLIGHT: Final = 4_096
_FULL_RETRY_S: Final = 0.01
# What the caller sent before it read `draining` is still accepted; only after this long is the stream closed to items.
_CROSSING_S: Final = 0.25
# Joined answers stay well under the limit of a message; one big answer may come near it alone.
_JOINED_SHARE: Final = 4
# What a message has beside the values of its tensors, and more.
_OVERHEAD_BYTES: Final = 1024
# Deadlines that differ by less of what is left are alike to an estimate.
_ALIKE: Final = 0.02


class TooManyItems(ResourceExhausted):
    """The stream holds as many items as it may."""

    def __init__(self) -> None:
        super().__init__(
            f"{MAX_IN_FLIGHT} items of this stream are in flight, which is the most",
            reason="QUEUE_FULL",
            retry_after_s=_FULL_RETRY_S,
            metadata={"limit": str(MAX_IN_FLIGHT)},
        )


@dataclass(slots=True)
class _Refusal:
    """A request of a message that the queue had no room for, and what it was told: so are those like it after it."""

    item: Item
    error: QueueFull
    within_s: float
    ids: list[int]
    """Who is told so, the first one included."""

    def covers(self, rows: int, deadline: float, traceparent: str) -> bool:
        """Whether a later request of the same message and criticality is like it, or larger. Nothing leaves meanwhile."""
        return rows >= self.item.rows and abs(deadline - self.item.deadline) < self.within_s and not traceparent


class CoalescedStream:
    """The state of one stream, from its `open`. It is the sink of all its items.

    `on_change` is called when there is something in `outbox`, or the stream is over. The constructor raises ServiceError
    where the stream cannot be opened.
    """

    def __init__(
        self,
        opening: pb.CoalescedInferRequest,
        replica: Replica,
        tracer: Tracer,
        *,
        limit_bytes: int,
        on_change: Callable[[], None],
    ) -> None:
        opened = open_from_proto(opening)
        if replica.draining:
            raise ReplicaDraining
        self._host = replica.find_ready(parse_id(opened.model, "model"), parse_id(opened.version, "version"))
        self._replica = replica
        self._tracer = tracer
        self._limit_bytes = limit_bytes
        self._on_change = on_change
        self._items: dict[int, Item] = {}
        self._read_all = False
        self._told = False
        self._closed_to_new = False
        self._timer: asyncio.TimerHandle | None = None
        self.over = False
        """Whether nothing more comes out."""
        self.error: BaseException | None = None
        """Why it is over; None when its caller wanted it so."""
        self.outbox: deque[pb.CoalescedInferResponse] = deque()
        answer = pb.InferOpened(
            replica_id=replica.replica_id, max_batch_size=self._host.max_batch_size, max_in_flight=MAX_IN_FLIGHT
        )
        self.outbox.append(pb.CoalescedInferResponse(opened=answer))
        self._listening = ExitStack()
        self._listening.enter_context(replica.listening(self._look))

    def take(self, request: pb.CoalescedInferRequest) -> None:
        """Take a message. One that breaks the rules ends the stream."""
        if self.over:
            return
        try:
            self._take(request)
        except Exception as error:  # noqa: BLE001 - it is told to the caller, as the end of its stream
            self.read_all(error)

    def read_all(self, error: BaseException | None = None) -> None:
        """The caller sends nothing more; with an error the stream is over at once."""
        self._read_all = True
        self.error = self.error or error
        self._look()

    def abandon(self) -> None:
        """Nobody listens any more: take back what is still wanted."""
        self.over = True
        self._listening.close()
        if self._timer is not None:
            self._timer.cancel()
        for item in list(self._items.values()):
            self._host.cancel(item)
        self._items.clear()

    def deliver(self, answer: BatchAnswer, places: Sequence[Place]) -> None:
        """Take the answers of some items of one batch."""
        for place in places:
            self._forget(place.item)
        limit_bytes = self._limit_bytes // _JOINED_SHARE
        if answer.size_bytes <= limit_bytes:
            self._put(results_to_proto(answer, places, self._host.dispatcher.queue_time_s))
            return
        for group in split_by_size(answer, places, limit_bytes):
            if len(group) == 1 and (size_bytes := size_of(answer, group[0])) > self._limit_bytes - _OVERHEAD_BYTES:
                item = group[0].item
                self._refuse([([item.tag], to_status(self._too_large(size_bytes), item.request_id))])
            else:
                self._put(results_to_proto(answer, group, self._host.dispatcher.queue_time_s))

    def fail(self, items: Sequence[Item], error: ServiceError) -> None:
        """Take the common failure of some items."""
        for item in items:
            self._forget(item)
        self._refuse([([item.tag for item in items], to_status(error, items[0].request_id))])

    def _take(self, request: pb.CoalescedInferRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "batch":
            self._take_batch(request.batch)
        elif kind == "cancel":
            self._take_cancel(request.cancel.ids)
        else:
            raise InvalidStreamMessage(f"want batch or cancel after open, got {kind or 'an empty message'}")

    def _take_batch(self, batch: pb.InferBatch) -> None:
        requests = requests_from_proto(batch, time.monotonic())
        if not self._items.keys().isdisjoint(requests.ids):
            raise InvalidStreamMessage("batch.ids: want ids that are not in flight, got one that is")
        self._host.dispatcher.arrived(len(requests.ids))
        try:
            payload = payload_from_proto(batch, sum(requests.rows), self._host.spec)
        except InvalidTensors as error:
            self._host.dispatcher.gone(len(requests.ids))
            self._refuse([(requests.ids, to_status(error, requests.request_ids[0]))])
            return
        self._submit(requests, payload)

    def _submit(self, requests: Requests, payload: Payload) -> None:
        after = 0
        refused: list[tuple[list[int], Status]] = []
        full: dict[Criticality, _Refusal] = {}
        refusals: list[_Refusal] = []
        for ident, rows, deadline, criticality, traceparent, request_id in requests:
            first, after = after, after + rows
            known = full.get(criticality)
            if known is not None and known.covers(rows, deadline, traceparent):
                known.ids.append(ident)
                continue
            item = Item(
                rows=rows,
                inputs=payload.rows(first, rows),
                key=payload.key,
                deadline=deadline,
                sink=self,
                tag=ident,
                criticality=criticality,
                request_id=request_id,
                trace=self._tracer.begin(self._host.key, traceparent),
            )
            try:
                self._submit_item(item)
            except ServiceError as error:
                ids = [ident]
                refused.append((ids, to_status(error, request_id)))
                if isinstance(error, QueueFull):
                    # With its trace it would hold this frame and the frame it, tensors and all, until garbage is collected.
                    within_s = _ALIKE * (deadline - item.arrived)
                    full[criticality] = _Refusal(item, error.with_traceback(None), within_s, ids)
                    refusals.append(full[criticality])
        for each in refusals:
            if len(each.ids) > 1:
                self._host.dispatcher.turn_away(each.item, each.error, len(each.ids) - 1)
        self._refuse(refused)
        if sum(len(ids) for ids, _ in refused) < len(requests.ids):
            self._host.dispatcher.pump()

    def _submit_item(self, item: Item) -> None:
        if len(self._items) >= MAX_IN_FLIGHT or self._closed_to_new:
            self._host.dispatcher.gone(1)
            raise ReplicaDraining if self._closed_to_new else TooManyItems()
        self._host.submit(item)
        self._items[item.tag] = item

    def _take_cancel(self, ids: Sequence[int]) -> None:
        """Take items back that still wait; what runs is answered as usual, so says the contract."""
        for ident in ids:
            item = self._items.get(ident)
            if item is not None and item.stage is not Stage.RUNNING:
                del self._items[ident]
                self._host.cancel(item)
        self._look()

    def _refuse(self, refused: Sequence[tuple[Sequence[int], Status]]) -> None:
        if refused:
            self._put(failures_to_proto(refused, self._host.dispatcher.queue_time_s))

    def _too_large(self, size_bytes: int) -> ServiceError:
        return ResourceExhausted(
            f"the outputs have {size_bytes} bytes, a message may have {self._limit_bytes}",
            reason=MESSAGE_TOO_LARGE,
            metadata={"size_bytes": str(size_bytes), "limit_bytes": str(self._limit_bytes)},
        )

    def _put(self, results: pb.InferResults) -> None:
        self.outbox.append(pb.CoalescedInferResponse(results=results))
        self._look()

    def _forget(self, item: Item) -> None:
        self._items.pop(item.tag, None)

    def _look(self) -> None:
        """Say once that this replica or version goes, and find out whether the stream is over."""
        if self.over:
            return
        if not self._told and (self._replica.draining or self._host.state is LoadState.UNLOADING):
            self._told = True
            self.outbox.append(pb.CoalescedInferResponse(draining=pb.InferDraining()))
            self._timer = asyncio.get_running_loop().call_later(_CROSSING_S, self._close_to_new)
        if self.error is not None:
            self.over = True
        elif not self._items:
            if self._closed_to_new:
                self.error = ReplicaDraining()
            self.over = self._closed_to_new or self._read_all
        self._on_change()

    def _close_to_new(self) -> None:
        self._closed_to_new = True
        self._look()
