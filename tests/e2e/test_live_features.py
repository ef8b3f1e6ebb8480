"""Features from definition to answer: applied, pushed, fetched for a prediction, and missed while Redis is away."""

import asyncio
import json
import os
import secrets
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import pytest
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1 import router_service_pb2_grpc as rpc
from interlock.types.v1.feature_value_pb2 import FeatureValue

from tests.e2e.live_model import ENTITIES, FALLEN_BACK, LIVE_ANSWER, SCHEDULE_ANSWER, Live
from tests.e2e.otlp import Receiver
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(300)

# What a request may take longer while features are away (its 99th percentile: benchmarks.feature_outage), and how soon
# answers are whole again after they are back. Single ones that a busy machine makes late may take more patience.
ADDED_MS, CLEAN_S, PATIENCE_S = 50.0, 5.0, 30.0


@pytest.fixture(scope="module")
def made() -> dict[Path, Live]:
    """What was set up, by the folder of its stack."""
    return {}


@pytest.fixture
def live(stack: Stack, made: dict[Path, Live], tmp_path_factory: pytest.TempPathFactory) -> Live:
    """The model of the stack, with the values that LIVE_ANSWER is made of."""
    if stack.folder not in made:
        found = Live(stack, tmp_path_factory.mktemp("live"))
        found.set_up()
        made[stack.folder] = found
    made[stack.folder].push(made[stack.folder].carriers, {"carrier": "B6"}, delay=12)
    return made[stack.folder]


def test_what_is_defined_and_pushed_is_what_the_model_answers_with(live: Live) -> None:
    answer = live.predict().json()
    assert (answer["prediction"], answer["degraded"], answer["missing_features"]) == (LIVE_ANSWER, [], [])
    live.push(live.carriers, {"carrier": "B6"}, delay=13)
    assert live.predict().json()["prediction"] == 9_13_34.0
    live.push(live.carriers, {"carrier": "DL"}, at=datetime.now(UTC) - timedelta(hours=37), delay=1)
    old = live.predict(entities=ENTITIES | {"carrier": "DL"}).json()
    assert (old["prediction"], old["degraded"], old["missing_features"]) == (9_07_34.0, ["features_default"], ["delay"])
    shown = live.stack.succeed(
        "predict", live.model, "--features", '{"hour": 9}', "--entities", json.dumps(ENTITIES), "--json"
    )
    assert json.loads(shown)["prediction"] == 9_13_34.0
    wrong = live.predict(entities={"carier": "B6"})
    assert (wrong.status_code, "carier" in wrong.json()["message"]) == (400, True)


def test_a_version_that_no_view_satisfies_is_not_deployed(live: Live) -> None:
    live.register(*live.fetched(delay="delai"))
    refused = live.stack.command("deploy", live.model, "3")
    assert refused.returncode == 1
    assert f"{live.carriers}.delai" in refused.stderr
    assert live.predict().json()["prediction"] == LIVE_ANSWER
    # And what a deployed version reads cannot be taken from under it.
    file = live.folder / "changed.yaml"
    text = (live.folder / "features.yaml").read_text("utf-8")
    file.write_text(text.replace("delay:", "lateness:"), "utf-8")
    kept = live.stack.command("features", "apply", str(file), "--yes")
    assert kept.returncode == 1
    assert live.model in kept.stdout + kept.stderr


def test_the_trace_of_a_request_goes_through_the_features_service(live: Live, spans: Receiver) -> None:
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    body = {"model": live.model, "features": {"hour": 9}, "entities": ENTITIES}
    url, headers = f"http://{live.stack.edge}/v1/predict", {"traceparent": f"00-{trace_id}-{span_id}-01"}
    assert httpx.post(url, json=body, headers=headers, timeout=10).is_success
    found = spans.wait_for(trace_id, span_id, {"interlock-router", "interlock-features", "interlock-inference"})
    by_name = {span.name: span for span in found}
    read, fetch = by_name["interlock.features.v1.FeatureService/ReadFeatures"], by_name["interlock.router/features"]
    assert read.parent_id == fetch.span_id
    assert fetch.parent_id == by_name["interlock.router.v1.RouterHttpService/Predict"].span_id


