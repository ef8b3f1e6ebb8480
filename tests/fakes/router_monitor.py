"""A monitor for the router's tests: keeps the batches, or is slow."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from interlock.monitor.v1 import monitor_service_pb2 as monitor_pb
from interlock.monitor.v1 import monitor_service_pb2_grpc as monitor_rpc
from interlock.monitor.v1.prediction_event_pb2 import PredictionBatch


@dataclass
class FakeMonitor(monitor_rpc.MonitorServiceServicer):
    """Takes prediction events."""

    requests: list[monitor_pb.RecordPredictionsRequest] = field(default_factory=list)
    stuck: bool = False
    """Never reads."""
    ended_streams: int = 0

    @property
    def batches(self) -> list[PredictionBatch]:
        return [request.batch for request in self.requests]

    @property
    def rows(self) -> int:
        return sum(len(batch.statuses) for batch in self.batches)

    @property
    def dropped(self) -> int:
        return sum(request.dropped_count for request in self.requests)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for batch in self.batches for status in batch.statuses)

    async def RecordPredictions(
        self, requests: AsyncIterator[monitor_pb.RecordPredictionsRequest], context: Any
    ) -> monitor_pb.RecordPredictionsResponse:
        while self.stuck:
            await asyncio.sleep(0.05)
        async for request in requests:
            self.requests.append(request)
        self.ended_streams += 1
        return monitor_pb.RecordPredictionsResponse(prediction_count=self.rows)

    async def GetPredictionCounts(self, request: monitor_pb.GetPredictionCountsRequest, context: Any) -> NoReturn:
        raise AssertionError("a router asks for no counts")


async def serve_monitor(monitor: FakeMonitor, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    monitor_rpc.add_MonitorServiceServicer_to_server(monitor, server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port
