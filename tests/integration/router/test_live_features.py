"""The router with the real features service on a real Redis: values arrive, and Redis may come and go under load."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from interlock.features.v1.feature_view_pb2 import EventField, Feature, OnDemandSource
from interlock.registry.v1 import route_pb2
from interlock.router.v1 import prediction_pb2
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE, FEATURE_TYPE_INT64

from tests.fakes.feature_bindings import FakeBindings, serve_bindings
from tests.fakes.feature_values import HOUR, SECOND, Values, a_row, now_us, running_values, stamp
from tests.fakes.features_service import a_view, an_entity, hours
from tests.fakes.late_redis import LateReplies
from tests.fakes.redis_server import RedisServer, redis_server
from tests.fakes.router_models import LIVE, live_signature, schedule_signature
from tests.fakes.router_registry import deployment_of, route_of, version_of
from tests.fakes.router_world import World, eventually

ENTITIES = {"carrier": "B6", "origin": "JFK"}
LIVE_ANSWER, FALLBACK_ANSWER = 9_12_34_18.0, 9.0
FALLEN_BACK = ["features_unavailable", "fallback"]


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
async def values(tmp_path: Path, redis: RedisServer) -> AsyncIterator[Values]:
    async with live_values(tmp_path, redis, redis.url) as running:
        yield running


@asynccontextmanager
async def live_values(folder: Path, redis: RedisServer, url: str) -> AsyncIterator[Values]:
    """Features with the three views that the live model fetches from: two pushed ones, and one computed on demand."""
    registry = f"unix:{redis.folder}/registry.sock"
    async with (
        serve_bindings(FakeBindings(), registry),
        running_values(folder, url, registry_address=registry, redis_read_deadline_s=0.9) as running,
    ):
        double, whole = FEATURE_TYPE_DOUBLE, FEATURE_TYPE_INT64
        await running.features.apply(
            an_entity(),
            an_entity("origin"),
            a_view("carriers", features=[Feature(name="delay", type=double, max_age=hours(1))]),
            a_view("weather", entities=["entities/origin"], features=[Feature(name="wind", type=double)]),
            a_view(
                "hours",
                entities=[],
                features=[Feature(name="twice", type=whole)],
                on_demand_source=OnDemandSource(
                    inputs=[EventField(name="hour", type=whole)], expressions={"twice": "hour * 2"}
                ),
            ),
        )
        await running.push(a_row("B6", now_us() - SECOND, delay=12.0), view="carriers")
        await running.push(a_row({"origin": "JFK"}, now_us() - HOUR, wind=34.0), view="weather")
        yield running


@pytest.fixture
async def world(idle_world: World, values: Values) -> World:
    return await live_world(idle_world, values)


async def live_world(idle_world: World, values: Values) -> World:
    """A router whose live model falls back to the schedule when features cannot be had."""
    signature = live_signature()
    signature.features[1].ClearField("max_age")
    signature.features[3].source = "hours.twice"
    routed = route_of(LIVE, [(1, 10_000)])
    routed.route.feature_failure_policy = route_pb2.FEATURE_FAILURE_POLICY_FALLBACK
    routed.route.fallback.rungs.add(deployment=f"deployments/{LIVE}-2")
    idle_world.control.resources = [
        version_of(LIVE, 1, signature), version_of(LIVE, 2, schedule_signature()),
        deployment_of(LIVE, 1), deployment_of(LIVE, 2), routed,
    ]  # fmt: skip
    idle_world.replica.ready = {(LIVE, "1"), (LIVE, "2")}
    # Everything runs in this one process: what a busy machine adds must not look like an outage.
    idle_world.overrides |= {"features_address": values.features.address, "features_timeout_s": 1.0}
    await idle_world.start_router(wait=False)
    await idle_world.wait_ready(LIVE)
    return idle_world


async def predict(world: World, **fields: Any) -> prediction_pb2.Prediction:
    asked: dict[str, Any] = {"model": LIVE, "features": {"hour": FeatureValue(int64_value=9)}, "entities": ENTITIES}
    return (await world.router.Predict(pb.PredictRequest(**(asked | fields)), timeout=5)).prediction


async def test_values_that_were_pushed_and_computed_are_what_the_model_gets(world: World, values: Values) -> None:
    prediction = await predict(world)
    assert (prediction.prediction.double_value, list(prediction.degraded)) == (LIVE_ANSWER, [])
    await values.push(a_row("B6", now_us(), delay=13.0), view="carriers")
    assert (await predict(world)).prediction.double_value == 9_13_34_18
    # As of an earlier time that value was not there; the store holds the newest only, so the default stands in.
    then = await predict(world, as_of_time=stamp(now_us() - 60 * SECOND))
    assert (then.prediction.double_value, list(then.missing_features)) == (9_07_34_18, ["delay"])
    unknown = await predict(world, entities={"carrier": "??", "origin": "JFK"})
    assert (unknown.prediction.double_value, list(unknown.missing_features)) == (9_07_34_18, ["delay"])


async def test_a_key_of_no_entity_is_refused_by_name(world: World) -> None:
    body = {"model": LIVE, "features": {"hour": 9}, "entities": ENTITIES | {"carier": "B6"}}
    status, answer = await world.post("/v1/predict", body)
    assert (status, answer["code"]) == (400, 3)
    assert 'entities: want ids of entities, got "carier"' in answer["message"]


async def test_redis_killed_and_started_again_under_load(world: World, redis: RedisServer) -> None:
    answers: list[tuple[float, prediction_pb2.Prediction]] = []
    """With the time at which each was asked for."""
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            asked = time.monotonic()
            answers.append((asked, await predict(world)))
            await asyncio.sleep(0.02)

    load = [asyncio.ensure_future(ask()) for _ in range(10)]
    await eventually(lambda: len(answers) > 100)
    going = time.monotonic()
    await redis.kill()
    gone = time.monotonic()
    await eventually(lambda: len([at for at, _ in answers if at > gone]) > 200)
    refused = world.metric("interlock_router_feature_fetches_refused_total")
    coming = time.monotonic()
    await redis.start()
    # The load goes on, but none of it is needed: the features service finds Redis, and the router the service.
    await eventually(lambda: world.metric("interlock_router_features_breaker_open") == 0)
    back = time.monotonic()
    await eventually(lambda: len([at for at, _ in answers if at > back]) > 100)
    stop.set()
    await asyncio.gather(*load)

    whole = [(at, answer.prediction.double_value, list(answer.degraded)) for at, answer in answers]
    assert {value for _, value, _ in whole} == {LIVE_ANSWER, FALLBACK_ANSWER}
    assert all(degraded == ([] if value == LIVE_ANSWER else FALLEN_BACK) for _, value, degraded in whole)
    last_before = max(at for at, _, _ in whole if at < going)
    assert all(value == LIVE_ANSWER for at, value, _ in whole if at < last_before - 1 or at > back)
    assert all(value == FALLBACK_ANSWER for at, value, _ in whole if gone < at < coming)
    assert refused > 150


async def test_redis_that_takes_two_seconds_is_not_waited_for(
    idle_world: World, redis: RedisServer, tmp_path: Path
) -> None:
    """It answers all it is asked, only too late for anybody; what it says then must be nobody's."""
    async with LateReplies(redis).listening() as late, live_values(tmp_path, redis, late.url) as values:
        world = await live_world(idle_world, values)
        carriers = [f"c{number}" for number in range(5)]
        await values.push(*(a_row(one, now_us(), delay=float(at)) for at, one in enumerate(carriers)), view="carriers")

        async def ask_all() -> list[tuple[float, list[str]]]:
            answers = await asyncio.gather(*(predict(world, entities=ENTITIES | {"carrier": one}) for one in carriers))
            return [(answer.prediction.double_value, list(answer.degraded)) for answer in answers]

        live: list[tuple[float, list[str]]] = [(9_00_34_18.0 + 1_00_00.0 * at, []) for at in range(len(carriers))]
        assert await ask_all() == live
        late.delay_s = 2.0
        for _ in range(40):
            assert await ask_all() == [(FALLBACK_ANSWER, FALLEN_BACK)] * len(carriers)
        # The first few found out that it does not answer in time. The others were not even asked for.
        assert world.metric("interlock_router_feature_fetches_refused_total") > 150
        late.delay_s = 0.0
        await eventually(lambda: world.metric("interlock_router_features_breaker_open") == 0)
        for _ in range(20):
            assert await ask_all() == live
