"""The online store on a Redis Cluster of three masters: views, aggregates, and a node that goes and comes back."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
from interlock.features.v1 import feature_service_pb2 as pb
from interlock.features.v1.feature_view_pb2 import (
    AGGREGATE_FUNCTION_COUNT,
    AGGREGATE_FUNCTION_LAST_N,
    AGGREGATE_FUNCTION_SUM,
    Aggregate,
    AggregateSource,
    EventField,
    Feature,
)
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE, FEATURE_TYPE_INT64

from services.features.convert.value import value_from_proto
from tests.fakes.feature_bindings import FakeBindings, serve_bindings
from tests.fakes.feature_values import SECOND, Values, a_row, now_us, running_values
from tests.fakes.features_service import a_view, an_entity, hours
from tests.fakes.redis_server import RedisServer, cluster_is_whole, redis_cluster
from tests.fakes.registry_service import new_id, refused

GONE = (grpc.StatusCode.UNAVAILABLE, "ONLINE_STORE_UNAVAILABLE")
KEYS = [f"c{number}" for number in range(60)]
LANDINGS = a_view(
    "landings",
    features=[
        Feature(name="count", type=FEATURE_TYPE_INT64),
        Feature(name="total", type=FEATURE_TYPE_DOUBLE),
        Feature(name="last", type=FEATURE_TYPE_DOUBLE, is_list=True),
    ],
    aggregate_source=AggregateSource(
        fields=[EventField(name="delay", type=FEATURE_TYPE_DOUBLE)],
        aggregates=[
            Aggregate(feature="count", function=AGGREGATE_FUNCTION_COUNT, window=hours(1)),
            Aggregate(feature="total", function=AGGREGATE_FUNCTION_SUM, field="delay", window=hours(1)),
            Aggregate(feature="last", function=AGGREGATE_FUNCTION_LAST_N, field="delay", window=hours(1), last_count=2),
        ],
    ),
)


async def test_views_and_aggregates_live_on_a_cluster_and_survive_the_loss_of_a_node(tmp_path: Path) -> None:
    async with redis_cluster() as servers:
        url = f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in servers)}"
        registry = f"unix:{servers[0].folder}/registry.sock"
        async with (
            serve_bindings(FakeBindings(), registry),
            running_values(tmp_path, url, registry_address=registry) as values,
        ):
            await values.features.apply(an_entity(), a_view(), a_view("again"), LANDINGS)
            now = now_us()
            rows = [a_row(key, now, delay_mean=float(number)) for number, key in enumerate(KEYS)]
            for view in ("carrier_delays", "again"):
                assert await values.push(*rows, view=view) == ["WRITTEN"] * 60
            events = [_event(key, now - step * SECOND, f"{key}-{step}", step) for key in KEYS for step in range(3)]
            once = new_id()
            for _ in range(2):
                assert await values.push(*events, view="landings", request_id=once) == ["WRITTEN"] * 180
            assert await values.push(*events[:3], view="landings") == ["DUPLICATE"] * 3
            assert min([await _size(server) for server in servers]) > 10
            await _check(values, count=3, total=3.0, last=(0.0, 1.0))

            await servers[1].kill()
            with refused(*GONE):
                await _read(values)
            with refused(*GONE):
                await values.push(*rows)
            await servers[1].start()
            await cluster_is_whole(servers)
            await _until_back(values)
            await _check(values, count=3, total=3.0, last=(0.0, 1.0))
            newest = [_event(key, now_us(), f"{key}-new", 10) for key in KEYS]
            assert await values.push(*newest, view="landings") == ["WRITTEN"] * 60
            await _check(values, count=4, total=13.0, last=(10.0, 0.0))

            await values.features.apply(an_entity(), a_view(), a_view("again"), delete_missing=True)
            while sum([await _size(server) for server in servers]) > 122:
                await asyncio.sleep(0.02)
            assert await values.read(*KEYS) == [(float(number), "PRESENT") for number in range(60)]


def _event(key: str, event_time_us: int, event_id: str, delay: float) -> pb.FeatureRow:
    row = a_row(key, event_time_us, delay=float(delay))
    row.event_id = event_id
    return row


async def _read(values: Values) -> dict[str, list[Any]]:
    request = pb.ReadFeaturesRequest(
        features=["carrier_delays.delay_mean", "again.delay_mean", "landings.*"],
        rows=[pb.ReadRow(entities={"carrier": key}) for key in KEYS],
    )
    columns = (await values.stub.ReadFeatures(request, timeout=30)).columns
    return {column.feature: list(map(value_from_proto, column.values)) for column in columns}


async def _check(values: Values, *, count: int, total: float, last: tuple[float, ...]) -> None:
    assert await _read(values) == {
        "carrier_delays.delay_mean": list(map(float, range(60))),
        "again.delay_mean": list(map(float, range(60))),
        "landings.count": [count] * 60,
        "landings.total": [total] * 60,
        "landings.last": [last] * 60,
    }


async def _until_back(values: Values) -> None:
    while True:
        try:
            await _read(values)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def _size(server: RedisServer) -> int:
    async with server.client() as client:
        return int(await client.dbsize())
