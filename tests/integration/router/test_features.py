"""Fetched features: one shared read, the policies where a value is missing, and what callers and events are told."""

import asyncio
import struct
import time
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.features.v1.feature_service_pb2_grpc import FeatureServiceStub
from interlock.monitor.v1 import prediction_event_pb2 as event_pb
from interlock.registry.v1 import route_pb2
from interlock.router.v1 import prediction_pb2
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1 import signature_pb2
from interlock.types.v1.feature_value_pb2 import FeatureValue
from prometheus_client import CollectorRegistry

from services.common.arrivals import no_arrivals
from services.common.call import Call
from services.common.channels import open_channel
from services.common.door_turns import Turns
from services.common.errors import ServiceError
from services.common.tracing import Tracing
from services.router.adapters.features_client.reader import FeatureReads
from services.router.adapters.metrics import FetchMetrics
from services.router.domain.enrichment import FeatureAsk, FetchedRow
from tests.fakes.router_features import STALE, serve_features
from tests.fakes.router_models import LIVE, live_signature, schedule_signature
from tests.fakes.router_registry import Resource, deployment_of, route_of, version_of
from tests.fakes.router_world import World, error_of, eventually, reason_of

ENTITIES = {"carrier": "B6", "origin": "JFK"}
SOURCES = ("carriers.delay", "weather.wind")
DEFAULT, REFUSE = signature_pb2.MISSING_POLICY_DEFAULT, signature_pb2.MISSING_POLICY_REFUSE
FALLBACK = signature_pb2.MISSING_POLICY_FALLBACK


def resources(*rungs: object, policy: int = 0, redacted: tuple[str, ...] = (), **policies: int) -> list[Resource]:
    """The live model: version 1 fetches three features, version 2 none; all traffic on version 1."""
    found = [
        version_of(LIVE, 1, live_signature(**policies), "1.0.1"),
        version_of(LIVE, 2, schedule_signature(), "1.0.2"),
        deployment_of(LIVE, 1),
        deployment_of(LIVE, 2),
    ]
    routed = route_of(LIVE, [(1, 10_000)])
    routed.route.feature_failure_policy = policy  # type: ignore[assignment]
    routed.route.redacted_features.extend(redacted)
    for rung in rungs:
        if isinstance(rung, str):
            routed.route.fallback.rungs.add(deployment=rung)
        else:
            routed.route.fallback.rungs.add(static_prediction=rung)
    return [*found, routed]


async def start(world: World, *rungs: object, **fields: Any) -> None:
    world.control.resources = resources(*rungs, **fields)
    for replica in world.replicas:
        replica.ready = {(LIVE, "1"), (LIVE, "2")}
    await world.start_router(wait=False)
    await world.wait_ready(LIVE)


def ask(hour: int = 9, entities: dict[str, str] | None = None, **fields: Any) -> pb.PredictRequest:
    keys = ENTITIES if entities is None else entities
    return pb.PredictRequest(model=LIVE, features={"hour": FeatureValue(int64_value=hour)}, entities=keys, **fields)


async def predict(world: World, *arguments: Any, **fields: Any) -> prediction_pb2.Prediction:
    return (await world.router.Predict(ask(*arguments, **fields), timeout=5)).prediction


@pytest.fixture
async def filled(idle_world: World) -> World:
    """Peers whose features service knows everything about one flight; the router is not started yet."""
    for source, key, value in (
        ("carriers.delay", "B6", 12.0),
        ("weather.wind", "JFK", 34.0),
        ("weather.landings", "JFK", 56),
    ):
        idle_world.features.put(source, key, value)
    # Who wants to see what happens when the service is slow says so; a busy machine is no slow service.
    idle_world.overrides["features_timeout_s"] = 1.0
    return idle_world


