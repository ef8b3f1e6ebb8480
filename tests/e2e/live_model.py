"""A model with a version that fetches features and one that does not, in a running stack, with everything they need."""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.stack import Stack

ENTITIES = {"carrier": "B6", "airport": "JFK"}
LIVE_ANSWER, SCHEDULE_ANSWER = 9_12_34.0, 9.0
FALLEN_BACK = ["features_unavailable", "fallback"]
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
