"""PushFeatures and its stream: rows and results."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from interlock.features.v1 import feature_service_pb2 as pb

from services.common import names
from services.common.errors import InvalidArgument, Violation, to_status
from services.common.refusals import InvalidRequest
from services.features.convert.stamp import time_us
from services.features.convert.value import value_from_proto
from services.features.domain.ports import Outcome
from services.features.domain.push import ROW_LIMIT, ROWS_AT_A_TIME, GivenRow
from services.features.domain.push_stream import OUTSTANDING_LIMIT, OpenedStream

CLIENT_ID_LIMIT_BYTES: Final = 128

Result = Outcome | InvalidArgument


def view_of(name: str) -> str:
    """Return the id of a view's name; raises InvalidArgument."""
    return names.FEATURE_VIEW.parse(name, "feature_view")[0]


async def rows_from_proto(rows: Sequence[pb.FeatureRow], field: str = "rows") -> list[GivenRow]:
    """Return the rows, unchecked but for their number; raises InvalidRequest. Lets others run in between."""
    if not 0 < len(rows) <= ROW_LIMIT:
        raise InvalidRequest([Violation(field, f"want 1 to {ROW_LIMIT} rows, got {len(rows)}")])
    given: list[GivenRow] = []
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        given.extend(map(_row, rows[start : start + ROWS_AT_A_TIME]))
        await asyncio.sleep(0)
    return given


def answer_to_proto(results: Iterable[Result], call_id: str) -> pb.PushFeaturesResponse:
    """Return the results, in order."""
    answer = pb.PushFeaturesResponse()
    for result in results:
        message = answer.results.add()
        if isinstance(result, InvalidArgument):
            message.outcome = pb.PUSH_OUTCOME_REFUSED
            message.error.CopyFrom(to_status(result, call_id))
        else:
            message.outcome = pb.PushOutcome.ValueType(int(result))
    return answer


def opened_from_proto(request: pb.PushFeaturesStreamRequest) -> OpenedStream:
    """Return what a stream's first message asks for; raises InvalidArgument."""
    if request.WhichOneof("message") != "open":
        raise InvalidRequest([Violation("open", "want it as the first message, got another")])
    opened = request.open
    view = view_of(opened.feature_view)
    size_bytes = len(opened.client_id.encode())
    if size_bytes > CLIENT_ID_LIMIT_BYTES:
        text = f"want at most {CLIENT_ID_LIMIT_BYTES} bytes, got {size_bytes}"
        raise InvalidRequest([Violation("open.client_id", text)])
    if opened.max_outstanding_rows < 0:
        text = f"want 0 or more, got {opened.max_outstanding_rows}"
        raise InvalidRequest([Violation("open.max_outstanding_rows", text)])
    return OpenedStream(
        view, opened.client_id, min(opened.max_outstanding_rows or OUTSTANDING_LIMIT, OUTSTANDING_LIMIT)
    )


def batch_from_proto(request: pb.PushFeaturesStreamRequest) -> pb.PushBatch:
    """Return the batch of a later message; raises InvalidRequest for anything else."""
    if request.WhichOneof("message") != "batch":
        raise InvalidRequest([Violation("batch", "want it in every message after the first, got another")])
    return request.batch


def acknowledgement(
    sequence: int, max_outstanding_rows: int, results: Iterable[tuple[int, Sequence[Result]]], call_id: str
) -> pb.PushFeaturesStreamResponse:
    """Return the acknowledgement of every batch up to a sequence, from the results of the new ones."""
    answer = pb.PushFeaturesStreamResponse(acknowledged_sequence=sequence, max_outstanding_rows=max_outstanding_rows)
    for batch, found in results:
        for index, result in enumerate(found):
            if isinstance(result, InvalidArgument):
                answer.refusals.add(sequence=batch, row_index=index, error=to_status(result, call_id))
            elif result is not Outcome.WRITTEN:
                answer.unchanged_count += 1
    return answer


def _row(row: pb.FeatureRow) -> GivenRow:
    return GivenRow(
        keys=dict(row.entities),
        values={name: value_from_proto(value) for name, value in row.values.items()},
        event_time_us=time_us(row.event_time) if row.HasField("event_time") else None,
        event_id=row.event_id,
        known_at_us=time_us(row.known_at) if row.HasField("known_at") else None,
        has_known_at=row.HasField("known_at"),
    )
