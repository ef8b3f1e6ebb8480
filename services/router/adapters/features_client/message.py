"""ReadFeatures: rows to ask for, what is answered, and whose row was refused."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import grpc
from google.protobuf import struct_pb2
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from interlock.features.v1 import feature_service_pb2 as features_pb
from interlock.types.v1 import feature_value_pb2

from services.common.errors import Violation
from services.router.convert.feature_value import value_from_proto
from services.router.domain.enrichment import FeatureAsk, FeatureStatus, FetchedRow
from services.router.domain.feature import MISSING

ROWS_LIMIT: Final = 1_000
_CELLS_LIMIT: Final = 10_000
_DETAILS_KEY: Final = "grpc-status-details-bin"
_ROW_FIELD: Final = re.compile(r"rows\[(\d{1,6})\]\.?(.*)", re.DOTALL)
_STATUSES: Final = {
    features_pb.VALUE_STATUS_PRESENT: FeatureStatus.PRESENT,
    features_pb.VALUE_STATUS_STALE: FeatureStatus.STALE,
}
_INT64_END: Final = 2**63
_KINDS: Final = {float: "double_value", int: "int64_value", str: "string_value", bool: "bool_value"}
_FIELDS: Final = {"request_values": "features"}
"""What the service calls a part of a row, and what the router's caller does."""


class UnusableAnswer(Exception):
    """The answer does not have the columns and rows that were asked for."""


def rows_limit(sources: Sequence[str]) -> int:
    """Return how many rows of these features one message may ask for."""
    views = len({source.rpartition(".")[0] for source in sources})
    return max(1, min(ROWS_LIMIT, _CELLS_LIMIT // max(1, views)))


def read_request(
    sources: Sequence[str], rows: Sequence[FeatureAsk], as_of_us: int | None
) -> features_pb.ReadFeaturesRequest:
    """Return the message that asks for some rows, all as of one time."""
    request = features_pb.ReadFeaturesRequest(features=sources, include_times=True)
    for row in rows:
        values = request.rows.add(entities=row.entities).request_values
        for name, value in row.values.items():
            # In its place: a message of its own, copied there, costs three times as much.
            _put(value, values[name])
    if as_of_us is not None:
        request.as_of_time.FromMicroseconds(as_of_us)
    return request


def fetched_rows(response: features_pb.ReadFeaturesResponse, sources: Sequence[str], count: int) -> list[FetchedRow]:
    """Return what was answered for each of `count` rows; raises UnusableAnswer."""
    columns = response.columns
    if [column.feature for column in columns] != list(sources):
        raise UnusableAnswer(f"want the columns {', '.join(sources)}, got others")
    for column in columns:
        lengths = {len(column.values), len(column.statuses), len(column.ages_ms), len(column.event_times_us)}
        if lengths != {count}:
            raise UnusableAnswer(f"want {count} rows of {column.feature}, got {sorted(lengths)}")
    read_time_us = response.read_time.ToMicroseconds()
    # Column by column, and rows by zip: a hundred rows are read in one message. A number that is not 0 is no other kind.
    rows = zip(
        zip(*[[value.double_value or _plain(value) for value in column.values] for column in columns], strict=True),
        zip(
            *[[_STATUSES.get(status, FeatureStatus.MISSING) for status in column.statuses] for column in columns],
            strict=True,
        ),
        zip(*[column.ages_ms for column in columns], strict=True),
        zip(*[column.event_times_us for column in columns], strict=True),
        strict=True,
    )
    return [
        FetchedRow(values, statuses, ages_ms, event_times_us, read_time_us)
        for values, statuses, ages_ms, event_times_us in rows
    ]


def refused_rows(error: grpc.aio.AioRpcError) -> Mapping[int, list[Violation]]:
    """Return what is wrong with rows by their index in the message; nothing where the error names no row."""
    found: dict[int, list[Violation]] = {}
    for violation in _violations(error):
        match = _ROW_FIELD.fullmatch(violation.field)
        if match is not None:
            field = _own_field(match[2] or "entities")
            found.setdefault(int(match[1]), []).append(Violation(field, violation.description))
    return found


def violations_of(error: grpc.aio.AioRpcError) -> list[Violation]:
    """Return what a message of one row was refused for, in the words of the router's caller."""
    named = [found for violations in refused_rows(error).values() for found in violations]
    return named or [Violation("entities", error.details() or "want the keys that the features need, got others")]


def _violations(error: grpc.aio.AioRpcError) -> Sequence[BadRequest.FieldViolation]:
    detail = BadRequest()
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            for packed in Status.FromString(value).details:
                if packed.Unpack(detail):
                    return detail.field_violations
    return ()


def _own_field(field: str) -> str:
    head, dot, rest = field.partition(".")
    return f"{_FIELDS.get(head, head)}{dot}{rest}"


def _plain(value: feature_value_pb2.FeatureValue) -> object:
    found = value_from_proto(value)
    return None if found is MISSING else found


def _put(value: object, message: feature_value_pb2.FeatureValue) -> None:
    if value is None or (type(value) is float and math.isnan(value)):
        # A null stands in a row as NaN.
        message.null_value = struct_pb2.NULL_VALUE
    elif type(value) is int and not -_INT64_END <= value < _INT64_END:
        # What JSON gives as a number for a feature of numbers.
        message.double_value = value
    else:
        setattr(message, _KINDS[type(value)], value)
