"""One coalescing stream: reads batches, submits their items, and collects answers as batches end.

Responses are built when the stream has room to send them; what waits here is bounded by the items in flight.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final

from interlock.inference.v1 import inference_service_pb2 as pb

from services.common.errors import ResourceExhausted, ServiceError, to_status
from services.inference.convert.coalesced import (
    Payload,
    check_batch,
    criticality_from_proto,
    deadline_from_proto,
    failures_to_proto,
    payload_from_proto,
    results_to_proto,
)
from services.inference.domain.failure import InvalidStreamMessage, InvalidTensors, ReplicaDraining
from services.inference.domain.item import BatchAnswer, Item, Place, Stage
from services.inference.domain.model_host import ModelHost
from services.inference.domain.replica import Replica
from services.inference.domain.version import LoadState
from services.inference.servicer.oip import Tracer

MAX_IN_FLIGHT: Final = 4_096
_FULL_RETRY_S: Final = 0.01
# What the caller sent before it read `draining` is still accepted; only after this long is the stream closed to items.
_CROSSING_S: Final = 0.25


class TooManyItems(ResourceExhausted):
    """The stream holds as many items as it may."""

    def __init__(self) -> None:
        super().__init__(
            f"{MAX_IN_FLIGHT} items of this stream are in flight, which is the most",
            reason="QUEUE_FULL",
            retry_after_s=_FULL_RETRY_S,
            metadata={"limit": str(MAX_IN_FLIGHT)},
        )


class CoalescedStream:
    """The state of one stream. It is the sink of all its items."""

    def __init__(self, replica: Replica, host: ModelHost, tracer: Tracer) -> None:
        self._replica = replica
        self._host = host
        self._tracer = tracer
        self._items: dict[int, Item] = {}
        self._ready: deque[pb.InferResults] = deque()
        self._wake = asyncio.Event()
        self._read_all = False
        self._error: BaseException | None = None
        self._told_at: float | None = None

    def deliver(self, answer: BatchAnswer, places: Sequence[Place]) -> None:
        """Take the answers of some items of one batch."""
        for place in places:
            self._forget(place.item)
        self._put(results_to_proto(answer, places, self._host.dispatcher.queue_time_s))

    def fail(self, items: Sequence[Item], error: ServiceError) -> None:
        """Take the common failure of some items."""
        failed = []
        for item in items:
            self._forget(item)
            failed.append((item.tag, to_status(error, item.request_id)))
        self._put(failures_to_proto(failed, self._host.dispatcher.queue_time_s))

    async def read(self, requests: AsyncIterator[pb.CoalescedInferRequest]) -> None:
        """Take messages until the caller sends no more. An error ends the stream through `responses`."""
        try:
            async for request in requests:
                self._take(request)
        except Exception as error:  # noqa: BLE001 - it is raised where the stream is answered
            self._error = error
        self._read_all = True
        self._wake.set()

    async def responses(self) -> AsyncGenerator[pb.CoalescedInferResponse, None]:
        """Yield answers until the caller is done or the replica drains, and every accepted item is answered."""
        with self._replica.listening(self._notice):
            while True:
                while self._ready:
                    yield pb.CoalescedInferResponse(results=self._ready.popleft())
                if self._leaving() and self._told_at is None:
                    self._told_at = time.monotonic()
                    yield pb.CoalescedInferResponse(draining=pb.InferDraining())
                if self._is_over():
                    return
                await self._wait()

    def _is_over(self) -> bool:
        """Return whether the stream ends as its caller wanted; raises what ends it otherwise."""
        if self._error is not None:
            raise self._error
        if self._items or self._ready:
            return False
        if self._closed_to_new():
            raise ReplicaDraining
        return self._read_all

    async def _wait(self) -> None:
        """Wait until something changes, or until messages that crossed `draining` had the time to arrive."""
        if not self._ready:
            limit_s = None if self._told_at is None or self._closed_to_new() else _CROSSING_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._wake.wait()
        self._wake.clear()

    def _closed_to_new(self) -> bool:
        return self._told_at is not None and time.monotonic() >= self._told_at + _CROSSING_S

    def _notice(self) -> None:
        self._wake.set()

    def abandon(self) -> None:
        """The caller is gone: take back what it waits for."""
        for item in list(self._items.values()):
            self._host.cancel(item)
        self._items.clear()

    def _take(self, request: pb.CoalescedInferRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "batch":
            self._take_batch(request.batch)
        elif kind == "cancel":
            self._take_cancel(request.cancel.ids)
        else:
            raise InvalidStreamMessage(f"want batch or cancel after open, got {kind or 'an empty message'}")

    def _take_batch(self, batch: pb.InferBatch) -> None:
        rows = check_batch(batch)
        for wanted in batch.items:
            if wanted.id in self._items:
                raise InvalidStreamMessage(f"batch.items: want an id that is not in flight, got {wanted.id}")
        self._host.dispatcher.arrived(len(batch.items))
        try:
            payload = payload_from_proto(batch, rows, self._host.spec)
        except InvalidTensors as error:
            self._host.dispatcher.gone(len(batch.items))
            self._refuse([(wanted, error) for wanted in batch.items])
            return
        self._submit(batch, payload)

    def _submit(self, batch: pb.InferBatch, payload: Payload) -> None:
        now, row = time.monotonic(), 0
        refused: list[tuple[pb.InferItem, ServiceError]] = []
        for wanted in batch.items:
            try:
                self._submit_item(wanted, payload, row, now)
            except ServiceError as error:
                refused.append((wanted, error))
            row += wanted.rows
        self._refuse(refused)
        self._host.dispatcher.pump()

    def _submit_item(self, wanted: pb.InferItem, payload: Payload, row: int, now: float) -> None:
        if len(self._items) >= MAX_IN_FLIGHT or self._closed_to_new():
            self._host.dispatcher.gone(1)
            raise ReplicaDraining if self._closed_to_new() else TooManyItems()
        item = Item(
            rows=wanted.rows,
            inputs=payload.rows(row, wanted.rows),
            key=payload.key,
            deadline=deadline_from_proto(wanted, now),
            sink=self,
            tag=wanted.id,
            criticality=criticality_from_proto(wanted.criticality),
            request_id=wanted.request_id,
            trace=self._tracer.begin(self._host.key, wanted.traceparent),
        )
        self._host.submit(item)
        self._items[wanted.id] = item

    def _take_cancel(self, ids: Sequence[int]) -> None:
        """Take items back that still wait; what runs is answered as usual, so says the contract."""
        for ident in ids:
            item = self._items.get(ident)
            if item is not None and item.stage is not Stage.RUNNING:
                del self._items[ident]
                self._host.cancel(item)
        self._wake.set()

    def _refuse(self, refused: Sequence[tuple[pb.InferItem, ServiceError]]) -> None:
        if refused:
            failed = [(wanted.id, to_status(error, wanted.request_id)) for wanted, error in refused]
            self._put(failures_to_proto(failed, self._host.dispatcher.queue_time_s))

    def _put(self, results: pb.InferResults) -> None:
        self._ready.append(results)
        self._wake.set()

    def _forget(self, item: Item) -> None:
        self._items.pop(item.tag, None)

    def _leaving(self) -> bool:
        return self._replica.draining or self._host.state is LoadState.UNLOADING
