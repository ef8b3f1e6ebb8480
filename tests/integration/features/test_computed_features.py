"""Aggregates of pushed events and features computed from the request, through the wire, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from interlock.features.v1 import feature_service_pb2 as pb
from interlock.features.v1.feature_view_pb2 import (
    AGGREGATE_FUNCTION_COUNT,
    AGGREGATE_FUNCTION_LAST_N,
    AGGREGATE_FUNCTION_MEAN,
    Aggregate,
    AggregateSource,
    EventField,
    Feature,
    FeatureView,
    OnDemandSource,
)
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE, FEATURE_TYPE_INT64, FEATURE_TYPE_STRING

from services.features.convert.value import value_from_proto, value_to_proto
from tests.fakes.feature_values import HOUR, SECOND, Values, a_row, now_us, running_values, stamp, statuses
from tests.fakes.features_service import an_entity
from tests.fakes.redis_server import RedisServer, redis_server

DAY = Duration(seconds=86_400)


def landings() -> FeatureView:
    """Of a carrier: how many landed in a day, their mean delay and the last two gates."""
    return FeatureView(
        name="featureViews/landings",
        entities=["entities/carrier"],
        features=[
            Feature(name="landed", type=FEATURE_TYPE_INT64),
            Feature(name="delay", type=FEATURE_TYPE_DOUBLE, default_value=FeatureValue(double_value=-1)),
            Feature(name="gates", type=FEATURE_TYPE_STRING, is_list=True),
        ],
        max_age=Duration(seconds=36_000),
        aggregate_source=AggregateSource(
            fields=[
                EventField(name="minutes", type=FEATURE_TYPE_DOUBLE),
                EventField(name="gate", type=FEATURE_TYPE_STRING),
            ],
            aggregates=[
                Aggregate(feature="landed", function=AGGREGATE_FUNCTION_COUNT, window=DAY),
                Aggregate(feature="delay", function=AGGREGATE_FUNCTION_MEAN, field="minutes", window=DAY),
                Aggregate(feature="gates", function=AGGREGATE_FUNCTION_LAST_N, field="gate", window=DAY, last_count=2),
            ],
        ),
    )


def speed() -> FeatureView:
    return FeatureView(
        name="featureViews/speed",
        features=[
            Feature(name="mph", type=FEATURE_TYPE_DOUBLE, default_value=FeatureValue(double_value=440)),
            Feature(name="hops", type=FEATURE_TYPE_INT64),
        ],
        on_demand_source=OnDemandSource(
            inputs=[
                EventField(name="miles", type=FEATURE_TYPE_INT64),
                EventField(name="hours", type=FEATURE_TYPE_DOUBLE),
            ],
            expressions={
                "mph": "miles / hours",
                "hops": "if(miles > 3000, 2, 1) * miles",
            },
        ),
    )


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
async def values(tmp_path: Path, redis: RedisServer) -> AsyncIterator[Values]:
    async with running_values(tmp_path, redis.url) as running:
        await running.features.apply(an_entity(), landings(), speed())
        yield running


def landing(carrier: str, time_us: int, event_id: str, *, known_at_us: int = 0, **fields: Any) -> pb.FeatureRow:
    row = a_row(carrier, time_us, **fields)
    row.event_id = event_id
    if known_at_us:
        row.known_at.CopyFrom(stamp(known_at_us))
    return row


async def read(values: Values, request: pb.ReadFeaturesRequest) -> dict[str, list[tuple[Any, str, int]]]:
    answer = await values.stub.ReadFeatures(request, timeout=10)
    return {
        column.feature: list(zip(map(value_from_proto, column.values), statuses(column), column.ages_ms, strict=True))
        for column in answer.columns
    }


def ask(as_of_us: int, *carriers: str) -> pb.ReadFeaturesRequest:
    rows = [pb.ReadRow(entities={"carrier": carrier} if carrier else {}) for carrier in carriers]
    return pb.ReadFeaturesRequest(features=["landings.*"], rows=rows, as_of_time=stamp(as_of_us))


async def test_events_count_once_in_their_windows_as_of_any_time_asked(values: Values) -> None:
    now = now_us()
    rows = [
        landing("B6", now - 2 * HOUR, "flight-1", known_at_us=now - HOUR, minutes=10.0, gate="A1"),
        landing("B6", now - 3 * HOUR, "flight-2", known_at_us=now - 3 * HOUR, minutes=20.5),
        landing("B6", now - 25 * HOUR, "flight-3", known_at_us=now - 25 * HOUR, minutes=99.0, gate="B7"),
        landing("B6", now - 4 * HOUR, "flight-4", known_at_us=now - 2 * HOUR, minutes=99.0),
        landing("B6", now - 5 * HOUR, "", minutes=1.0),
    ]
    assert await values.push(*rows, rows[0], view="landings") == [
        "WRITTEN", "WRITTEN", "WRITTEN", "LATE", "REFUSED", "DUPLICATE",
    ]  # fmt: skip
    again = await asyncio.gather(*(values.push(*rows[:3], view="landings") for _ in range(5)))
    assert again == [["DUPLICATE"] * 3] * 5
    found = await read(values, ask(now, "B6", "DL", ""))
    assert found["landings.landed"] == [(2, "PRESENT", 7_200_000), (0, "PRESENT", 0), (None, "MISSING", -1)]
    assert found["landings.delay"] == [(15.25, "PRESENT", 7_200_000), (-1.0, "MISSING", -1), (-1.0, "MISSING", -1)]
    assert found["landings.gates"][0] == (("A1",), "PRESENT", 7_200_000)
    before = await read(values, ask(now - HOUR - SECOND, "B6"))
    assert before["landings.landed"] == [(2, "PRESENT", 7_199_000)], "flight-1 was not known yet, flight-3 still counts"
    assert before["landings.gates"] == [(("B7",), "STALE", 86_399_000)]


async def test_events_survive_the_store_and_count_once_when_it_catches_up(values: Values, redis: RedisServer) -> None:
    now = now_us()
    rows = [landing("B6", now - number * SECOND, f"flight-{number}", minutes=0.1) for number in range(50)]
    await values.push(*rows, view="landings")
    await redis.kill()
    (redis.folder / "appendonly.aof").unlink()
    await redis.start()
    async with asyncio.timeout(20):
        while (found := await _landed(values)) != (50, 0.1):
            assert found is None or found[0] < 50
            await asyncio.sleep(0.05)
    assert await values.push(*rows, view="landings") == ["DUPLICATE"] * 50


async def _landed(values: Values) -> tuple[int, float] | None:
    """The number of landings and their mean delay, None while the store is away."""
    try:
        found = await read(values, ask(now_us(), "B6"))
    except grpc.aio.AioRpcError:
        return None
    return found["landings.landed"][0][0], found["landings.delay"][0][0]


async def test_on_demand_features_are_computed_beside_those_of_the_store(values: Values) -> None:
    now = now_us()
    await values.push(landing("B6", now, "flight-1", minutes=3.0), view="landings")
    rows = [
        request_row("B6", miles=1200, hours=2.5),
        request_row("B6", miles=4000, hours=0),
        request_row("B6", miles=None, hours=1),
    ]
    features = ["speed.mph", "landings.landed", "speed.hops"]
    found = await read(values, pb.ReadFeaturesRequest(features=features, rows=rows))
    assert found["speed.mph"] == [(480.0, "PRESENT", 0), (440.0, "MISSING", -1), (440.0, "MISSING", -1)]
    assert found["speed.hops"] == [(1200, "PRESENT", 0), (8000, "PRESENT", 0), (None, "MISSING", -1)]
    assert [value for value, _, _ in found["landings.landed"]] == [1, 1, 1]


async def test_wrong_request_values_are_named_by_row(values: Values) -> None:
    good = request_row("B6", miles=1, hours=1)
    rows = [
        *[good] * 600,
        request_row("B6", miles=1.5, hours="two"),
        request_row("B6", hours=1, knots=3),
        request_row("B6", miles=1, hours=1),
    ]
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await read(values, pb.ReadFeaturesRequest(features=["speed.*"] * 10, rows=rows))
    assert violations(wrong.value) == {
        "rows[600].request_values.hours": 'want a finite number or null, got the text "two"',
        "rows[600].request_values.miles": "want a whole number from -2^63 to 2^63 - 1 or null, got the number 1.5",
        "rows[601].request_values.miles": "want a whole number from -2^63 to 2^63 - 1 or null, got nothing",
    }
    big = pb.ReadFeaturesRequest(features=["speed.*"], rows=[good, request_row("B6", miles=2**63 - 1, hours=1)])
    with pytest.raises(grpc.aio.AioRpcError) as overflow:
        await read(values, big)
    assert violations(overflow.value) == {
        "rows[1].request_values": "want values whose result fits into INT64, got an overflow of hops at character 24"
    }


async def test_a_definition_with_a_wrong_expression_is_refused_with_its_position(values: Values) -> None:
    view = speed()
    view.on_demand_source.expressions["mph"] = "miles.__class__"
    view.on_demand_source.expressions["hops"] = "miles / 500"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await values.features.apply(an_entity(), landings(), view)
    found = violations(refused.value)
    assert found['feature_views[1].on_demand_source.expressions["mph"]'].startswith("character 6: want a value")
    assert "got DOUBLE" in found['feature_views[1].on_demand_source.expressions["hops"]']


def request_row(carrier: str, **values: Any) -> pb.ReadRow:
    given = {name: value_to_proto(value) for name, value in values.items()}
    return pb.ReadRow(entities={"carrier": carrier}, request_values=given)


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)
    detail = BadRequest()
    assert status is not None
    assert any(each.Unpack(detail) for each in status.details)
    return {each.field: each.description for each in detail.field_violations}
