"""interlock.router.v1.RouterService."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from interlock.router.v1 import router_service_pb2 as pb

from services.common.call import Call, Pending, Reply, answers_many, begun_by
from services.common.chain import ByteBudget, parse_message
from services.common.stream_answers import Streams, Work
from services.router.convert.prediction import prediction_to_proto, row_to_proto, rows_to_proto
from services.router.convert.request import predict_from_proto, rows_from_proto
from services.router.convert.streams import (
    RowsPart,
    check_rows_stream,
    item_from_proto,
    item_timeout_s,
    open_from_proto,
    part_to_proto,
    parts_of,
    refuse_item,
    refuse_part,
)
from services.router.domain.answer import Answer
from services.router.domain.begun import Begun
from services.router.domain.prediction import Predictor
from services.router.domain.row import Row

# What is read ahead of a slow reader of PredictRowsStream is predicted for nobody, should it go.
_PARTS_OUTSTANDING = 8


class RouterServicer:
    """Predicts by features. `row_streams` bounds the requests of PredictRowsStream, which are held while they are read."""

    def __init__(self, predictor: Predictor, streams: Streams, row_streams: ByteBudget) -> None:
        self._predictor = predictor
        self._streams = streams
        self._row_streams = row_streams

    def begin_predict(self, payload: bytes, call: Call, reply: Reply) -> Pending | None:
        """Predict one row that nobody answers but the route's first choice."""
        request = parse_message(pb.PredictRequest, payload)
        if self._predictor.may_fall(request.model, request.version):
            return None
        ask = predict_from_proto(request)

        def encode(answer: Answer) -> bytes:
            prediction = prediction_to_proto(answer, probabilities=ask.probabilities)
            return pb.PredictResponse(prediction=prediction).SerializeToString()

        return self._predictor.begin_predict(ask.model, ask.version, ask.row, call, Begun(reply, encode))

    @begun_by(begin_predict)
    async def Predict(self, request: pb.PredictRequest, call: Call) -> pb.PredictResponse:
        """Predict one row."""
        ask = predict_from_proto(request)
        answer = await self._predictor.predict(ask.model, ask.version, ask.row, call)
        return pb.PredictResponse(prediction=prediction_to_proto(answer, probabilities=ask.probabilities))

    async def PredictRows(self, request: pb.PredictRowsRequest, call: Call) -> pb.PredictRowsResponse:
        """Predict several rows, each with its own outcome."""
        ask = rows_from_proto(request)
        results = await self._predictor.predict_rows(ask.model, ask.version, ask.rows, call)
        return rows_to_proto(results, probabilities=ask.probabilities, request_id=call.request_id)

    async def PredictRowsStream(self, request: pb.PredictRowsStreamRequest, call: Call) -> AsyncGenerator[bytes, None]:
        """Predict many rows, and answer them in parts as these are ready."""
        check_rows_stream(request)
        self._predictor.check(request.model, request.version, call)

        async def answer(part: RowsPart, part_call: Call) -> pb.PredictRowsStreamResponse:
            rows = part.read()
            good = [row for row in rows if isinstance(row, Row)]
            found = iter(await self._predictor.predict_rows(request.model, request.version, good, part_call))
            results = [next(found) if isinstance(row, Row) else row for row in rows]
            return part_to_proto(part, results, request.include_probabilities, call.request_id)

        work = Work(answer, refuse_part, max_outstanding=_PARTS_OUTSTANDING)
        with self._row_streams.hold(request.ByteSize()):
            async with (
                aclosing(parts_of(request)) as parts,
                aclosing(self._streams.answers(parts, call, work)) as answers,
            ):
                async for body in answers:
                    yield body

    @answers_many
    async def PredictStream(
        self, requests: AsyncIterator[pb.PredictStreamRequest], call: Call
    ) -> AsyncGenerator[pb.PredictStreamResponse | bytes, None]:
        """Predict each row that comes, and answer it as soon as it is ready."""
        ask = open_from_proto(await anext(requests, pb.PredictStreamRequest()))
        self._predictor.check(ask.model, ask.version, call)
        opened = pb.PredictStreamOpened(max_outstanding_items=ask.max_outstanding)
        yield pb.PredictStreamResponse(opened=opened)

        async def answer(request: pb.PredictStreamRequest, item_call: Call) -> pb.PredictStreamResponse:
            found = await self._predictor.predict(ask.model, ask.version, item_from_proto(request), item_call)
            row = row_to_proto(found, probabilities=ask.probabilities, request_id=call.request_id)
            return pb.PredictStreamResponse(result=pb.PredictStreamResult(id=request.item.id, result=row))

        work = Work(answer, refuse_item, item_timeout_s, ask.max_outstanding)
        async with aclosing(self._streams.answers(requests, call, work)) as answers:
            async for body in answers:
                yield body