async def test_fetched_values_reach_the_model_over_grpc_and_json(filled: World) -> None:
    await start(filled)
    prediction = await predict(filled)
    assert prediction.prediction.double_value == 9_12_34_56
    assert list(prediction.degraded) == list(prediction.missing_features) == []
    body = {"model": LIVE, "features": {"hour": 9}, "entities": ENTITIES}
    status, answer = await filled.post("/v1/predict", body)
    assert (status, answer["prediction"], answer["missing_features"]) == (200, 9_12_34_56.0, [])
    assert filled.metric("interlock_router_feature_values_total", model=LIVE, status="present") == 6
    asked = filled.features.requests[0]
    assert asked.rows[0].request_values["hour"].int64_value == 9
    assert not asked.HasField("as_of_time")


async def test_rows_have_keys_of_their_own_and_share_one_read(filled: World) -> None:
    await start(filled)
    for number in range(200):
        filled.features.put("carriers.delay", f"c{number}", number % 60 + 0.0)
    rows = [
        pb.PredictRow(features=ask(9).features, entities={"carrier": f"c{number}", "origin": "JFK"})
        for number in range(200)
    ]
    answer = await filled.router.PredictRows(pb.PredictRowsRequest(model=LIVE, rows=rows), timeout=5)
    values = [result.prediction.prediction.double_value for result in answer.results]
    assert values == [9_00_34_56 + (number % 60) * 10_000 for number in range(200)]
    assert [len(request.rows) for request in filled.features.requests] == [200]


async def test_requests_of_one_moment_share_reads_and_each_gets_its_own_row(filled: World) -> None:
    for number in range(64):
        filled.features.put("carriers.delay", f"c{number}", float(number))
    async with open_channel(filled.features_address) as channel:
        reads = _reads(channel, timeout_s=2.0)
        found = await asyncio.gather(*(reads.read(SOURCES, [_key(number)], Call("m")) for number in range(64)))
        # A request that goes away takes nobody with it.
        filled.features.delay_s = 0.05
        staying, leaving = (asyncio.ensure_future(reads.read(SOURCES, [_key(number)], Call("m"))) for number in (1, 2))
        await asyncio.sleep(0.01)
        leaving.cancel()
        assert _first(await staying) == 1.0
    assert [_first(rows) for rows in found] == [float(number) for number in range(64)]
    assert len(filled.features.requests[0].rows) == 64


async def test_a_read_ends_once_the_last_of_its_requests_has_gone(filled: World) -> None:
    filled.features.put("carriers.delay", "c1", 1.0)
    async with open_channel(filled.features_address) as channel:
        reads = _reads(channel, timeout_s=300.0)
        filled.features.delay_s = 300.0
        asked: list[asyncio.Future[Any]] = []

        def all_are_out() -> bool:
            return sum(len(request.rows) for request in filled.features.requests) == len(asked)

        # A lone one leaves at once, and so does half of two; the others are read together.
        for numbers in ((0,), (1,), (2, 3)):
            asked += [asyncio.ensure_future(reads.read(SOURCES, [_key(number)], Call("m"))) for number in numbers]
            await eventually(all_are_out)
        assert [len(request.rows) for request in filled.features.requests] == [1, 1, 2]
        asked[2].cancel()
        asked[0].cancel()
        await eventually(lambda: filled.features.cancelled == 1)
        asked[3].cancel()
        await eventually(lambda: filled.features.cancelled == 2)
        assert not asked[1].done()
        asked[1].cancel()
        await eventually(lambda: filled.features.cancelled == 3)
        filled.features.delay_s = 0.0
        assert _first(await reads.read(SOURCES, [_key(1)], Call("m"))) == 1.0


def _reads(channel: grpc.aio.Channel, timeout_s: float) -> FeatureReads:
    return FeatureReads(
        FeatureServiceStub(channel),
        timeout_s=timeout_s, gather_s=0.2, arriving=no_arrivals, turns=Turns(),
        tracing=Tracing("test"), metrics=FetchMetrics(CollectorRegistry()),
    )  # fmt: skip


def _key(number: int) -> FeatureAsk:
    return FeatureAsk({"carrier": f"c{number}", "origin": "JFK"}, {})


def _first(rows: list[FetchedRow | ServiceError]) -> object:
    assert isinstance(rows[0], FetchedRow)
    return rows[0].values[0]


