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
            batch.items.add(id=ident, rows=len(each), timeout_us=int(timeout_s * 1e6))
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
        for item in results.items:
            future = self.waiting.pop(item.id)
            if future.cancelled():
                first += item.rows
                continue
            if item.HasField("error"):
                future.set_exception(ItemFailed(item.error))
                continue
            self.batch_sizes.append(item.batch_size)
            future.set_result(results.tensors[0].data[first * width : (first + item.rows) * width])
            first += item.rows


@asynccontextmanager
async def open_stream(own: Any, model: str, version: str) -> AsyncIterator[StreamClient]:
    call = own.CoalescedInfer()
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
