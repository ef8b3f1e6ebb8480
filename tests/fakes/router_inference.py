"""An inference replica for the router's tests: the coalescing stream over real gRPC and as frames, with its faults."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.inference.v1 import inference_service_pb2_grpc as inference_rpc

from services.common.frames import FrameLink
from tests.fakes.router_models import COMPUTE


@dataclass(frozen=True)
class Item:
    """One request of a batch."""

    id: int
    rows: int
    timeout_us: int
    attempt: int
    traceparent: str
    tenant: str
    request_id: str
    criticality: int


def items_of(batch: inference_pb.InferBatch) -> list[Item]:
    count = len(batch.ids)
    columns = (
        batch.attempts or [1] * count,
        batch.traceparents or [""] * count,
        batch.tenants or [""] * count,
        batch.request_ids or [""] * count,
        batch.criticalities or [inference_pb.CRITICALITY_DEFAULT] * count,
    )
    return [Item(*row) for row in zip(batch.ids, batch.rows, batch.timeouts_us, *columns, strict=True)]


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
    word_s: float = 1.0
    """It speaks of itself so often, in seconds."""
    silent: bool = False
    """It takes everything and says nothing, as a frozen process does."""
    frames_address: str = ""
    """Where it says that it takes frames."""
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
            if not self.silent:
                yield self._state()
            if self.draining:
                return
            try:
                await asyncio.wait_for(changed.wait(), self.word_s)
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
            replica_id=self.replica_id,
            pool="default",
            versions=versions,
            draining=self.draining,
            frames_address=self.frames_address,
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
        draining = asyncio.ensure_future(self._tell_drain((opening.model, opening.version), answers))
        try:
            while (answer := await answers.get()) is not None:
                if not self.silent:
                    yield answer
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        finally:
            self.streams -= 1
            reading.cancel()
            draining.cancel()

    async def _tell_drain(self, key: tuple[str, str], answers: "asyncio.Queue[Any]") -> None:
        while not self.draining and key in self.ready:
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
            self.items.extend(items_of(request.batch))
            self.messages.append(len(request.batch.ids))
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
        items = items_of(batch)
        errors = {item.id: error for item in items if (error := self.refuse(item)) is not None}
        rows = sum(batch.rows)
        outputs = [
            tensor
            for tensor in COMPUTE[model](batch.tensors, rows)
            if not batch.outputs or tensor.name in batch.outputs
        ]
        if errors:
            outputs = [_without(tensor, items, errors) for tensor in outputs]
        if self.wrong_rows:
            for tensor in outputs:
                tensor.shape[0] += 1
        self.rows_run += rows
        answered = [item for item in items if item.id not in errors]
        return inference_pb.InferResults(
            ids=[item.id for item in answered],
            rows=[item.rows for item in answered],
            tensors=outputs if answered else [],
            failures=[inference_pb.InferFailure(id=ident, error=error) for ident, error in errors.items()],
            batch_size=rows,
            queue_time_us=self.queue_time_us,
        )


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


class _Aborted(Exception):
    pass


class _FramedStream:
    """One connection: hands its messages to the replica's stream, and the stream's answers back."""

    def __init__(self, replica: FakeReplica, open_streams: "set[_FramedStream]") -> None:
        self.link = FrameLink(self, 64 << 20)
        self._replica = replica
        self._open_streams = open_streams
        self._requests: asyncio.Queue[inference_pb.CoalescedInferRequest | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._status = Status()

    def opened(self) -> None:
        self._open_streams.add(self)
        self._task = asyncio.ensure_future(self._run())

    def received(self, message: bytes) -> None:
        self._requests.put_nowait(inference_pb.CoalescedInferRequest.FromString(message))

    def read_all(self) -> None:
        self._requests.put_nowait(None)

    def room(self) -> None:
        return

    def ended(self, error: Exception | None) -> None:
        self._open_streams.discard(self)
        if self._task is not None:
            self._task.cancel()

    async def abort(self, code: grpc.StatusCode, message: str) -> None:
        """Stand in for the context of a gRPC call."""
        self._status = Status(code=code.value[0], message=message)
        raise _Aborted

    async def _run(self) -> None:
        async def requests() -> AsyncIterator[inference_pb.CoalescedInferRequest]:
            while (request := await self._requests.get()) is not None:
                yield request

        try:
            async for response in self._replica.CoalescedInfer(requests(), self):
                self.link.send(response.SerializeToString())
        except _Aborted:
            self.link.send(inference_pb.CoalescedInferResponse(ended=self._status).SerializeToString())
        self.link.close()


class ReplicaServer:
    """A replica's listeners."""

    def __init__(self, server: grpc.aio.Server, frames: asyncio.Server, streams: set[_FramedStream]) -> None:
        self._server = server
        self._frames = frames
        self._streams = streams

    async def stop(self, grace_s: float) -> None:
        """Close; connections are cut after so many seconds."""
        self._frames.close()
        await self._server.stop(grace_s)
        for stream in list(self._streams):
            stream.link.abort()


async def serve_replica(replica: FakeReplica, address: str = "127.0.0.1:0") -> tuple[ReplicaServer, int]:
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = grpc.aio.server(options=options)
    inference_rpc.add_InferenceServiceServicer_to_server(replica, server)
    port = server.add_insecure_port(address)
    streams: set[_FramedStream] = set()
    frames = await asyncio.get_running_loop().create_server(
        lambda: _FramedStream(replica, streams).link, "127.0.0.1", 0
    )
    replica.frames_address = f"tcp:{frames.sockets[0].getsockname()[1]}"
    await server.start()
    return ReplicaServer(server, frames, streams), port