@pytest.mark.parametrize("names_rows", [True, False])
async def test_a_row_with_wrong_keys_is_told_so_and_costs_the_others_nothing(filled: World, names_rows: bool) -> None:
    filled.features.names_rows = names_rows
    await start(filled)
    rows = [pb.PredictRow(features=ask().features, entities=ENTITIES) for _ in range(20)]
    rows[3].entities["carrier"] = "bad"
    rows[11].entities["origin"] = "bad"
    answer = await filled.router.PredictRows(pb.PredictRowsRequest(model=LIVE, rows=rows), timeout=5)
    codes = [result.error.code for result in answer.results]
    assert codes == [3 if index in (3, 11) else 0 for index in range(20)]
    if names_rows:
        assert "entities.carrier: want a key, got a bad one" in answer.results[3].error.message
    body = {"model": LIVE, "features": {"hour": 9}, "entities": {"carrier": "bad", "origin": "JFK"}}
    status, body = await filled.post("/v1/predict", body)
    assert (status, body["code"]) == (400, 3)
    assert "entities" in body["message"]
    assert filled.metric("interlock_router_features_breaker_open") == 0


async def test_a_default_stands_in_for_a_missing_and_for_an_old_value(filled: World) -> None:
    await start(filled)
    for entities, age_ms in (({"carrier": "??", "origin": "JFK"}, 0), ({"origin": "JFK"}, 0), (ENTITIES, 60_001)):
        filled.features.put("carriers.delay", "B6", 12.0, age_ms=age_ms)
        prediction = await predict(filled, entities=entities)
        assert prediction.prediction.double_value == 9_07_34_56
        assert (list(prediction.degraded), list(prediction.missing_features)) == (["features_default"], ["delay"])
    filled.features.put("carriers.delay", "B6", 12.0, age_ms=60_000)
    assert (await predict(filled)).prediction.double_value == 9_12_34_56
    assert filled.metric("interlock_router_degraded_predictions_total", model=LIVE, how="features_default") == 3


