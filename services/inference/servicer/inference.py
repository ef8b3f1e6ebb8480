"""`interlock.inference.v1.InferenceService`: the coalescing stream of the router, and what this replica holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from interlock.inference.v1 import inference_service_pb2 as pb

from services.common.call import Call
from services.common.names import parse_id
from services.common.tasks import spawn
from services.inference.convert.coalesced import open_from_proto
from services.inference.convert.states import replica_to_proto
from services.inference.domain.failure import InvalidStreamMessage, ReplicaDraining
from services.inference.domain.replica import Replica
from services.inference.servicer.coalesced_stream import CoalescedStream
from services.inference.servicer.oip import Tracer

_REPORT_INTERVAL_S: Final = 1.0


class InferenceServicer:
    """Answers routers."""

    def __init__(self, replica: Replica, tracer: Tracer) -> None:
        self._replica = replica
        self._tracer = tracer

    async def CoalescedInfer(
        self, requests: AsyncIterator[pb.CoalescedInferRequest], call: Call
    ) -> AsyncIterator[pb.CoalescedInferResponse]:
        """Run rows of one version; answers come as their batches end."""
        opened = await self._open(requests)
        if self._replica.draining:
            raise ReplicaDraining
        host = self._replica.find_ready(parse_id(opened.model, "model"), parse_id(opened.version, "version"))
        yield pb.CoalescedInferResponse(
            opened=pb.InferOpened(replica_id=self._replica.replica_id, max_batch_size=host.max_batch_size)
        )
        stream = CoalescedStream(self._replica, host, self._tracer)
        reader = spawn(stream.read(requests), name="coalesced reader")
        try:
            async with aclosing(stream.responses()) as responses:
                async for response in responses:
                    yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            stream.abandon()

    async def WatchReplica(self, request: pb.WatchReplicaRequest, call: Call) -> AsyncIterator[pb.WatchReplicaResponse]:
        """Yield the replica's state now, on every change, and once a second."""
        while True:
            changed = self._replica.changed()
            yield replica_to_proto(self._replica)
            if self._replica.draining:
                raise ReplicaDraining
            try:
                async with asyncio.timeout(_REPORT_INTERVAL_S):
                    await changed.wait()
            except TimeoutError:
                continue

    async def _open(self, requests: AsyncIterator[pb.CoalescedInferRequest]) -> pb.InferOpen:
        message = await anext(requests, None)
        if message is None:
            raise InvalidStreamMessage("want open as the first message, got the end of the stream")
        return open_from_proto(message)