async def test_redis_away_under_load_is_answered_by_policy_and_soon_forgotten(live: Live) -> None:
    await asyncio.to_thread(live.fall_back)
    redis = live.stack.pid_of("redis")
    async with grpc.aio.insecure_channel(live.stack.edge) as channel, httpx.AsyncClient(timeout=10) as http:
        load = _Load(live, rpc.RouterServiceStub(channel), http)
        await load.run_for(1.5)
        usual = sorted(ms for value, _, ms in load.answers if value == LIVE_ANSWER)
        os.kill(redis, signal.SIGSTOP)
        await load.run_for(2.0)
        os.kill(redis, signal.SIGKILL)
        await load.run_for(0.5)
        await asyncio.to_thread(
            live.stack.wait_until, lambda: live.stack.status()["redis"]["state"] == "ready", "Redis is back"
        )
        back, begun = time.monotonic(), len(load.answers)
        while all(value != LIVE_ANSWER for value, _, _ in load.answers[begun:]):
            assert time.monotonic() < back + CLEAN_S, live.stack.story()
            await load.run_for(0.1)
        # From then on all of them, but for single ones that a busy machine makes late whatever Redis does.
        while any(value != LIVE_ANSWER for value, _, _ in load.answers[-30:]):
            assert time.monotonic() < back + PATIENCE_S, live.stack.story()
            await load.run_for(0.3)
    values = {value for value, _, _ in load.answers}
    assert values == {LIVE_ANSWER, SCHEDULE_ANSWER}
    for value, degraded, _ in load.answers:
        assert degraded == ([] if value == LIVE_ANSWER else FALLEN_BACK)
    away = sorted(ms for value, _, ms in load.answers if value == SCHEDULE_ANSWER)
    # The middle one, so that a busy machine does not decide.
    assert away[len(away) // 2] < usual[len(usual) // 2] + ADDED_MS
    # The log says of such an answer which values could not be had, and why.
    url = f"http://{live.stack.edge}/v1/predictionRecords/{load.fallen_back}"
    await asyncio.to_thread(live.stack.wait_until, lambda: httpx.get(url).is_success, "it is in the log")
    logged = (await asyncio.to_thread(httpx.get, url)).json()["prediction_record"]
    assert logged["missing_features"] == dict.fromkeys(("delay", "wind"), "MISSING_REASON_UNAVAILABLE")


class _Load:
    """Requests over gRPC and REST, paced; every answer is kept as value, degradation and the router's milliseconds."""

    def __init__(self, live: Live, router: "rpc.RouterServiceAsyncStub", http: httpx.AsyncClient) -> None:
        self._live = live
        self._router = router
        self._http = http
        self.answers: list[tuple[float, list[str], float]] = []
        self.fallen_back = ""
        """Id of an answer that was degraded."""

    async def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._ask(end, over_rest=bool(number % 2)) for number in range(6)))

    async def _ask(self, end: float, *, over_rest: bool) -> None:
        while time.monotonic() < end:
            self.answers.append(await (self._rest() if over_rest else self._grpc()))
            await asyncio.sleep(0.03)

    async def _rest(self) -> tuple[float, list[str], float]:
        body = {"model": self._live.model, "features": {"hour": 9}, "entities": ENTITIES}
        answer = await self._http.post(f"http://{self._live.stack.edge}/v1/predict", json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        if found["degraded"]:
            self.fallen_back = found["prediction_id"]
        return found["prediction"], found["degraded"], found["latency_ms"]

    async def _grpc(self) -> tuple[float, list[str], float]:
        features = {"hour": FeatureValue(int64_value=9)}
        request = pb.PredictRequest(model=self._live.model, features=features, entities=ENTITIES)
        found = (await self._router.Predict(request, timeout=10)).prediction
        return found.prediction.double_value, list(found.degraded), found.latency_ms
