"""Labels and rewards come in."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from interlock.monitor.v1 import feedback_service_pb2 as pb

from services.common.call import Call
from services.common.errors import Violation
from services.common.refusals import refuse, request_id_of
from services.monitor.convert.feedback import (
    FeedbackReader,
    digest_of,
    refusals_of,
    response_of,
    sequence_refusal,
)
from services.monitor.domain.feedback_desk import FeedbackDesk
from services.monitor.servicer.drain import until_drained

_DEFAULT_OUTSTANDING: Final = 16
_MOST_OUTSTANDING: Final = 64
_CLIENT_ID_LIMIT_BYTES: Final = 128


class FeedbackServicer:
    """Takes feedback, in calls and in streams."""

    def __init__(
        self,
        desk: FeedbackDesk,
        draining: asyncio.Event,
        *,
        clock_tolerance_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._desk = desk
        self._draining = draining
        self._tolerance_us = int(clock_tolerance_s * 1e6)
        self._clock = clock

    async def SendFeedback(self, request: pb.SendFeedbackRequest, call: Call) -> pb.SendFeedbackResponse:
        """Take labels or rewards, each by itself."""
        request_id = request_id_of(request.request_id)
        items = self._reader().read_all(request.feedback, "feedback")
        answer = await self._desk.take(
            items, response_of(call.request_id), request_id=request_id, digest=digest_of(request)
        )
        return pb.SendFeedbackResponse.FromString(answer)

    async def SendFeedbackStream(
        self, requests: AsyncIterator[pb.SendFeedbackStreamRequest], call: Call
    ) -> AsyncIterator[pb.SendFeedbackStreamResponse]:
        """Take batches, and acknowledge each once it is safe."""
        sequence, outstanding = -1, _DEFAULT_OUTSTANDING
        async for request in until_drained(self._draining, requests):
            if sequence < 0:
                outstanding = _outstanding(request)
                sequence = 0
                yield pb.SendFeedbackStreamResponse(max_outstanding_batches=outstanding)
                continue
            batch = _next_batch(request, sequence)
            sequence = batch.sequence
            items = self._reader().read_all(batch.feedback, "batch.feedback")
            response = pb.SendFeedbackResponse.FromString(await self._desk.take(items, response_of(call.request_id)))
            yield pb.SendFeedbackStreamResponse(
                acknowledged_sequence=sequence,
                max_outstanding_batches=outstanding,
                refusals=refusals_of(sequence, response),
            )

    def _reader(self) -> FeedbackReader:
        return FeedbackReader(int(self._clock() * 1e6), self._tolerance_us)


def _outstanding(request: pb.SendFeedbackStreamRequest) -> int:
    if not request.HasField("open"):
        raise sequence_refusal("open", "want `open` as the first message, got another")
    size, wanted = len(request.open.client_id.encode()), request.open.max_outstanding_batches
    wrong = []
    if size > _CLIENT_ID_LIMIT_BYTES:
        wrong.append(Violation("open.client_id", f"want at most {_CLIENT_ID_LIMIT_BYTES} bytes, got {size}"))
    if wanted < 0:
        wrong.append(Violation("open.max_outstanding_batches", f"want at least 0, got {wanted}"))
    refuse(wrong)
    return min(wanted or _DEFAULT_OUTSTANDING, _MOST_OUTSTANDING)


def _next_batch(request: pb.SendFeedbackStreamRequest, sequence: int) -> pb.FeedbackBatch:
    if not request.HasField("batch"):
        raise sequence_refusal("batch", "want a batch, got another message")
    if request.batch.sequence != sequence + 1:
        raise sequence_refusal("batch.sequence", f"want {sequence + 1}, got {request.batch.sequence}")
    return request.batch
