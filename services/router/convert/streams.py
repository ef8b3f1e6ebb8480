"""The messages of PredictStream, and PredictRowsStream in parts."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

from google.rpc.status_pb2 import Status
from interlock.router.v1 import router_service_pb2 as pb

from services.common.errors import ServiceError, Violation
from services.common.stream_answers import DEFAULT_OUTSTANDING
from services.router.convert.prediction import row_to_proto
from services.router.convert.request import check_entities, check_names, check_row_count, row_from_proto
from services.router.domain.answer import Answer
from services.router.domain.failure import InvalidField, StreamProtocol
from services.router.domain.row import Row

OUTSTANDING_LIMIT: Final = 4_096
ROWS_LIMIT: Final = 100_000
# About a batch: its rows are ready at the same time, and one message for them costs less than many.
_PART_ROWS: Final = 100


@dataclass(frozen=True, slots=True)
class StreamAsk:
    """What holds for all items of a stream."""

    model: str
    version: str
    probabilities: bool
    max_outstanding: int


def open_from_proto(request: pb.PredictStreamRequest) -> StreamAsk:
    """Return what a stream's first message asks; raises StreamProtocol and InvalidField."""
    kind = request.WhichOneof("message")
    if kind != "open":
        raise StreamProtocol("open as the first message", kind or "nothing")
    opening = request.open
    check_names(opening.model, opening.version, model_field="open.model", version_field="open.version")
    outstanding = opening.max_outstanding_items
    if not 0 <= outstanding <= OUTSTANDING_LIMIT:
        want = f"want 1 to {OUTSTANDING_LIMIT}, or 0 for the default, got {outstanding}"
        raise InvalidField([Violation("open.max_outstanding_items", want)])
    return StreamAsk(opening.model, opening.version, opening.include_probabilities, outstanding or DEFAULT_OUTSTANDING)


def item_from_proto(request: pb.PredictStreamRequest) -> Row:
    """Return the row of an item; raises StreamProtocol for another message, and InvalidArgument for illegal names."""
    kind = request.WhichOneof("message")
    if kind != "item":
        raise StreamProtocol("an item after open", kind or "an empty message")
    return _checked(request.item.row, "item.row")


def item_timeout_s(request: pb.PredictStreamRequest) -> float:
    """Return the seconds that an item leaves for its answer; 0 for the default."""
    return request.item.timeout_ms / 1_000


def refuse_item(request: pb.PredictStreamRequest, status: Status) -> pb.PredictStreamResponse:
    """Return the answer to a refused message."""
    result = pb.PredictStreamResult(id=request.item.id, result=pb.PredictRowResult(error=status))
    return pb.PredictStreamResponse(result=result)


@dataclass(frozen=True, slots=True)
class RowsPart:
    """Some rows of a PredictRowsStream; `first` is the index of the first."""

    first: int
    rows: Sequence[pb.PredictRow]

    def ByteSize(self) -> int:  # noqa: N802 - protobuf calls it so
        """Return 0: the request as a whole is counted."""
        return 0

    def read(self) -> list[Row | ServiceError]:
        """Return each row, or what is wrong with it."""
        return [self._read(index, row) for index, row in enumerate(self.rows, self.first)]

    @staticmethod
    def _read(index: int, row: pb.PredictRow) -> Row | ServiceError:
        try:
            return _checked(row, f"rows[{index}]")
        except ServiceError as error:
            return error


def check_rows_stream(request: pb.PredictRowsStreamRequest) -> None:
    """Refuse illegal names, no rows and more than 100,000."""
    check_names(request.model, request.version)
    check_row_count(len(request.rows), ROWS_LIMIT)


async def parts_of(request: pb.PredictRowsStreamRequest) -> AsyncGenerator[RowsPart, None]:
    """Yield the request in parts, in order."""
    for first in range(0, len(request.rows), _PART_ROWS):
        yield RowsPart(first, request.rows[first : first + _PART_ROWS])


def part_to_proto(
    part: RowsPart, results: Sequence[Answer | ServiceError], probabilities: bool, request_id: str
) -> pb.PredictRowsStreamResponse:
    """Return the answers to a part."""
    return _numbered(
        part, [row_to_proto(result, probabilities=probabilities, request_id=request_id) for result in results]
    )


def refuse_part(part: RowsPart, status: Status) -> pb.PredictRowsStreamResponse:
    """Return the answer to a part that failed as a whole: each of its rows did."""
    return _numbered(part, [pb.PredictRowResult(error=status)] * len(part.rows))


def _numbered(part: RowsPart, results: Sequence[pb.PredictRowResult]) -> pb.PredictRowsStreamResponse:
    numbered = [
        pb.IndexedPrediction(row_index=index, result=result) for index, result in enumerate(results, part.first)
    ]
    return pb.PredictRowsStreamResponse(predictions=numbered)


def _checked(row: pb.PredictRow, field: str) -> Row:
    found = row_from_proto(row, f"{field}.as_of_time")
    if found.entities:
        check_entities([found])
    return found
