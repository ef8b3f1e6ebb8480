"""The log of predictions is read."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from interlock.monitor.v1 import prediction_log_service_pb2 as pb

from services.common.call import Call
from services.monitor.convert.prediction_record import (
    next_token,
    page_from_proto,
    prediction_id_from_proto,
    question_from_proto,
    record_to_proto,
)
from services.monitor.domain.failure import PredictionNotFound
from services.monitor.domain.log_question import LogQueries, PredictionLog


class PredictionLogServicer:
    """Gives single predictions, lists them, and runs queries."""

    def __init__(self, log: PredictionLog, queries: LogQueries, clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._queries = queries
        self._clock = clock

    async def GetPredictionRecord(
        self, request: pb.GetPredictionRecordRequest, call: Call
    ) -> pb.GetPredictionRecordResponse:
        """Return one prediction."""
        found = await self._log.get(prediction_id_from_proto(request))
        if found is None:
            raise PredictionNotFound(request.prediction_id)
        return pb.GetPredictionRecordResponse(prediction_record=record_to_proto(found))

    async def ListPredictionRecords(
        self, request: pb.ListPredictionRecordsRequest, call: Call
    ) -> pb.ListPredictionRecordsResponse:
        """Return a page of predictions."""
        question, page = page_from_proto(request, int(self._clock() * 1e6))
        found = await self._log.page(question)
        return pb.ListPredictionRecordsResponse(
            prediction_records=map(record_to_proto, found), next_page_token=next_token(question, page, found)
        )

    async def QueryPredictionLog(
        self, request: pb.QueryPredictionLogRequest, call: Call
    ) -> AsyncIterator[pb.QueryPredictionLogResponse]:
        """Yield the result of a query."""
        async with aclosing(self._queries.ask(question_from_proto(request))) as chunks:
            async for chunk in chunks:
                yield pb.QueryPredictionLogResponse(arrow_stream=chunk.content, truncated=chunk.truncated)
