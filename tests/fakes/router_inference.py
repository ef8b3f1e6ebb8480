"""An inference replica for the router's tests: the coalescing stream over real gRPC, with the faults that occur."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.inference.v1 import inference_service_pb2_grpc as inference_rpc

from tests.fakes.router_models import COMPUTE

Item = inference_pb.InferItem
Refuse = Callable[[Item], Status | None]


def status_of(code: grpc.StatusCode, reason: str, message: str = "because") -> Status:
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(ErrorInfo(reason=reason, domain="interlock"))
    return status


@dataclass
class FakeReplica(inference_rpc.InferenceServiceServicer):
    """Answers with the test models; every fault is a field that a test sets."""

    replica_id: str = "replica-1"
    ready: set[tuple[str, str]] = field(default_factory=set)
    queue_time_us: int = 0
    delay_s: float = 0.0
    """Before each answer."""
    hold: asyncio.Event | None = None
    """Answers wait for it."""
    refuse: Refuse = lambda _: None
    break_after_items: int | None = None
    """The stream is cut once this many items have come in."""
    wrong_rows: bool = False
    """Answers have one row too many."""
    draining: bool = False
    items: list[Item] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)
    """Items of each message."""
    cancelled: list[int] = field(default_factory=list)
    rows_run: int = 0
    streams: int = 0
    opened: list[inference_pb.InferOpen] = field(default_factory=list)
    open_calls: set[Any] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()

    def set_ready(self, versions: Iterable[tuple[str, str]]) -> None:
        self.ready = set(versions)
        self._notify()

    def drain(self) -> None:
        self.draining = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def WatchReplica(
        self, request: inference_pb.WatchReplicaRequest, context: Any
    ) -> AsyncIterator[inference_pb.WatchReplicaResponse]:
        while True:
            changed = self._changed
            yield self._state()
            if self.draining:
                return
            try:
                await asyncio.wait_for(changed.wait(), 1.0)
            except TimeoutError:
                continue

    def _state(self) -> inference_pb.WatchReplicaResponse:
        versions = [
            inference_pb.VersionState(
                model=model,
                version=version,
                state=inference_pb.LOAD_STATE_READY,
                queue_time_us=self.queue_time_us,
            )
            for model, version in sorted(self.ready)
        ]
        return inference_pb.WatchReplicaResponse(
            replica_id=self.replica_id, pool="default", versions=versions, draining=self.draining
        )

    async def CoalescedInfer(
        self, requests: AsyncIterator[inference_pb.CoalescedInferRequest], context: Any
    ) -> AsyncIterator[inference_pb.CoalescedInferResponse]:
        opening = (await anext(requests)).open
        if (opening.model, opening.version) not in self.ready:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not loaded")
        self.streams += 1
        self.opened.append(opening)
        answers: asyncio.Queue[inference_pb.CoalescedInferResponse | None] = asyncio.Queue()
        opened = inference_pb.InferOpened(replica_id=self.replica_id, max_batch_size=64)
        yield inference_pb.CoalescedInferResponse(opened=opened)
        reading = asyncio.ensure_future(self._read(requests, opening.model, answers))
        draining = asyncio.ensure_future(self._tell_drain(answers))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        finally:
            self.streams -= 1
            reading.cancel()
            draining.cancel()

    async def _tell_drain(self, answers: "asyncio.Queue[Any]") -> None:
        while not self.draining:
            await self._changed.wait()
        await answers.put(inference_pb.CoalescedInferResponse(draining=inference_pb.InferDraining()))

    async def _read(
        self, requests: AsyncIterator[inference_pb.CoalescedInferRequest], model: str, answers: "asyncio.Queue[Any]"
    ) -> None:
        running: set[asyncio.Future[None]] = set()
        async for request in requests:
            if request.HasField("cancel"):
                self.cancelled.extend(request.cancel.ids)
                continue
            self.items.extend(request.batch.items)
            self.messages.append(len(request.batch.items))
            if self.break_after_items is not None and len(self.items) >= self.break_after_items:
                self.break_after_items = None
                await answers.put(None)
                return
            task = asyncio.ensure_future(self._answer(request.batch, model, answers))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running)
        # The caller sends nothing more: everything is answered, so the stream may end.
        await answers.put(None)

    async def _answer(self, batch: inference_pb.InferBatch, model: str, answers: "asyncio.Queue[Any]") -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await answers.put(inference_pb.CoalescedInferResponse(results=self._results(batch, model)))

    def _results(self, batch: inference_pb.InferBatch, model: str) -> inference_pb.InferResults:
        errors = {item.id: error for item in batch.items if (error := self.refuse(item)) is not None}
        rows = sum(item.rows for item in batch.items)
        outputs = [
            tensor
            for tensor in COMPUTE[model](batch.tensors, rows)
            if not batch.outputs or tensor.name in batch.outputs
        ]
        if errors:
            outputs = [_without(tensor, batch.items, errors) for tensor in outputs]
        if self.wrong_rows:
            for tensor in outputs:
                tensor.shape[0] += 1
        self.rows_run += rows
        results = inference_pb.InferResults(tensors=outputs, queue_time_us=self.queue_time_us)
        for item in batch.items:
            failed = errors.get(item.id)
            results.items.add(id=item.id, rows=0 if failed else item.rows, error=failed, batch_size=rows)
        return results


def _without(tensor: Any, items: Iterable[Item], errors: dict[int, Status]) -> Any:
    total = sum(item.rows for item in items)
    size = len(tensor.data) // total
    kept, position, rows = [], 0, 0
    for item in items:
        if item.id not in errors:
            kept.append(tensor.data[position : position + size * item.rows])
            rows += item.rows
        position += size * item.rows
    tensor.data = b"".join(kept)
    tensor.shape[0] = rows
    return tensor


async def serve_replica(replica: FakeReplica, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, int]:
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = grpc.aio.server(options=options)
    inference_rpc.add_InferenceServiceServicer_to_server(replica, server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port
