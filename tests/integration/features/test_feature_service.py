"""Values pushed and read through the wire, on a real Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.struct_pb2 import NULL_VALUE
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status
from interlock.features.v1 import feature_service_pb2 as pb
from interlock.features.v1 import http_service_pb2 as http_pb
from interlock.features.v1.feature_view_pb2 import Feature, OnDemandSource
from interlock.features.v1.http_service_pb2_grpc import FeaturesHttpServiceStub
from interlock.types.v1.feature_value_pb2 import FeatureValue, FeatureValueList
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_INT64, FEATURE_TYPE_STRING
from redis.exceptions import RedisError

from services.features.convert.value import value_from_proto
from tests.fakes.feature_bindings import FakeBindings, serve_bindings
from tests.fakes.feature_values import HOUR, SECOND, PushStream, Values, a_row, now_us, running_values, stamp, statuses
from tests.fakes.features_service import a_view, an_entity, hours
from tests.fakes.late_redis import LateReplies
from tests.fakes.redis_server import RedisServer, redis_server
from tests.fakes.registry_service import new_id
from tests.fakes.router_world import eventually

SERVICE = "interlock.features.v1.FeatureService"
HTTP = "interlock.features.v1.FeaturesHttpService/PushFeatures"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
GONE = (grpc.StatusCode.UNAVAILABLE, "ONLINE_STORE_UNAVAILABLE")


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
async def registry_address(redis: RedisServer) -> str:
    return f"unix:{redis.folder}/registry.sock"


@pytest.fixture
async def values(tmp_path: Path, redis: RedisServer, registry_address: str) -> AsyncIterator[Values]:
    async with running_values(tmp_path, redis.url, registry_address=registry_address) as running:
        await running.features.apply(
            an_entity(),
            an_entity("flight", key_type=FEATURE_TYPE_INT64),
            a_view(),
            a_view(
                "gates",
                entities=["entities/carrier", "entities/flight"],
                features=[
                    Feature(
                        name="gate",
                        type=FEATURE_TYPE_STRING,
                        default_value=FeatureValue(string_value="none"),
                        nullable=True,
                    ),
                    Feature(name="history", type=FEATURE_TYPE_INT64, is_list=True),
                ],
            ),
        )
        yield running


@pytest.mark.rpc(f"{SERVICE}/ReadFeatures", "happy")
@pytest.mark.rpc(f"{SERVICE}/PushFeatures", "happy")
async def test_a_read_says_of_every_value_how_good_it_is(values: Values) -> None:
    now = now_us()
    assert await values.push(
        a_row("B6", now - HOUR, delay_mean=3.5, flight_count=7),
        a_row("DL", now - 40 * HOUR, delay_mean=1, flight_count=2),
    ) == ["WRITTEN", "WRITTEN"]
    keys = {"carrier": "B6", "flight": "915"}
    assert await values.push(a_row(keys, now, gate=None, history=(1, 2)), view="gates") == ["WRITTEN"]
    request = pb.ReadFeaturesRequest(
        features=["carrier_delays.delay_mean", "gates.*", "carrier_delays.flight_count", "carrier_delays.delay_mean"],
        rows=[
            pb.ReadRow(entities=keys),
            pb.ReadRow(entities={"carrier": "DL", "flight": "1"}),
            pb.ReadRow(entities={"carrier": "DL"}),
            pb.ReadRow(entities={"carrier": ""}),
        ],
        include_times=True,
        as_of_time=stamp(now + SECOND),
    )
    answer = await values.stub.ReadFeatures(request)
    assert answer.read_time == stamp(now + SECOND)
    names = ["carrier_delays.delay_mean", "gates.gate", "gates.history", "carrier_delays.flight_count"]
    assert [column.feature for column in answer.columns] == [*names, names[0]]
    found = {
        column.feature: list(zip(map(value_from_proto, column.values), statuses(column), column.ages_ms, strict=True))
        for column in answer.columns
    }
    nothing = "MISSING", -1
    hour_ms = 3_600_000
    assert found["carrier_delays.delay_mean"] == [
        (3.5, "PRESENT", hour_ms + 1000),
        (1.0, "STALE", 40 * hour_ms + 1000),
        (1.0, "STALE", 40 * hour_ms + 1000),
        (None, *nothing),
    ]
    assert found["gates.gate"] == [(None, "PRESENT", 1000), *[("none", *nothing)] * 3]
    assert found["gates.history"][0] == ((1, 2), "PRESENT", 1000)
    assert [status for _, status, _ in found["carrier_delays.flight_count"]] == [
        "PRESENT",
        "PRESENT",
        "PRESENT",
        "MISSING",
    ]
    assert answer.columns[0].event_times_us == [now - HOUR, now - 40 * HOUR, now - 40 * HOUR, 0]
    assert all(now <= known <= now_us() for known in answer.columns[0].known_ats_us[:3])
    assert answer.columns[0].known_ats_us[3] == 0
    sample = values.features.serving.runtime.registry.get_sample_value
    labels = {"view": "carrier_delays", "status": "PRESENT"}
    assert sample("interlock_features_read_values_total", labels) == 5
    assert sample("interlock_features_pushed_rows_total", {"view": "gates", "outcome": "WRITTEN"}) == 1
    assert sample("interlock_features_read_rows_sum") == 4
    before = await values.read("B6", as_of_time=stamp(now - 2 * HOUR))
    assert before == [(None, "MISSING")], "the store holds the newest value only, and it was not there yet"


async def test_a_row_sets_what_it_carries_and_an_older_one_nothing_that_is_newer(values: Values) -> None:
    now = now_us()
    assert await values.push(a_row("B6", now - 10, delay_mean=1.0)) == ["WRITTEN"]
    assert await values.push(a_row("B6", now - 20, delay_mean=2.0, flight_count=5)) == ["WRITTEN"]
    assert await values.push(a_row("B6", now - 20, delay_mean=2.0, flight_count=5)) == ["OLDER"]
    assert await values.push(a_row("B6", now - 30, flight_count=6)) == ["OLDER"]
    same = a_row("B6", now - 10, delay_mean=1.0)
    assert await values.push(same, same) == ["DUPLICATE", "DUPLICATE"]
    assert await values.read("B6") == [(1.0, "PRESENT")]
    assert await values.read("B6", feature="carrier_delays.flight_count") == [(5, "PRESENT")]
    # Of two rows for one time the later one is the correction.
    assert await values.push(a_row("B6", now, delay_mean=9.0), a_row("B6", now, delay_mean=8.0)) == ["WRITTEN"] * 2
    assert await values.read("B6") == [(8.0, "PRESENT")]


async def test_a_row_goes_when_its_retention_is_over(values: Values, redis: RedisServer) -> None:
    now = now_us()
    await values.features.apply(a_view("short", retention=hours(48), max_age=hours(1)))
    rows = [a_row("B6", now - 47 * HOUR, delay_mean=1.0), a_row("DL", now - 49 * HOUR, delay_mean=1.0)]
    assert await values.push(*rows, view="short") == ["WRITTEN", "OLDER"]
    assert await values.read("B6", "DL", feature="short.delay_mean") == [(1.0, "STALE"), (None, "MISSING")]
    async with redis.client() as client:
        (key,) = [key async for key in client.scan_iter("f:short:*")]
        assert 0.9 * 3600 < await client.ttl(key) <= 3600
        await values.push(a_row("B6", now - 40 * HOUR, flight_count=1), view="short")
        assert 7.9 * 3600 < await client.ttl(key) <= 8 * 3600
        await values.push(a_row("B6", now - 46 * HOUR, delay_mean=1.0), view="short")
        assert await client.ttl(key) > 7.9 * 3600


async def test_a_view_that_is_deleted_takes_its_values_along(
    values: Values, redis: RedisServer, registry_address: str
) -> None:
    await values.features.apply(a_view("other"))
    await values.push(*[a_row(f"c{number}", now_us(), delay_mean=1.0) for number in range(1000)], view="other")
    await values.push(a_row("B6", now_us(), delay_mean=1.0))
    async with serve_bindings(FakeBindings(), registry_address):
        await values.features.apply(an_entity(), a_view(), delete_missing=True)
    async with redis.client() as client:
        while await client.keys("f:other:*"):
            await asyncio.sleep(0.02)
        assert len(await client.keys("f:*")) == 1
    await values.features.apply(a_view("other"))
    assert await values.read("c1", feature="other.delay_mean") == [(None, "MISSING")]


@pytest.mark.rpc(f"{SERVICE}/ReadFeatures", "error")
async def test_a_read_that_makes_no_sense_is_refused_with_what_is_wrong(values: Values) -> None:
    good = pb.ReadRow(entities={"carrier": "B6"})

    async def refusal(**fields: Any) -> tuple[grpc.StatusCode, str, list[str]]:
        request = pb.ReadFeaturesRequest(**{"features": ["carrier_delays.*"], "rows": [good], **fields})
        return await why(values.stub.ReadFeatures(request))

    assert (await refusal(features=[]))[:2] == (INVALID, "INVALID_FIELD")
    assert (await refusal(rows=[]))[2] == ["rows: want 1 to 1000 rows, got 0"]
    assert (await refusal(rows=[good] * 1001))[2] == ["rows: want 1 to 1000 rows, got 1001"]
    assert (await refusal(features=["carrier_delays.*"] * 501))[2] == ["features: want at most 1000 features, got 1002"]
    for unknown in ("nowhere.delay_mean", "carrier_delays.delay", "delay_mean", "carrier_delays."):
        assert (await refusal(features=[unknown]))[:2] == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"), unknown
    wrong = [pb.ReadRow(entities={"carrier": "x" * 513}), pb.ReadRow(entities={"carrier": "B6", "tail": "N1"})]
    assert await refusal(rows=wrong) == (
        INVALID,
        "INVALID_ENTITY_KEY",
        [
            "rows[0].entities.carrier: want a key of 1 to 512 bytes, got 513",
            'rows[1].entities: want ids of entities, got "tail"',
        ],
    )
    flight = [pb.ReadRow(entities={"carrier": "B6", "flight": "007"})]
    assert "leading zeros" in (await refusal(features=["gates.gate"], rows=flight))[2][0]
    assert (await refusal(as_of_time=stamp(now_us() + 61 * SECOND)))[:2] == (INVALID, "INVALID_EVENT_TIME")
    assert (await refusal(as_of_time=Timestamp(seconds=1, nanos=-5)))[:2] == (INVALID, "INVALID_EVENT_TIME")


@pytest.mark.rpc(f"{SERVICE}/PushFeatures", "error")
async def test_a_push_as_a_whole_is_refused(values: Values) -> None:
    await values.features.apply(
        a_view("ratio", entities=[], on_demand_source=_on_demand(), features=[a_view().features[0]])
    )
    row = a_row("B6", now_us(), delay_mean=1.0)

    async def refusal(**fields: Any) -> tuple[grpc.StatusCode, str]:
        request = pb.PushFeaturesRequest(**{"feature_view": "featureViews/carrier_delays", "rows": [row], **fields})
        return (await why(values.stub.PushFeatures(request)))[:2]

    assert await refusal(feature_view="featureViews/nowhere") == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert await refusal(feature_view="carrier_delays") == (INVALID, "INVALID_NAME")
    assert await refusal(feature_view="featureViews/ratio") == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_PUSHABLE")
    assert await refusal(rows=[]) == (INVALID, "INVALID_FIELD")
    assert await refusal(rows=[row] * 1001) == (INVALID, "INVALID_FIELD")
    assert await refusal(request_id="again") == (INVALID, "INVALID_FIELD")
    assert await values.read("B6") == [(None, "MISSING")]


async def test_each_row_that_is_wrong_is_refused_alone_and_says_why(values: Values) -> None:
    now = now_us()
    nan, nested = FeatureValue(double_value=float("nan")), FeatureValue(list_value=FeatureValueList())
    nested.list_value.values.add().list_value.values.add()
    rows = [
        a_row("B6", now, delay_mean=1.0),
        a_row("B6", now, delay_mean="late"),
        a_row("B6", now, delay=1.0),
        a_row({}, now, delay_mean=1.0),
        a_row({"carrier": "B6", "tail": "N1"}, now, delay_mean=1.0),
        a_row("B" * 513, now, delay_mean=1.0),
        pb.FeatureRow(entities={"carrier": "B6"}, values={"delay_mean": nan}, event_time=stamp(now)),
        pb.FeatureRow(entities={"carrier": "B6"}, values={"delay_mean": nested}, event_time=stamp(now)),
        pb.FeatureRow(entities={"carrier": "B6"}, values={"delay_mean": FeatureValue()}, event_time=stamp(now)),
        pb.FeatureRow(entities={"carrier": "B6"}, values={"delay_mean": FeatureValue(null_value=NULL_VALUE)}),
        a_row("B6", now + 61 * SECOND, delay_mean=1.0),
        a_row("B6", -1, delay_mean=1.0),
        a_row("B6", now),
        pb.FeatureRow(
            entities={"carrier": "B6"}, values={"delay_mean": FeatureValue()}, event_time=Timestamp(seconds=10**15)
        ),
        a_row("DL", now, delay_mean=2, flight_count=3.0),
    ]
    rows[12].event_id = "e" * 129
    answer = await values.stub.PushFeatures(
        pb.PushFeaturesRequest(feature_view="featureViews/carrier_delays", rows=rows)
    )
    written, refusals = pb.PUSH_OUTCOME_WRITTEN, pb.PUSH_OUTCOME_REFUSED
    assert [each.outcome for each in answer.results] == [written, *[refusals] * 13, written]
    found = [details(each.error) for each in answer.results]
    assert [(reason, texts[0]) for reason, texts in found[1:12]] == [
        ("INVALID_VALUE", 'rows[1].values.delay_mean: want a finite number, got the text "late"'),
        ("INVALID_VALUE", 'rows[2].values: want names that featureViews/carrier_delays has, got "delay"'),
        ("INVALID_ENTITY_KEY", "rows[3].entities.carrier: want the key of this entity, got none"),
        ("INVALID_ENTITY_KEY", 'rows[4].entities: want keys of carrier only, got "tail"'),
        ("INVALID_ENTITY_KEY", "rows[5].entities.carrier: want a key of 1 to 512 bytes, got 513"),
        ("INVALID_VALUE", "rows[6].values.delay_mean: want a finite number, got the number nan"),
        ("INVALID_VALUE", "rows[7].values.delay_mean: want a finite number, got nothing"),
        ("INVALID_VALUE", "rows[8].values.delay_mean: want a finite number, got nothing"),
        ("INVALID_VALUE", "rows[9].values.delay_mean: want a finite number, got null"),
        ("INVALID_EVENT_TIME", found[10][1][0]),
        ("INVALID_EVENT_TIME", "rows[11].event_time: want a time that is not before 1970-01-01 UTC, got 1 s before it"),
    ]
    assert found[9][1][1] == "rows[9].event_time: want a time, got none"
    assert found[10][1][0].startswith("rows[10].event_time: want a time until 20")
    assert any(text.endswith("got one beyond the year 9999") for text in found[13][1])
    assert [text.partition(":")[0] for text in found[12][1]] == ["rows[12].values", "rows[12].event_id"]
    assert await values.read("B6", "DL") == [(1.0, "PRESENT"), (2.0, "PRESENT")]


async def test_a_push_with_a_request_id_gets_the_same_answer_again(values: Values) -> None:
    row, request_id = a_row("B6", now_us(), delay_mean=1.0), new_id()
    assert await values.push(row, request_id=request_id) == ["WRITTEN"]
    assert await values.push(row, request_id=request_id.upper()) == ["WRITTEN"]
    assert await values.push(row) == ["DUPLICATE"]
    other = pb.PushFeaturesRequest(feature_view="featureViews/carrier_delays", rows=[row, row], request_id=request_id)
    assert (await why(values.stub.PushFeatures(other)))[1] == "REQUEST_ID_REUSED"


async def test_reads_that_wait_at_the_same_moment_share_a_round_trip(tmp_path: Path, redis: RedisServer) -> None:
    async with running_values(tmp_path, redis.url, redis_read_deadline_s=30, redis_connect_timeout_s=30) as values:
        await values.features.apply(an_entity(), a_view(), a_view("other"))
        await values.push(*[a_row(f"c{number}", now_us(), delay_mean=float(number)) for number in range(200)])
        await values.read("c0")
        before = await redis.round_trips()
        redis.freeze()
        reads = asyncio.gather(*[values.read(f"c{number}") for number in range(200)])
        sample = values.features.serving.runtime.registry.get_sample_value
        while sample("interlock_features_requests_in_flight", {"method": f"{SERVICE}/ReadFeatures"}) != 200:
            await asyncio.sleep(0.01)
        redis.thaw()
        assert await reads == [[(float(number), "PRESENT")] for number in range(200)]
        # Two that found a lane free, one for all others, and a few to connect and to ask for the number itself.
        assert await redis.round_trips() - before < 50
        before, rows = await redis.calls("hmget"), [pb.ReadRow(entities={"carrier": f"c{n}"}) for n in range(1000)]
        features = ["carrier_delays.*", "other.*"]
        answer = await values.stub.ReadFeatures(pb.ReadFeaturesRequest(features=features, rows=rows))
        assert await redis.calls("hmget") - before == 2000
        assert statuses(answer.columns[0]) == ["PRESENT"] * 200 + ["MISSING"] * 800
        assert statuses(answer.columns[3]) == ["MISSING"] * 1000


async def test_without_redis_calls_fail_fast_and_are_clean_again_soon_after(tmp_path: Path, redis: RedisServer) -> None:
    row = a_row("B6", now_us(), delay_mean=1.0)
    async with running_values(tmp_path, redis.url, redis_read_deadline_s=1, redis_connect_timeout_s=1) as values:
        await values.features.apply(an_entity(), a_view())
        await values.push(row)
        for end, begin in ((redis.kill, redis.start), (_async(redis.freeze), _async(redis.thaw))):
            await end()
            await why(values.stub.ReadFeatures(_read_b6()))
            # Each might wait for its deadline, which would take longer than a test may; most of them do not even ask.
            answers = [await why(values.stub.ReadFeatures(_read_b6())) for _ in range(100)]
            assert {answer[:2] for answer in answers} == {GONE}
            assert (await why(values.stub.PushFeatures(_push(row))))[:2] == GONE
            await begin()
            while not await _answers(values):
                await asyncio.sleep(0.05)
            assert await values.read("B6") == [(1.0, "PRESENT")]
            assert await values.push(row) == ["DUPLICATE"]


async def test_what_a_broken_redis_missed_comes_from_the_history(values: Values, redis: RedisServer) -> None:
    await values.push(a_row("B6", now_us(), delay_mean=1.0))
    async with redis.client() as client:
        # As after a crash of a Redis that had not synced, or one that lost its disk.
        await client.flushall()
    await redis.kill()
    await redis.start()
    while not await _answers(values):
        await asyncio.sleep(0.05)
    while await values.read("B6") != [(1.0, "PRESENT")]:
        await asyncio.sleep(0.02)


async def test_a_redis_that_still_loads_is_unavailable_until_it_has_all(values: Values, redis: RedisServer) -> None:
    await values.push(a_row("B6", now_us(), delay_mean=1.0))
    await redis.kill()
    await redis.start_loading()
    for _ in range(5):
        assert (await why(values.stub.ReadFeatures(_read_b6())))[:2] == GONE
        assert (await why(values.stub.PushFeatures(_push(a_row("UA", now_us(), delay_mean=2.0)))))[:2] == GONE
    assert await redis.is_loading()
    await redis.kill()
    await redis.start()
    while not await _answers(values):
        await asyncio.sleep(0.05)
    assert await values.read("B6") == [(1.0, "PRESENT")]
    assert await values.push(a_row("UA", now_us(), delay_mean=3.0)) == ["WRITTEN"]
    assert await values.read("UA") == [(3.0, "PRESENT")]


async def test_a_request_id_is_looked_up_with_the_time_of_a_write(tmp_path: Path, redis: RedisServer) -> None:
    """A busy machine may be too slow for the reads of predictions, which must not refuse pushes."""
    async with running_values(tmp_path, redis.url, redis_read_deadline_s=1e-9) as values:
        await values.features.apply(an_entity(), a_view())
        row, request_id = a_row("B6", now_us(), delay_mean=1.0), new_id()
        for _ in range(2):
            assert await values.push(row, request_id=request_id) == ["WRITTEN"]


async def test_redis_that_refuses_is_said_to_be_unavailable(values: Values, redis: RedisServer) -> None:
    await values.push(a_row("B6", now_us(), delay_mean=1.0))
    async with redis.client() as client, redis.client() as other:
        (key,) = await client.keys("f:carrier_delays:*")
        await client.set(key.replace(b"B6", b"DL"), "somebody else's")
        assert (await why(values.stub.ReadFeatures(_read_b6("DL"))))[:2] == GONE
        assert await values.read("B6") == [(1.0, "PRESENT")], "nobody else is disturbed"
        await client.config_set("maxmemory", "1")
        assert (await why(values.stub.PushFeatures(_push(a_row("UA", now_us(), delay_mean=1.0)))))[:2] == GONE
        await client.config_set("maxmemory", "0")
        # A master that has become a replica.
        await client.replicaof("127.0.0.1", 1)
        assert (await why(values.stub.PushFeatures(_push(a_row("WN", now_us(), delay_mean=1.0)))))[:2] == GONE
        assert await values.read("B6") == [(1.0, "PRESENT")]
        await client.replicaof("NO", "ONE")
        await client.config_set("lua-time-limit", "1")
        endless = asyncio.ensure_future(other.eval("while true do end", 0))
        while not await _is_busy(client):
            await asyncio.sleep(0.01)
        assert (await why(values.stub.ReadFeatures(_read_b6())))[:2] == GONE
        await client.script_kill()
        await asyncio.gather(endless, return_exceptions=True)
    # The history took the rows, so they are not lost: the store gets them from there.
    while await values.read("UA", "WN") != [(1.0, "PRESENT")] * 2:
        await asyncio.sleep(0.05)


async def _is_busy(client: Any) -> bool:
    try:
        await client.ping()
    except RedisError as error:
        return "BUSY" in str(error)
    return False


async def test_a_push_that_finds_too_much_waiting_is_told_when_to_come_back(tmp_path: Path, redis: RedisServer) -> None:
    async with running_values(tmp_path, redis.url, push_waiting_rows=10, redis_write_deadline_s=30) as values:
        await values.features.apply(an_entity(), a_view())
        await values.push(a_row("B6", now_us(), delay_mean=1.0))
        redis.freeze()
        rows = [a_row(f"c{number}", now_us(), delay_mean=1.0) for number in range(6)]
        first = asyncio.ensure_future(values.push(*rows))
        registry = values.features.serving.runtime.registry
        # Its rows are safe in the history by then, and wait for Redis.
        while registry.get_sample_value("interlock_features_history_sync_seconds_count") != 2:
            await asyncio.sleep(0.01)
        stream = PushStream(values)
        await stream.open()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await values.push(*rows)
        assert told(caught.value)[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        status = rpc_status.from_call(caught.value)
        assert any(detail.Is(RetryInfo.DESCRIPTOR) for detail in status.details)
        await stream.send(*rows)
        redis.thaw()
        await stream.until(1)
        assert await first == ["WRITTEN"] * 6


@pytest.mark.rpc(f"{SERVICE}/PushFeaturesStream", "happy")
async def test_a_stream_acknowledges_what_is_safe_and_refuses_rows_alone(values: Values) -> None:
    now = now_us()
    stream = PushStream(values)
    opened = await stream.open(client_id="test", max_outstanding_rows=1500)
    assert (opened.acknowledged_sequence, opened.max_outstanding_rows) == (0, 1500)
    batches = 30
    for number in range(batches):
        rows = [a_row(f"c{index}", now + number, delay_mean=float(number)) for index in range(50)]
        await stream.send(*rows, a_row("B6", now, delay_mean="x"), a_row("DL", now, delay_mean=1.0))
        if number % 10 == 9:
            answers = await stream.until(number + 1)
            assert sum(len(answer.refusals) for answer in answers) == 10
            assert answers[-1].refusals[-1].sequence == number + 1
            assert {each.row_index for answer in answers for each in answer.refusals} == {50}
            assert sum(answer.unchanged_count for answer in answers) == (9 if number == 9 else 10)
    assert await values.read("c0", "c49", "DL", "B6") == [(29.0, "PRESENT")] * 2 + [(1.0, "PRESENT"), (None, "MISSING")]
    await stream.call.done_writing()
    assert await stream.rest() == []
    assert await stream.call.code() is grpc.StatusCode.OK


@pytest.mark.rpc(f"{SERVICE}/PushFeaturesStream", "error")
async def test_a_stream_that_breaks_the_rules_ends_after_what_was_good(values: Values) -> None:
    async def ended(stream: PushStream) -> tuple[grpc.StatusCode, str, list[str], int]:
        answers = await stream.rest()
        return (*await why(stream.call.read()), max((each.acknowledged_sequence for each in answers), default=0))

    row = a_row("B6", now_us(), delay_mean=1.0)
    stream = PushStream(values)
    await stream.send(row)
    assert (await ended(stream))[2] == ["open: want it as the first message, got another"]
    for fields, code in (
        ({"view": "nowhere"}, grpc.StatusCode.NOT_FOUND),
        ({"max_outstanding_rows": -1}, INVALID),
        ({"client_id": "é" * 65}, INVALID),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await PushStream(values).open(**fields)
        assert caught.value.code() is code, fields
    stream = PushStream(values)
    await stream.open()
    await stream.send(row)
    await stream.send(row, sequence=3)
    assert await ended(stream) == (INVALID, "INVALID_FIELD", ["batch.sequence: want 2, got 3"], 1)
    stream = PushStream(values)
    await stream.open()
    await stream.call.write(pb.PushFeaturesStreamRequest(open=pb.PushOpen(feature_view="featureViews/carrier_delays")))
    assert (await ended(stream))[2] == ["batch: want it in every message after the first, got another"]
    stream = PushStream(values)
    await stream.open(max_outstanding_rows=1)
    await stream.send(row, row)
    code, reason, _, _ = await ended(stream)
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_OUTSTANDING")


async def test_redis_restarts_in_the_middle_of_a_push_stream(values: Values, redis: RedisServer) -> None:
    now, sent, acknowledged = now_us(), 0, 0
    restarted = None
    while acknowledged < 40:
        stream, first = PushStream(values), acknowledged
        try:
            await stream.open()
            while acknowledged < 40:
                number = acknowledged
                await stream.send(*[a_row(f"c{number}-{index}", now, delay_mean=float(number)) for index in range(20)])
                sent += 1
                answers = await stream.until(number - first + 1)
                acknowledged = first + answers[-1].acknowledged_sequence
                if acknowledged == 20 and restarted is None:
                    await redis.kill()
                    restarted = asyncio.ensure_future(redis.start())
        except (grpc.aio.AioRpcError, AssertionError):
            await stream.rest()
            assert await stream.call.code() is grpc.StatusCode.UNAVAILABLE
            await asyncio.sleep(0.05)
    assert restarted is not None
    assert sent >= 40
    for number in range(40):
        found = await values.read(*[f"c{number}-{index}" for index in range(20)])
        assert found == [(float(number), "PRESENT")] * 20, number


async def test_a_drain_acknowledges_what_was_taken_and_ends_the_stream(tmp_path: Path, redis: RedisServer) -> None:
    async with running_values(tmp_path, redis.url) as values:
        await values.features.apply(an_entity(), a_view())
        stream = PushStream(values)
        await stream.open()
        await stream.send(a_row("B6", now_us(), delay_mean=1.0))
        await stream.until(1)
        await values.features.serving.runtime.drain()
        await stream.rest()
        assert stream.error is not None
        assert told(stream.error)[:2] == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


def _on_demand() -> OnDemandSource:
    found = OnDemandSource(expressions={"delay_mean": "minutes * 2"})
    found.inputs.add(name="minutes", type=a_view().features[0].type)
    return found


def _read_b6(key: str = "B6") -> pb.ReadFeaturesRequest:
    return pb.ReadFeaturesRequest(features=["carrier_delays.delay_mean"], rows=[pb.ReadRow(entities={"carrier": key})])


def _push(row: pb.FeatureRow) -> pb.PushFeaturesRequest:
    return pb.PushFeaturesRequest(feature_view="featureViews/carrier_delays", rows=[row])


async def _answers(values: Values) -> bool:
    try:
        await values.stub.ReadFeatures(_read_b6())
    except grpc.aio.AioRpcError:
        return False
    return True


def _async(work: Any) -> Any:
    async def run() -> None:
        work()

    return run


async def why(answer: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """Code, reason and violations of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return told(caught.value)


