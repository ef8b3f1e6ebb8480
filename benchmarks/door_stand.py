"""The stand on which the router's door is measured: a real router and a real inference, peers that only serve them.

`open_stand` runs three processes: peers (a registry that pushes one configuration, a monitor that takes events), the
inference service and the router. Two versions of trees: `trees` takes 30 floats (Open Inference Protocol), `flights` 11
named features, 3 of them texts (Predict).
"""

import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from inference import grpc_service_pb2 as oip_pb
from interlock.monitor.v1.monitor_service_pb2 import RecordPredictionsResponse
from interlock.registry.v1 import control_service_pb2 as registry_pb
from interlock.registry.v1.route_pb2 import BucketRange, Route, Variant
from interlock.router.v1 import router_service_pb2 as router_pb
from interlock.types.v1.signature_pb2 import (
    FEATURE_TYPE_DOUBLE,
    FEATURE_TYPE_INT64,
    FEATURE_TYPE_STRING,
    FeatureSpec,
    PredictionSpec,
)
from onnx import TensorProto, helper

from tests.fakes.inference_registry import FakeRegistry, spec
from tests.fakes.ports import free_offset
from tests.fakes.router_monitor import FakeMonitor, serve_monitor

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 60
TREES, DEPTH, FLOATS = 100, 4, 30
CARRIERS = ("AA", "B6", "DL", "UA", "WN")
AIRPORTS = tuple(f"{a}{b}X" for a in "ABCDEF" for b in "JKLMN")
NUMBERS = ("hour", "month", "weekday", "day", "distance", "temperature", "wind", "rain")
LABELS = ("on_time", "late")


def main() -> None:
    """Run the peers until told to stop: what `open_stand` starts as a process of its own."""
    asyncio.run(_peers())


