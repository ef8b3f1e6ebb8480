"""Features from definition to answer: applied, pushed, fetched for a prediction, and missed while Redis is away."""

import asyncio
import json
import os
import secrets
import signal
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1 import router_service_pb2_grpc as rpc
from interlock.types.v1.feature_value_pb2 import FeatureValue
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.otlp import Receiver
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(300)

ENTITIES = {"carrier": "B6", "airport": "JFK"}
LIVE_ANSWER, SCHEDULE_ANSWER = 9_12_34.0, 9.0
FALLEN_BACK = ["features_unavailable", "fallback"]
# What a request may take longer while features are away, and how soon it is whole again after they are back: five
# seconds on a machine of its own, so some more beside other tests.
ADDED_MS, CLEAN_S = 50.0, 15.0
DEFINITIONS = """
entity: carrier
key_type: string
owner: tests@example.org
---
entity: airport
key_type: string
owner: tests@example.org
---
feature_view: {carriers}
entities: [carrier]
source: push
max_age: 36h
owner: tests@example.org
features:
  delay: {{type: double, description: Minutes}}
---
feature_view: {weather}
entities: [airport]
source: push
owner: tests@example.org
features:
  wind: {{type: double, description: Knots}}
"""


def _model(path: Path, columns: int) -> Path:
    """Write a model whose answer has its inputs as digits, two for each."""
    weights = np.array([[100.0 ** (columns - 1 - place)] for place in range(columns)], dtype=np.float64)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", columns])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["batch", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def _signature(*fetched: Mapping[str, Any]) -> dict[str, Any]:
    features: list[dict[str, Any]] = [{"name": "hour", "type": "FEATURE_TYPE_INT64", "tensor": "x"}]
    features += [
        {"type": "FEATURE_TYPE_DOUBLE", "tensor": "x", "column": place, **found}
        for place, found in enumerate(fetched, 1)
    ]
    return {
        "inputs": [{"name": "x", "data_type": "DATA_TYPE_FP64", "shape": ["-1", str(len(features))]}],
        "outputs": [{"name": "y", "data_type": "DATA_TYPE_FP64", "shape": ["-1", "1"]}],
        "features": features,
        "prediction": {"task": "TASK_REGRESSION", "tensor": "y"},
    }


class Live:
    """A model with a version that fetches and one that does not, and views of its own, in one stack."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        mark = uuid.uuid4().hex[:8]
        self.model, self.carriers, self.weather = f"live-{mark}", f"carriers-{mark}", f"weather-{mark}"

    def set_up(self) -> None:
        """Apply definitions, push values, deploy both versions; all traffic goes to the one that fetches."""
        file = self.folder / "features.yaml"
        file.write_text(DEFINITIONS.format(carriers=self.carriers, weather=self.weather), "utf-8")
        self.stack.succeed("features", "apply", str(file), "--yes")
        self.push(self.carriers, {"carrier": "B6"}, delay=12)
        self.push(self.weather, {"airport": "JFK"}, wind=34)
        self.register(*self.fetched())
        self.register()
        self.stack.succeed("deploy", self.model, "1", "--traffic", "100")
        self.stack.succeed("deploy", self.model, "2")
        self.stack.wait_until(lambda: self.predict().status_code == 200, "the router has heard of the model", 30)

    def fetched(self, delay: str = "delay") -> tuple[dict[str, Any], dict[str, Any]]:
        default = {"missing_policy": "MISSING_POLICY_DEFAULT", "default_value": {"double_value": 7}}
        return (
            {"name": "delay", "source": f"{self.carriers}.{delay}", **default},
            {"name": "wind", "source": f"{self.weather}.wind", "missing_policy": "MISSING_POLICY_FALLBACK"},
        )

    def register(self, *fetched: Mapping[str, Any]) -> None:
        model = _model(self.folder / "model.onnx", 1 + len(fetched))
        described = self.folder / "version.json"
        described.write_text(json.dumps({"signature": _signature(*fetched)}), "utf-8")
        self.stack.succeed("register", self.model, "--file", str(model), "--version", str(described))

    def push(self, view: str, keys: Mapping[str, str], *, at: datetime | None = None, **values: float) -> None:
        row = {
            "entities": keys,
            "values": values,
            "event_time": (at or datetime.now(UTC)).isoformat(),
        }
        url = f"http://{self.stack.edge}/v1/featureViews/{view}:push"
        answer = httpx.post(url, json={"rows": [row]}, timeout=10)
        assert answer.is_success, answer.text
        assert answer.json()["results"][0]["outcome"] in ("PUSH_OUTCOME_WRITTEN", 1), answer.text

    def predict(self, **changes: Any) -> httpx.Response:
        body = {"model": self.model, "features": {"hour": 9}, "entities": ENTITIES, **changes}
        return httpx.post(f"http://{self.stack.edge}/v1/predict", json=body, timeout=10)

    def fall_back(self) -> None:
        """Let the route's fallback answer by the version that fetches nothing."""
        name = f"models/{self.model}/routes/production"
        (deployment,) = (
            found["name"]
            for found in json.loads(self.stack.succeed("deployments", self.model, "--json"))
            if found["model_version"].endswith("/2")
        )
        body = {
            "fallback": {"rungs": [{"deployment": deployment}]},
            "feature_failure_policy": "FEATURE_FAILURE_POLICY_FALLBACK",
        }
        answer = httpx.patch(f"http://{self.stack.edge}/v1/{name}", json=body, timeout=10)
        assert answer.is_success, answer.text
        epoch = int(answer.json()["epoch"])
        self.stack.wait_until(lambda: self.predict().json()["config_epoch"] >= epoch, "the router knows of it", 30)


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
        back = time.monotonic()
        # A row of good answers: on a busy machine single ones may be late whatever Redis does.
        while any(value != LIVE_ANSWER for value, _, _ in load.answers[-30:]):
            assert time.monotonic() < back + CLEAN_S, live.stack.story()
            await load.run_for(0.3)
    values = {value for value, _, _ in load.answers}
    assert values == {LIVE_ANSWER, SCHEDULE_ANSWER}
    for value, degraded, _ in load.answers:
        assert degraded == ([] if value == LIVE_ANSWER else FALLEN_BACK)
    away = sorted(ms for value, _, ms in load.answers if value == SCHEDULE_ANSWER)
    # The middle one, so that a busy machine does not decide.
    assert away[len(away) // 2] < usual[len(usual) // 2] + ADDED_MS


class _Load:
    """Requests over gRPC and REST, paced; every answer is kept as value, degradation and the router's milliseconds."""

    def __init__(self, live: Live, router: "rpc.RouterServiceAsyncStub", http: httpx.AsyncClient) -> None:
        self._live = live
        self._router = router
        self._http = http
        self.answers: list[tuple[float, list[str], float]] = []

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
        return found["prediction"], found["degraded"], found["latency_ms"]

    async def _grpc(self) -> tuple[float, list[str], float]:
        features = {"hour": FeatureValue(int64_value=9)}
        request = pb.PredictRequest(model=self._live.model, features=features, entities=ENTITIES)
        found = (await self._router.Predict(request, timeout=10)).prediction
        return found.prediction.double_value, list(found.degraded), found.latency_ms
