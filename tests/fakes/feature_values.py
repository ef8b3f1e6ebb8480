"""Pushing to and reading from a running features service."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.features.v1 import feature_service_pb2 as pb
from interlock.features.v1.feature_service_pb2_grpc import FeatureServiceStub

from services.features.convert.value import value_from_proto, value_to_proto
from tests.fakes.features_service import Features, running_features

SECOND = 1_000_000
HOUR = 3_600 * SECOND


def now_us() -> int:
    return time.time_ns() // 1000


def stamp(time_us: int) -> Timestamp:
    found = Timestamp()
    found.FromMicroseconds(time_us)
    return found


def a_row(keys: Mapping[str, str] | str, event_time_us: int, **values: Any) -> pb.FeatureRow:
    """A row of an entity, `carrier` if only a key is given, with plain values."""
    return pb.FeatureRow(
        entities={"carrier": keys} if isinstance(keys, str) else keys,
        values={name: value_to_proto(value) for name, value in values.items()},
        event_time=stamp(event_time_us),
    )


class Values:
    """A client of FeatureService that speaks in plain values."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.stub = FeatureServiceStub(features.channel)

    async def push(self, *rows: pb.FeatureRow, view: str = "carrier_delays", **fields: Any) -> list[str]:
        """What became of each row."""
        request = pb.PushFeaturesRequest(feature_view=f"featureViews/{view}", rows=rows, **fields)
        answer = await self.stub.PushFeatures(request, timeout=30)
        return [pb.PushOutcome.Name(each.outcome).removeprefix("PUSH_OUTCOME_") for each in answer.results]

    async def read(
        self, *keys: str, feature: str = "carrier_delays.delay_mean", **fields: Any
    ) -> list[tuple[Any, str]]:
        """Value and status of one feature, for carriers."""
        rows = [pb.ReadRow(entities={"carrier": key}) for key in keys]
        request = pb.ReadFeaturesRequest(features=[feature], rows=rows, **fields)
        (column,) = (await self.stub.ReadFeatures(request, timeout=30)).columns
        return list(zip(map(value_from_proto, column.values), statuses(column), strict=True))


def statuses(column: pb.FeatureColumn) -> Sequence[str]:
    return [pb.ValueStatus.Name(status).removeprefix("VALUE_STATUS_") for status in column.statuses]


@asynccontextmanager
async def running_values(state_dir: Path, redis_url: str, **settings: Any) -> AsyncIterator[Values]:
    """Run features on a Redis while the block runs; patient, because a machine that runs tests may be busy."""
    patient = {"redis_read_deadline_s": 2, "redis_write_deadline_s": 10, "redis_connect_timeout_s": 5}
    async with running_features(state_dir, **{"redis_url": redis_url, **patient, **settings}) as features:
        yield Values(features)


class PushStream:
    """The client's side of a push stream."""

    def __init__(self, values: Values) -> None:
        self.call = values.stub.PushFeaturesStream()
        self._sequence = 0
        self.error: grpc.aio.AioRpcError | None = None

    async def open(self, view: str = "carrier_delays", **fields: Any) -> pb.PushFeaturesStreamResponse:
        await self.call.write(
            pb.PushFeaturesStreamRequest(open=pb.PushOpen(feature_view=f"featureViews/{view}", **fields))
        )
        return await self.acknowledged()

    async def send(self, *rows: pb.FeatureRow, sequence: int = 0) -> None:
        self._sequence = sequence or self._sequence + 1
        await self.call.write(pb.PushFeaturesStreamRequest(batch=pb.PushBatch(sequence=self._sequence, rows=rows)))

    async def acknowledged(self) -> pb.PushFeaturesStreamResponse:
        answer = await self.call.read()
        assert isinstance(answer, pb.PushFeaturesStreamResponse), "the stream has ended"
        return answer

    async def until(self, sequence: int) -> list[pb.PushFeaturesStreamResponse]:
        """All acknowledgements up to the one of a batch."""
        found = [await self.acknowledged()]
        while found[-1].acknowledged_sequence < sequence:
            found.append(await self.acknowledged())
        return found

    async def rest(self) -> list[pb.PushFeaturesStreamResponse]:
        """What still comes, after which `error` says how it ended."""
        found: list[pb.PushFeaturesStreamResponse] = []
        try:
            while isinstance(answer := await self.call.read(), pb.PushFeaturesStreamResponse):
                found.append(answer)
        except grpc.aio.AioRpcError as error:
            self.error = error
        return found
