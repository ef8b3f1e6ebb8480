"""ReadFeatures: rows asked for, and the columns of the answer.

The store keeps values in the contract's wire form, so an answer is put together from bytes: parsing them as a column is
one call into C for all rows, where a message for each value would be most of a read's cost.
"""

from collections.abc import Sequence
from typing import Final

from interlock.features.v1 import feature_service_pb2 as pb

from services.common.errors import Violation
from services.common.refusals import InvalidRequest
from services.common.wire_pieces import varint
from services.features.convert.stamp import time_us
from services.features.convert.value import value_from_proto
from services.features.domain.failure import INVALID_EVENT_TIME
from services.features.domain.online_read import ReadPlan, check_row_count
from services.features.domain.ports import Column, ReadRow

# Tag of a column's values and the length of one, for every length of a single byte.
_HEADS: Final = tuple(b"\x12" + varint(size) for size in range(128))


def rows_from_proto(request: pb.ReadFeaturesRequest, *, with_values: bool) -> list[ReadRow]:
    """Return the rows, unchecked but for their number, with their request values or without; raises InvalidRequest."""
    check_row_count(len(request.rows))
    if not with_values:
        return [ReadRow(dict(row.entities)) for row in request.rows]
    return [
        ReadRow(dict(row.entities), {name: value_from_proto(value) for name, value in row.request_values.items()})
        for row in request.rows
    ]


def as_of_from_proto(request: pb.ReadFeaturesRequest, now_us: int, tolerance_us: int) -> int:
    """Return the time that ages are measured against; raises InvalidRequest for one too far in the future."""
    if not request.HasField("as_of_time"):
        return now_us
    as_of_us = time_us(request.as_of_time)
    if as_of_us is None or not 0 <= as_of_us <= now_us + tolerance_us:
        want = f"want a time from 1970 on, at most {tolerance_us / 1e6:g} s ahead of this machine's clock"
        got = "no time" if as_of_us is None else f"one {(as_of_us - now_us) / 1e6:.3f} s ahead"
        raise InvalidRequest([Violation("as_of_time", f"{want}, got {got}")], INVALID_EVENT_TIME)
    return as_of_us


def answer_to_proto(
    plan: ReadPlan, columns: Sequence[Column], as_of_us: int, *, include_times: bool
) -> pb.ReadFeaturesResponse:
    """Return the answer."""
    answer = pb.ReadFeaturesResponse()
    answer.read_time.FromMicroseconds(as_of_us)
    for feature, column in zip(plan.features, columns, strict=True):
        message = answer.columns.add()
        message.MergeFromString(b"".join([_head(len(value)) + value for value in column.values]))
        message.feature = feature
        message.statuses.extend(column.statuses)  # type: ignore[arg-type]
        message.ages_ms.extend(column.ages_ms)
        if include_times:
            message.event_times_us.extend(column.event_times_us)
            message.known_ats_us.extend(column.known_ats_us)
    return answer


def _head(size: int) -> bytes:
    return _HEADS[size] if size < len(_HEADS) else b"\x12" + varint(size)
