"""Pushes feature values and reads them back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from interlock.features.v1 import feature_service_pb2 as pb
from interlock.features.v1 import feature_service_pb2_grpc

from interlock_sdk.channel import Caller, new_request_id
from interlock_sdk.values import Value, timestamp, values_to_proto

ROWS_IN_A_CALL: Final = 1_000
_PUSH_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """Values of one entity at one time, or one event of a view that aggregates.

    Times carry a zone. `event_id` is required for a view that aggregates; `known_at` is for backfills and replays, live
    data leave it to the service.
    """

    entities: Mapping[str, str]
    values: Mapping[str, Value]
    event_time: datetime
    event_id: str = ""
    known_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What one row is read for: keys by entity, and values that on-demand features are computed from."""

    entities: Mapping[str, str]
    request_values: Mapping[str, Value] = field(default_factory=dict)


class Features:
    """Pushes and reads; a member of `Client`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._service = feature_service_pb2_grpc.FeatureServiceStub(caller.channel)

    async def push(self, view: str, rows: Sequence[FeatureRow]) -> list[pb.PushResult]:
        """Pushes any number of rows to a view, a thousand at a time; gives what became of each, in their order.

        A row that is refused says why in its result; the others are safe. Raises CallError when a call fails: rows may be
        pushed again, the same row counts once.
        """
        results: list[pb.PushResult] = []
        for first in range(0, len(rows), ROWS_IN_A_CALL):
            request = pb.PushFeaturesRequest(
                feature_view=f"featureViews/{view}",
                rows=[_row_to_proto(row) for row in rows[first : first + ROWS_IN_A_CALL]],
                request_id=new_request_id(),
            )
            answer = await self._caller.call(self._service.PushFeatures, request, timeout_s=_PUSH_TIMEOUT_S)
            results.extend(answer.results)
        return results

    async def read(
        self, features: Sequence[str], rows: Sequence[ReadRow], *, as_of: datetime | None = None
    ) -> pb.ReadFeaturesResponse:
        """Reads features, "<view>.<feature>" or "<view>.*", for 1 to 1,000 rows. Raises CallError."""
        request = pb.ReadFeaturesRequest(
            features=features,
            rows=[
                pb.ReadRow(entities=row.entities, request_values=values_to_proto(row.request_values)) for row in rows
            ],
            include_times=True,
            as_of_time=None if as_of is None else timestamp(as_of),
        )
        return await self._caller.call(self._service.ReadFeatures, request)


def _row_to_proto(row: FeatureRow) -> pb.FeatureRow:
    return pb.FeatureRow(
        entities=row.entities,
        values=values_to_proto(row.values),
        event_time=timestamp(row.event_time),
        event_id=row.event_id,
        known_at=None if row.known_at is None else timestamp(row.known_at),
    )