def told(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, list[str]]:
    status = rpc_status.from_call(error)
    assert status is not None, error
    return (error.code(), *details(status))


def details(status: Any) -> tuple[str, list[str]]:
    info, bad = ErrorInfo(), BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return info.reason, [f"{each.field}: {each.description}" for each in bad.field_violations]


async def post(values: Values, view: str, body: str) -> tuple[str, dict[str, Any]]:
    """Return HTTP status and body."""
    request = http_pb.PushFeaturesHttpRequest(feature_view=f"featureViews/{view}", body=HttpBody(data=body.encode()))
    call = FeaturesHttpServiceStub(values.features.channel).PushFeatures(request)
    answer = await call
    status = dict(await call.initial_metadata()).get("x-interlock-http-status", "200")
    return str(status), json.loads(answer.data)


@pytest.mark.rpc(HTTP, "happy")
async def test_rows_as_plain_json(values: Values) -> None:
    at = '"event_time": "2026-01-02T03:04:05+01:00", "known_at": "2026-01-02T02:04:06Z"'
    keys = '"entities": {"carrier": "B6", "flight": "915"}'
    body = f"""{{"request_id": "{new_id()}", "rows": [
        {{{keys}, "values": {{"gate": "A1", "history": [3, 2.0, 9007199254740993]}}, {at}}},
        {{{keys}, "values": {{"gate": null}}, {at}}},
        {{{keys}, "values": {{"gate": 7, "history": [true]}}, {at}}},
        {{{keys}, "values": {{"history": 1}}}}
    ]}}"""
    status, answer = await post(values, "gates", body)
    assert status == "200"
    assert [each["outcome"] for each in answer["results"]] == [
        "PUSH_OUTCOME_WRITTEN", "PUSH_OUTCOME_OLDER", "PUSH_OUTCOME_REFUSED", "PUSH_OUTCOME_REFUSED",
    ]  # fmt: skip
    refusals = [answer["results"][row]["error"]["details"] for row in (2, 3)]
    wrong = [
        (found["field"], found["description"])
        for details in refusals
        for each in details
        for found in each.get("field_violations", ())
    ]
    assert wrong == [
        ("rows[2].values.gate", "want a text or null, got the number 7"),
        ("rows[2].values.history", "want a list of INT64 values, got true"),
        ("rows[3].values.history", "want a list of INT64 values, got the number 1"),
        ("rows[3].event_time", "want a time, got none"),
    ]
    read = pb.ReadFeaturesRequest(
        features=["gates.*"], rows=[pb.ReadRow(entities={"carrier": "B6", "flight": "915"})], include_times=True
    )
    columns = (await values.stub.ReadFeatures(read)).columns
    assert [value_from_proto(each.values[0]) for each in columns] == ["A1", (3, 2, 2**53 + 1)]
    assert [each.event_times_us[0] for each in columns] == [1_767_319_445_000_000] * 2
    assert await post(values, "gates", body) == (status, answer)