async def test_values_are_held_to_the_signature_s_limits(filled: World) -> None:
    await start(filled)
    filled.features.put("carriers.delay", "B6", 61.5)
    prediction = await predict(filled)
    assert (prediction.prediction.double_value, list(prediction.flagged)) == (9_60_34_56, ["delay"])
    filled.features.put("weather.wind", "JFK", -1.0)
    error = await error_of(filled.router.Predict(ask(), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FEATURES")
    assert "features.wind: want a number of at least 0, got -1.0 from weather.wind" in (error.details() or "")


async def test_refusal_lists_every_missing_feature(filled: World) -> None:
    filled.features.values.clear()
    filled.features.put("weather.landings", "JFK", 56, status=STALE, age_ms=90_000)
    await start(filled, 1.0, delay=REFUSE)
    error = await error_of(filled.router.Predict(ask(), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "FEATURES_MISSING")
    assert "features.delay: want a value of carriers.delay, got none" in (error.details() or "")
    assert "features.landings: want a value of weather.landings, got one that is too old" in (error.details() or "")
    assert "wind" not in (error.details() or "")


async def test_a_value_for_a_fetched_feature_is_refused(filled: World) -> None:
    await start(filled)
    features = {"hour": FeatureValue(int64_value=9), "wind": FeatureValue(double_value=3)}
    error = await error_of(filled.router.Predict(pb.PredictRequest(model=LIVE, features=features, entities=ENTITIES)))
    assert reason_of(error) == "INVALID_FEATURES"
    assert "features.wind: want no value, as it is fetched from weather.wind" in (error.details() or "")
    assert filled.features.requests == []


async def test_the_ladder_answers_by_another_version_and_then_by_a_fixed_number(filled: World) -> None:
    del filled.features.values["weather.wind", "JFK"]
    await start(filled, "deployments/gone", f"deployments/{LIVE}-1", f"deployments/{LIVE}-2", 42.5)
    prediction = await predict(filled)
    assert (prediction.prediction.double_value, prediction.model_version, prediction.variant) == (9, "2", "1")
    assert prediction.served_by == f"deployments/{LIVE}-2"
    assert (list(prediction.degraded), list(prediction.missing_features)) == (["fallback"], ["wind"])
    filled.replica.set_ready([(LIVE, "1")])
    await eventually(lambda: filled.replica.streams == 1)
    fixed = await predict(filled)
    assert (fixed.prediction.double_value, fixed.model_version, fixed.served_by) == (42.5, "", "static_prediction")
    assert list(fixed.degraded) == ["fallback"]
    assert filled.metric("interlock_router_fallback_predictions_total", model=LIVE, served_by="static_prediction") == 1
    await eventually(lambda: filled.monitor.rows == 2)
    assert [(batch.version, batch.variant, list(batch.degraded)) for batch in filled.monitor.batches] == [
        ("2", "1", [True]),
        ("", "1", [True]),
    ]
    assert [list(batch.has_tensors) for batch in filled.monitor.batches] == [[True], [False]]


async def test_without_a_rung_that_answers_the_first_problem_is_told(filled: World) -> None:
    del filled.features.values["weather.wind", "JFK"]
    await start(filled)
    error = await error_of(filled.router.Predict(ask(), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "FEATURES_MISSING")
    assert "features.wind" in (error.details() or "")


async def test_a_pinned_version_has_no_ladder(filled: World) -> None:
    del filled.features.values["weather.wind", "JFK"]
    await start(filled, 42.5)
    assert reason_of(await error_of(filled.router.Predict(ask(version="1"), timeout=5))) == "FEATURES_MISSING"


async def test_the_ladder_answers_when_no_replica_does(filled: World) -> None:
    await start(filled, f"deployments/{LIVE}-2")
    filled.replica.set_ready([(LIVE, "2")])
    await eventually(lambda: filled.replica.streams == 1)
    rows = [pb.PredictRow(features=ask(hour).features, entities=ENTITIES) for hour in range(5)]
    answer = await filled.router.PredictRows(pb.PredictRowsRequest(model=LIVE, rows=rows), timeout=5)
    assert [result.prediction.prediction.double_value for result in answer.results] == [0, 1, 2, 3, 4]
    assert {(*result.prediction.degraded, result.prediction.model_version) for result in answer.results} == {
        ("fallback", "2")
    }
    await eventually(lambda: filled.monitor.rows == 5)
    assert filled.monitor.statuses == {0: 5}
    assert {batch.version for batch in filled.monitor.batches} == {"2"}


DOWN = [
    # (route's policy, missing policy of all three, what comes of it)
    (route_pb2.FEATURE_FAILURE_POLICY_UNSPECIFIED, DEFAULT, "UNAVAILABLE"),
    (route_pb2.FEATURE_FAILURE_POLICY_UNSPECIFIED, FALLBACK, "fallback"),
    (route_pb2.FEATURE_FAILURE_POLICY_UNSPECIFIED, REFUSE, "UNAVAILABLE"),
    (route_pb2.FEATURE_FAILURE_POLICY_FALLBACK, REFUSE, "fallback"),
    (route_pb2.FEATURE_FAILURE_POLICY_REFUSE, FALLBACK, "UNAVAILABLE"),
    (route_pb2.FEATURE_FAILURE_POLICY_DEFAULTS, FALLBACK, "UNAVAILABLE"),
]


@pytest.mark.parametrize(("route", "signature", "outcome"), DOWN)
async def test_policies_when_the_features_service_is_down(
    filled: World, route: int, signature: int, outcome: str
) -> None:
    """Two of the three features have no default: DEFAULT and DEFAULTS have nothing to give for them."""
    assert filled.features_server is not None
    await filled.features_server.stop(0)
    policies = {"delay": signature, "wind": signature, "landings": signature}
    await start(filled, f"deployments/{LIVE}-2", policy=route, **policies)
    if outcome == "fallback":
        prediction = await predict(filled)
        assert (prediction.prediction.double_value, prediction.model_version) == (9, "2")
        assert list(prediction.degraded) == ["features_unavailable", "fallback"]
        assert list(prediction.missing_features) == ["delay", "wind", "landings"]
    else:
        error = await error_of(filled.router.Predict(ask(), timeout=5))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "FEATURES_UNAVAILABLE")


async def test_a_silent_service_is_not_waited_for_and_soon_not_asked(filled: World) -> None:
    del filled.overrides["features_timeout_s"]
    await start(filled, f"deployments/{LIVE}-2", policy=route_pb2.FEATURE_FAILURE_POLICY_FALLBACK)
    filled.features.delay_s = 300.0
    for _ in range(25):
        assert "features_unavailable" in (await predict(filled)).degraded
    assert filled.features.answered == 0
    # Five waited until their time was up, which showed that it is down. From then on nobody did, not even as a probe. (One
    # or two more may have been sent before the last of the five was known to have failed.)
    assert filled.features.reads_for_callers < 10
    assert refused(filled) > 15
    filled.features.delay_s = 0.0
    await found_back(filled)


async def test_a_dead_service_is_found_back_without_any_request(filled: World) -> None:
    await start(filled, f"deployments/{LIVE}-2", policy=route_pb2.FEATURE_FAILURE_POLICY_FALLBACK)
    assert filled.features_server is not None
    await filled.features_server.stop(0)
    for _ in range(25):
        assert "features_unavailable" in (await predict(filled)).degraded
    assert refused(filled) > 15
    again, _ = await serve_features(filled.features, filled.features_address)
    await found_back(filled)
    await again.stop(0)


def refused(world: World) -> float:
    """Requests that were answered by policy without asking."""
    return world.metric("interlock_router_feature_fetches_refused_total")


async def found_back(world: World) -> None:
    """Nobody asks until the router knows that the service is back; then answers are whole."""
    asked = world.features.reads_for_callers
    await eventually(lambda: world.metric("interlock_router_features_breaker_open") == 0)
    assert world.features.reads_for_callers == asked
    async with asyncio.timeout(15):
        # A busy machine may need more than the 40 ms of one.
        while (await predict(world)).degraded:
            pass


async def test_a_request_with_little_time_is_still_answered_by_policy(filled: World) -> None:
    await start(filled, f"deployments/{LIVE}-2", policy=route_pb2.FEATURE_FAILURE_POLICY_FALLBACK)
    filled.features.delay_s = 30.0
    answer = await filled.router.Predict(ask(), timeout=0.6)
    assert list(answer.prediction.degraded) == ["features_unavailable", "fallback"]


async def test_as_of_time_is_checked_passed_on_and_kept_apart(filled: World) -> None:
    filled.overrides["clock_tolerance_s"] = 3600.0
    await start(filled)
    now = int(time.time())
    times = [1_358_000_000, 1_358_000_000, now + 3_000, 0, -1, now + 4_000]
    rows = [
        pb.PredictRow(
            features=ask().features, entities=ENTITIES, as_of_time=Timestamp(seconds=moment, nanos=123_456_789)
        )
        for moment in times
    ]
    answer = await filled.router.PredictRows(pb.PredictRowsRequest(model=LIVE, rows=rows), timeout=5)
    ids = [uuid.UUID(result.prediction.prediction_id) for result in answer.results[:4]]
    assert [found.int >> 80 for found in ids] == [moment * 1000 + 123 for moment in times[:4]]
    assert [result.error.code for result in answer.results] == [0, 0, 0, 0, 3, 3]
    assert "as_of_time: want a time from 1970 on, at most 3600 s ahead" in answer.results[5].error.message
    asked = {request.as_of_time.ToMicroseconds(): len(request.rows) for request in filled.features.requests}
    assert asked == {
        moment * 10**6 + 123_456: count for moment, count in ((1_358_000_000, 2), (now + 3_000, 1), (0, 1))
    }
    body = {"model": LIVE, "features": {"hour": 9}, "entities": ENTITIES}
    _, found = await filled.post("/v1/predict", body | {"as_of_time": "2013-01-12T16:13:20.5+02:00"})
    assert uuid.UUID(found["prediction_id"]).int >> 80 == 1_358_000_000_500
    for wrong in ("2013-01-12T14:13:20", "yesterday", 1_358_000_000):
        status, refused = await filled.post("/v1/predict", body | {"as_of_time": wrong})
        assert (status, "as_of_time: want a time with its zone" in refused["message"]) == (400, True)


async def test_events_tell_keys_and_times_and_nothing_that_is_redacted(filled: World) -> None:
    filled.features.put("carriers.delay", "B6", 12.0, age_ms=5_000)
    filled.features.put("weather.wind", "JFK", 34.25)
    await start(filled, redacted=("wind", "origin"), landings=DEFAULT)
    await predict(filled, entities=ENTITIES | {"origin": "JFK"})
    await error_of(filled.router.Predict(ask(entities={"carrier": "B6", "origin": "LGA"}), timeout=5))
    await eventually(lambda: filled.monitor.rows == 2)
    kept = sorted(filled.monitor.batches, key=lambda batch: list(batch.statuses))
    read_us = kept[0].feature_read_times_us[0]
    assert abs(read_us / 1e6 - time.time()) < 60
    assert [(column.entity, list(column.keys)) for column in kept[0].entity_keys] == [("carrier", ["B6"])]
    times = {column.feature: list(column.event_times_us) for column in kept[0].feature_event_times}
    assert times == {"delay": [read_us - 5_000_000], "landings": [read_us - 1_000_000]}
    assert kept[0].inputs[0].shape == [1, 4]
    assert list(kept[0].redacted_features) == ["origin", "wind"]
    assert list(kept[1].statuses) == [9]
    sent = b"".join(request.SerializeToString() for request in filled.monitor.requests)
    for secret in (b"JFK", b"LGA", struct_of(34.25)):
        assert secret not in sent
    assert struct_of(12.0) in sent


def struct_of(value: float) -> bytes:
    return struct.pack("<d", value)


async def test_events_tell_why_there_was_no_value(filled: World) -> None:
    await start(filled, f"deployments/{LIVE}-2", redacted=("wind",), wind=FALLBACK, landings=FALLBACK)
    filled.features.put("carriers.delay", "B6", 12.0, age_ms=61_000)
    asked = {(await predict(filled)).prediction_id: {"delay": event_pb.MISSING_REASON_STALE}}
    assert filled.features_server is not None
    await filled.features_server.stop(0)
    found = await predict(filled)
    asked[found.prediction_id] = dict.fromkeys(("delay", "landings"), event_pb.MISSING_REASON_UNAVAILABLE)
    assert (found.model_version, list(found.degraded)) == ("2", ["features_unavailable", "fallback"])
    await eventually(lambda: filled.monitor.rows == 2)
    assert asked == {
        str(uuid.UUID(bytes=batch.prediction_ids[16 * row : 16 * row + 16])): {
            column.feature: column.reasons[row] for column in batch.missing_features if column.reasons[row]
        }
        for batch in filled.monitor.batches
        for row in range(len(batch.statuses))
    }


async def test_a_trace_goes_on_at_the_features_service(filled: World) -> None:
    await start(filled)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await filled.router.Predict(ask(), timeout=5, metadata=[("traceparent", trace), ("x-correlation-id", "req-7")])
    carried = filled.features.metadata[-1]
    assert carried["traceparent"].split("-")[1] == trace.split("-")[1]
    assert carried["x-correlation-id"] == "req-7"


BAD_KEYS = [
    ({"carrier": "x" * 513}, "entities.carrier: want a key of at most 512 bytes, got 513"),
    ({"car/rier": "x"}, "entities: want 1 to 128 characters"),
    ({f"e{number}": "x" for number in range(65)}, "entities: want at most 64 entities, got 65"),
    ({"carrier": 5}, "entities.carrier: want a text, got 5"),
]


@pytest.mark.parametrize(("entities", "message"), BAD_KEYS, ids=range(len(BAD_KEYS)))
async def test_impossible_keys_are_refused_before_anybody_is_asked(
    filled: World, entities: dict[str, Any], message: str
) -> None:
    await start(filled)
    status, body = await filled.post("/v1/predict", {"model": LIVE, "features": {"hour": 9}, "entities": entities})
    assert status == 400
    assert message in body["message"]
    assert filled.features.requests == []
