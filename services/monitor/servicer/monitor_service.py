"""Prediction events come in, counts go out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from interlock.monitor.v1 import monitor_service_pb2 as pb

from services.common.call import Call
from services.monitor.convert.prediction_batch import (
    batch_from_proto,
    counts_to_proto,
    model_filter_from_proto,
    sequence_refusal,
)
from services.monitor.domain.event_stream import EventStream, SequenceBroken, StreamTotals
from services.monitor.domain.intake import Intake
from services.monitor.domain.prediction_counts import PredictionCounts
from services.monitor.servicer.drain import until_drained


class MonitorServicer:
    """Takes prediction events, hands them on, and tells what it has counted."""

    def __init__(
        self,
        counts: PredictionCounts,
        totals: StreamTotals,
        intake: Intake,
        on_disk: Callable[[], Awaitable[None]],
        draining: asyncio.Event,
    ) -> None:
        """`on_disk` returns once what was offered to the intake is on the disk."""
        self._counts = counts
        self._totals = totals
        self._intake = intake
        self._on_disk = on_disk
        self._draining = draining

    async def RecordPredictions(
        self, requests: AsyncIterator[pb.RecordPredictionsRequest], call: Call
    ) -> pb.RecordPredictionsResponse:
        """Take batches until the router ends the stream, or the process drains; acknowledge what a crash cannot take."""
        stream = EventStream(self._totals)
        self._totals.open_stream_count += 1
        try:
            async for request in until_drained(self._draining, requests):
                self._take(stream, request)
        finally:
            self._totals.open_stream_count -= 1
        await self._on_disk()
        return pb.RecordPredictionsResponse(prediction_count=stream.prediction_count)

    async def GetPredictionCounts(
        self, request: pb.GetPredictionCountsRequest, call: Call
    ) -> pb.GetPredictionCountsResponse:
        """Return the counts of one model, or of all."""
        model = model_filter_from_proto(request)
        return counts_to_proto(self._counts.of_model(model), self._totals.dropped_count)

    def _take(self, stream: EventStream, request: pb.RecordPredictionsRequest) -> None:
        batch = batch_from_proto(request)
        try:
            stream.take(request.sequence, batch.prediction_count if batch else 0, request.dropped_count)
        except SequenceBroken as error:
            raise sequence_refusal(str(error)) from None
        if batch is not None and self._intake.offer(batch):
            self._counts.add(batch.key, ok_count=batch.ok_count, error_count=batch.error_count)
