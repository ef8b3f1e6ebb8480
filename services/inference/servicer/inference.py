"""`interlock.inference.v1.InferenceService`: the coalescing stream of the router, and what this replica holds."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from interlock.inference.v1 import inference_service_pb2 as pb

from services.common.call import Call
from services.common.tasks import spawn
from services.inference.convert.states import replica_to_proto
from services.inference.domain.failure import InvalidStreamMessage, ReplicaDraining
from services.inference.domain.replica import Replica
from services.inference.servicer.coalesced_stream import CoalescedStream
from services.inference.servicer.oip import Tracer

_REPORT_INTERVAL_S: Final = 1.0
_OUTBOX_LIMIT: Final = 256


class InferenceServicer:
    """Answers routers."""

    def __init__(self, replica: Replica, tracer: Tracer, *, limit_bytes: int, frames_address: str = "") -> None:
        self._replica = replica
        self._tracer = tracer
        self._limit_bytes = limit_bytes
        self._frames_address = frames_address

    async def CoalescedInfer(
        self, requests: AsyncIterator[pb.CoalescedInferRequest], call: Call
    ) -> AsyncIterator[pb.CoalescedInferResponse]:
        """Run rows of one version; answers come as their batches end."""
        opening = await anext(requests, None)
        if opening is None:
            raise InvalidStreamMessage("want open as the first message, got the end of the stream")
        changed, room = asyncio.Event(), asyncio.Event()
        stream = CoalescedStream(
            opening, self._replica, self._tracer, limit_bytes=self._limit_bytes, on_change=changed.set
        )
        reader = spawn(_read(requests, stream, room), name="coalesced reader")
        try:
            while True:
                while stream.outbox:
                    yield stream.outbox.popleft()
                room.set()
                if stream.over:
                    break
                await changed.wait()
                changed.clear()
            if stream.error is not None:
                raise stream.error
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            stream.abandon()

    async def WatchReplica(self, request: pb.WatchReplicaRequest, call: Call) -> AsyncIterator[pb.WatchReplicaResponse]:
        """Yield the replica's state now, on every change, and once a second."""
        while True:
            changed = self._replica.changed()
            yield replica_to_proto(self._replica, self._frames_address)
            if self._replica.draining:
                raise ReplicaDraining
            try:
                async with asyncio.timeout(_REPORT_INTERVAL_S):
                    await changed.wait()
            except TimeoutError:
                continue


async def _read(
    requests: AsyncIterator[pb.CoalescedInferRequest], stream: CoalescedStream, room: asyncio.Event
) -> None:
    """Hand messages on until the caller sends no more. What a caller who reads no answers wants is not taken either."""
    try:
        async for request in requests:
            stream.take(request)
            while len(stream.outbox) > _OUTBOX_LIMIT:
                room.clear()
                await room.wait()
    except Exception as error:  # noqa: BLE001 - it is raised where the stream is answered
        stream.read_all(error)
    else:
        stream.read_all()
