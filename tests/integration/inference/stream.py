"""A client of the coalescing stream that matches answers to items."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import grpc
import numpy as np
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from interlock.inference.v1 import inference_service_pb2 as pb

from services.common.frames import FrameLink
from services.common.tasks import spawn


class ItemFailed(Exception):
    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.code = status.code
        info = ErrorInfo()
        self.reason = next((info.reason for detail in status.details if detail.Unpack(info)), "")


class StreamClient:
    """Sends oracle rows: one column value a row, the other its negative."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.waiting: dict[int, asyncio.Future[bytes]] = {}
        self.draining = asyncio.Event()
        self.batch_sizes: list[int] = []
        self._ids = count(1)

    def put(self, rows: "list[np.ndarray[Any, Any]]", timeout_s: float = 5.0) -> tuple[pb.InferBatch, list[int]]:
        batch = pb.InferBatch()
        ids = []
        for each in rows:
            ident = next(self._ids)
            batch.ids.append(ident)
            batch.rows.append(len(each))
            batch.timeouts_us.append(int(timeout_s * 1e6))
            self.waiting[ident] = asyncio.get_running_loop().create_future()
            ids.append(ident)
        joined = np.concatenate(rows)
        batch.tensors.add(name="x", data_type=11, shape=joined.shape, data=joined.tobytes())
        return batch, ids

    async def send(self, batch: pb.InferBatch) -> None:
        await self.call.write(pb.CoalescedInferRequest(batch=batch))

    async def infer(self, *rows: "np.ndarray[Any, Any]", timeout_s: float = 5.0) -> list[Any]:
        """Send one message; return an answer or an exception for each item."""
        batch, ids = self.put(list(rows), timeout_s)
        futures = [self.waiting[ident] for ident in ids]
        await self.send(batch)
        return await asyncio.gather(*futures, return_exceptions=True)

    async def read(self) -> None:
        while (message := await self.call.read()) is not grpc.aio.EOF:
            if message.HasField("draining"):
                self.draining.set()
            if message.HasField("results"):
                self._take(message.results)

    def _take(self, results: pb.InferResults) -> None:
        first = 0
        width = results.tensors[0].shape[1] * 4 if results.tensors else 0
        for failure in results.failures:
            for ident in (failure.id, *failure.further_ids):
                future = self.waiting.pop(ident)
                if not future.cancelled():
                    future.set_exception(ItemFailed(failure.error))
        for ident, rows in zip(results.ids, results.rows, strict=True):
            future = self.waiting.pop(ident)
            if not future.cancelled():
                self.batch_sizes.append(results.batch_size)
                future.set_result(results.tensors[0].data[first * width : (first + rows) * width])
            first += rows


class FramedCall:
    """A stream as frames, with the methods of gRPC's call."""

    def __init__(self) -> None:
        self.link = FrameLink(self, 64 << 20)
        self.answers: asyncio.Queue[pb.CoalescedInferResponse | None] = asyncio.Queue()
        self.status = Status()
        self.error: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_over = asyncio.Event()

    def opened(self) -> None:
        self.is_open.set()

    def received(self, message: bytes) -> None:
        response = pb.CoalescedInferResponse.FromString(message)
        if response.HasField("ended"):
            self.status = response.ended
        else:
            self.answers.put_nowait(response)

    def read_all(self) -> None:
        self.link.close()

    def room(self) -> None:
        raise AssertionError("the service reads what it is sent")

    def ended(self, error: Exception | None) -> None:
        self.error = error
        self.is_over.set()
        self.answers.put_nowait(None)

    async def write(self, message: pb.CoalescedInferRequest) -> None:
        self.link.send(message.SerializeToString())

    async def done_writing(self) -> None:
        self.link.stop_sending()

    async def read(self) -> Any:
        return await self.answers.get() or grpc.aio.EOF

    async def code(self) -> grpc.StatusCode:
        await self.is_over.wait()
        return next(code for code in grpc.StatusCode if code.value[0] == self.status.code)

    def cancel(self) -> None:
        self.link.abort()


async def open_call(own: Any, form: str = "grpc") -> Any:
    """Return a stream to the service, over gRPC or as frames, in which nothing has been said yet."""
    if form == "grpc":
        return own.CoalescedInfer()
    watch = own.WatchReplica(pb.WatchReplicaRequest())
    kind, _, place = (await watch.read()).frames_address.partition(":")
    watch.cancel()
    call = FramedCall()
    if kind == "unix":
        await asyncio.get_running_loop().create_unix_connection(lambda: call.link, place)
    else:
        await asyncio.get_running_loop().create_connection(lambda: call.link, "127.0.0.1", int(place))
    await call.is_open.wait()
    return call


@asynccontextmanager
async def open_stream(own: Any, model: str, version: str, form: str = "grpc") -> AsyncIterator[StreamClient]:
    call = await open_call(own, form)
    await call.write(pb.CoalescedInferRequest(open=pb.InferOpen(model=model, version=version, client_id="test")))
    opened = await call.read()
    assert opened.HasField("opened")
    client = StreamClient(call)
    reader = spawn(_quietly(client.read()), name="stream client")
    try:
        yield client
    finally:
        call.cancel()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _quietly(work: Any) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001 - how the stream ended is asked by its code
        return


def row(*values: float) -> "np.ndarray[Any, Any]":
    """Return one row for each value."""
    return np.array([[value, -value] for value in values], dtype="<f4")