@pytest.mark.rpc(HTTP, "error")
async def test_json_that_the_contract_does_not_have_is_refused_with_its_place(values: Values) -> None:
    for body, places in (
        ('{"row": []}', ["row"]),
        ('{"rows": [7]}', ["rows[0]"]),
        ('{"rows": [{"entity": {}, "event_id": 1}]}', ["rows[0].entity", "rows[0].event_id"]),
        (
            '{"rows": [{"entities": {"carrier": 6}, "event_time": "noon"}]}',
            ["rows[0].entities.carrier", "rows[0].event_time"],
        ),
        ('{"rows": [{"values": {"a": {"double_value": 1}, "b": [null]}}]}', ["rows[0].values.a", "rows[0].values.b"]),
        ('{"rows": [', []),
    ):
        status, answer = await post(values, "carrier_delays", body)
        assert status == "400", body
        assert "INVALID_JSON" in str(answer), body
        found = [each["field"] for detail in answer["details"] for each in detail.get("field_violations", ())]
        assert found == places, body
    for view, body, code in (("none", "{}", "404"), ("gates", "{}", "400"), ("gates", '{"rows": []}', "400")):
        assert (await post(values, view, body))[0] == code


async def test_a_cancel_ends_the_call_and_what_has_not_been_asked_of_redis_yet(
    tmp_path: Path, redis: RedisServer, registry_address: str
) -> None:
    """Nothing else would end it: every time-out is far away. A round trip that has begun ends by itself, for nobody."""
    async with (
        LateReplies(redis).listening() as late,
        running_values(tmp_path, late.url, registry_address=registry_address, redis_read_deadline_s=300) as values,
        redis.client() as client,
    ):

        async def reads_at_redis() -> int:
            return int((await client.info("commandstats")).get("cmdstat_hmget", {"calls": 0})["calls"])

        def in_flight() -> float | None:
            registry = values.features.serving.runtime.registry
            return registry.get_sample_value(
                "interlock_features_requests_in_flight", {"method": f"{SERVICE}/ReadFeatures"}
            )

        await values.features.apply(an_entity(), a_view())
        await values.push(*(a_row(f"c{number}", now_us(), delay_mean=float(number)) for number in range(20)))
        before = await reads_at_redis()
        late.delay_s = 300.0
        reads = [asyncio.ensure_future(values.read(f"c{number}")) for number in range(20)]
        await eventually(lambda: in_flight() == 20 and late.unanswered)
        for read in reads:
            read.cancel()
        await eventually(lambda: in_flight() == 0)
        assert late.unanswered
        late.release()
        found = await asyncio.gather(*(values.read(f"c{number}") for number in range(20)))
        assert [rows[0][0] for rows in found] == [float(number) for number in range(20)]
        assert await reads_at_redis() - before < 2 * 20