async def _peers() -> None:
    registry = FakeRegistry()
    floats = [spec("x", "FP32", FLOATS)]
    _serve(registry, "trees", forest(FLOATS), floats, [])
    words, numbers = [spec("words", "BYTES", 3), spec("numbers", "FP32", len(NUMBERS))]
    _serve(registry, "flights", worded_forest(), [words, numbers], _flight_features())
    _, monitor_port = await serve_monitor(_Sink())
    async with registry.listening() as address:
        sys.stdout.write(json.dumps({"registry": address, "monitor": f"127.0.0.1:{monitor_port}"}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


class _Sink(FakeMonitor):
    async def RecordPredictions(  # noqa: N802 - the contract's name
        self, requests: Any, context: Any
    ) -> RecordPredictionsResponse:
        async for _ in requests:
            pass
        return RecordPredictionsResponse()


def _serve(registry: FakeRegistry, model: str, graph: bytes, inputs: list[Any], features: list[FeatureSpec]) -> None:
    outputs = [spec("probabilities", "FP32", len(LABELS))]
    registry.put_version(f"{model}/1", {"model.onnx": graph}, inputs, outputs)
    version = registry.resource(f"models/{model}/versions/1").model_version
    version.signature.features.extend(features)
    if features:
        version.signature.prediction.CopyFrom(PredictionSpec(tensor="probabilities", labels=LABELS))
    registry.deploy(model, f"{model}/1", max_batch_size=64)
    arm = Variant(
        name="champion", deployment=f"deployments/{model}", weight_basis_points=10_000,
        buckets=[BucketRange(first=0, last=9_999)],
    )  # fmt: skip
    route = Route(name=f"models/{model}/routes/production", variants=[arm], salt="pepper")
    registry.put(route.name, registry_pb.WatchedResource(route=route))


def _flight_features() -> list[FeatureSpec]:
    words = [
        FeatureSpec(name=name, type=FEATURE_TYPE_STRING, tensor="words", column=column)
        for column, name in enumerate(("carrier", "origin", "dest"))
    ]
    numbers = [
        FeatureSpec(
            name=name, type=FEATURE_TYPE_INT64 if column < 4 else FEATURE_TYPE_DOUBLE, tensor="numbers", column=column,
            minimum=-1000, maximum=10_000,
        )
        for column, name in enumerate(NUMBERS)
    ]  # fmt: skip
    return words + numbers


def forest(columns: int) -> bytes:
    """Gives a classifier of 100 random trees of depth 4 over `columns` floats: the work of a gradient-boosted model."""
    return _model([_trees("x", columns)], [_value("x", TensorProto.FLOAT, columns)])


def worded_forest() -> bytes:
    """Gives the same over 3 texts, encoded in the graph, and 8 floats."""
    encoder = helper.make_node(
        "LabelEncoder", ["words"], ["codes"], domain="ai.onnx.ml", keys_strings=[*CARRIERS, *AIRPORTS],
        values_floats=[float(code) for code in range(len(CARRIERS) + len(AIRPORTS))], default_float=-1.0,
    )  # fmt: skip
    joined = helper.make_node("Concat", ["codes", "numbers"], ["x"], axis=1)
    inputs = [_value("words", TensorProto.STRING, 3), _value("numbers", TensorProto.FLOAT, len(NUMBERS))]
    return _model([encoder, joined, _trees("x", 3 + len(NUMBERS))], inputs)


def _model(nodes: list[Any], inputs: list[Any]) -> bytes:
    outputs = [_value("probabilities", TensorProto.FLOAT, len(LABELS))]
    graph = helper.make_graph(nodes, "forest", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def _value(name: str, kind: int, columns: int) -> Any:
    return helper.make_tensor_value_info(name, kind, [None, columns])


def _trees(name: str, columns: int) -> Any:
    draw = random.Random(7)
    inner, nodes = 2**DEPTH - 1, 2 ** (DEPTH + 1) - 1
    ids = [(tree, node) for tree in range(TREES) for node in range(nodes)]
    branch = [node < inner for _, node in ids]
    leaves = [(tree, node, draw.uniform(-1, 1)) for tree, node in ids if node >= inner]
    return helper.make_node(
        "TreeEnsembleClassifier", [name], ["label", "probabilities"], domain="ai.onnx.ml",
        nodes_treeids=[tree for tree, _ in ids],
        nodes_nodeids=[node for _, node in ids],
        nodes_featureids=[draw.randrange(columns) if inside else 0 for inside in branch],
        nodes_modes=["BRANCH_LEQ" if inside else "LEAF" for inside in branch],
        nodes_values=[draw.uniform(0, 10) if inside else 0.0 for inside in branch],
        nodes_truenodeids=[2 * node + 1 if inside else 0 for (_, node), inside in zip(ids, branch, strict=True)],
        nodes_falsenodeids=[2 * node + 2 if inside else 0 for (_, node), inside in zip(ids, branch, strict=True)],
        class_treeids=[tree for tree, _, _ in leaves],
        class_nodeids=[node for _, node, _ in leaves],
        class_ids=[0] * len(leaves),
        class_weights=[weight for _, _, weight in leaves],
        classlabels_int64s=[0, 1],
        post_transform="LOGISTIC",
    )  # fmt: skip


def infer_bodies(count: int) -> list[bytes]:
    """Gives distinct OIP requests of one row of 30 floats each, as raw contents."""
    draw = random.Random(1)
    rows = [struct.pack(f"<{FLOATS}f", *(draw.uniform(0, 10) for _ in range(FLOATS))) for _ in range(count)]
    tensor = oip_pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, FLOATS])
    return [
        oip_pb.ModelInferRequest(
            model_name="trees", id=str(number), inputs=[tensor], raw_input_contents=[row]
        ).SerializeToString()
        for number, row in enumerate(rows)
    ]


def named_rows(count: int) -> list[dict[str, Any]]:
    """Gives distinct Predict requests of 11 named features as JSON would hold them."""
    draw = random.Random(2)
    rows = []
    for number in range(count):
        features: dict[str, Any] = {"carrier": draw.choice(CARRIERS)}
        features |= {"origin": draw.choice(AIRPORTS), "dest": draw.choice(AIRPORTS)}
        features |= {name: draw.randrange(10) for name in NUMBERS[:4]}
        features |= {name: draw.uniform(0, 10) for name in NUMBERS[4:]}
        rows.append({"model": "flights", "user_id": f"user-{number}", "features": features})
    return rows


def predict_bodies(count: int) -> list[bytes]:
    """Gives the same rows as PredictRequest messages."""
    return [_predict_body(row) for row in named_rows(count)]


def _predict_body(row: dict[str, Any]) -> bytes:
    message = router_pb.PredictRequest(model=row["model"], user_id=row["user_id"], include_probabilities=True)
    kinds = {str: "string_value", int: "int64_value", float: "double_value"}
    for name, value in row["features"].items():
        setattr(message.features[name], kinds[type(value)], value)
    return message.SerializeToString()


@dataclass(frozen=True)
class Stand:
    """What runs: the public port and the processes to look at."""

    port: int
    router: subprocess.Popen[bytes]
    inference: subprocess.Popen[bytes]

    def serving_pid(self) -> int:
        """The process that answers: the Envoy below the launcher, or the router itself."""
        children = psutil.Process(self.router.pid).children()
        return next((child.pid for child in children if child.name() == "envoy"), self.router.pid)


@contextmanager
def open_stand(folder: Path, door: str, core: int) -> Iterator[Stand]:
    """Run everything on `core` with the router's `door` until the block ends."""
    offset = free_offset()
    peers = _start(["-m", "benchmarks.door_stand"], core, {}, stdout=subprocess.PIPE)
    assert peers.stdout is not None
    started = [peers]
    try:
        addresses = json.loads(peers.stdout.readline())
        common = {
            "INTERLOCK_PORT_OFFSET": str(offset),
            "INTERLOCK_REGISTRY_ADDRESS": addresses["registry"],
            "INTERLOCK_MONITOR_ADDRESS": addresses["monitor"],
            "INTERLOCK_LOG_LEVEL": "warning",
            "INTERLOCK_DRAIN_DELAY_S": "0",
        }
        for service, extra in (("inference", {"INTERLOCK_DOOR": "grpcio"}), ("router", {"INTERLOCK_DOOR": door})):
            settings = common | extra | {"INTERLOCK_STATE_DIR": str(folder / service)}
            with (folder / f"{service}.log").open("ab") as log:
                started.append(_start(["-m", f"services.{service}"], core, settings, stdout=log))
            _wait_ready({"inference": 9102, "router": 9101}[service] + offset, started[-1])
        yield Stand((8080 if door == "envoy" else 9001) + offset, started[2], started[1])
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)


def _start(arguments: list[str], core: int, settings: dict[str, str], stdout: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", **settings}
    command = ["taskset", "-c", str(core), sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=stdout, stderr=None if stdout == -1 else stdout)


def _wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit(f"the stand did not come up on port {port}")


if __name__ == "__main__":
    main()
