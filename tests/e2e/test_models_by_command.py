"""A model's way from a file to answers with nothing but the command, and the files that do not get there."""

import json
import math
import struct
import uuid
from pathlib import Path

import httpx
import onnx
import pytest
from onnx import TensorProto, helper

from tests.e2e.flight import BODY, MODEL
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(240)

_LEAKS = ("Traceback", "/services/", ".py", "site-packages", "/tmp/", "Error:")
SIGNATURE = {
    "inputs": [{"name": "x", "data_type": "DATA_TYPE_FP32", "shape": ["-1", "2"]}],
    "outputs": [{"name": "y", "data_type": "DATA_TYPE_FP32", "shape": ["-1", "2"]}],
}


def _doubling_model(path: Path) -> Path:
    """Write a model that doubles its input."""
    shape: list[str | int | None] = ["batch", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return path


def test_a_file_is_registered_deployed_and_answers_by_the_open_protocol(stack: Stack, tmp_path: Path) -> None:
    name = f"doubling-{uuid.uuid4().hex[:8]}"
    file = _doubling_model(tmp_path / "doubling.onnx")
    assert f"registered models/{name}/versions/1" in stack.succeed("register", name, "--file", str(file))
    assert "is READY" in stack.succeed("deploy", name, "1", "--set", "non_finite=refuse")
    assert name in stack.succeed("models")
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -2.0]}]}
    url = f"http://{stack.edge}/v2/models/{name}/infer"
    stack.wait_until(lambda: httpx.post(url, json=body, timeout=10).is_success, "the router has heard of the model", 15)
    answer = httpx.post(url, json=body, timeout=10).json()
    assert answer["outputs"][0]["data"] == [3.0, -4.0]
    deployment = f"{name}-1-production"
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}
    )
    wrong = httpx.post(
        url,
        content=head.encode() + struct.pack("<2f", 1.5, math.nan),
        headers={"inference-header-content-length": str(len(head))},
        timeout=10,
    )
    assert wrong.status_code == 400
    assert "x: want finite numbers, got NaN at [0, 1]" in wrong.json()["error"]
    assert "refuse" in stack.succeed("batching", deployment)
    stack.succeed("batching", deployment, "--set", "non_finite=")
    assert "defaults" in stack.succeed("batching", deployment)
    shown = stack.succeed(
        "batching", deployment, "--set", "max_delay=7ms", "--set", "batch_sizes=1,8", "--set", "max_batch_size=8"
    )
    assert "7ms" in shown
    assert "1, 8" in shown
    refused = stack.command("batching", deployment, "--set", "max_batch_size=64")
    assert refused.returncode == 1
    assert "deployment.batching.max_batch_size" in refused.stderr
    refused = stack.command("register", name, "--file", str(tmp_path / "missing.onnx"))
    assert refused.returncode == 2
    assert "does not exist" in refused.stderr


def test_traffic_is_moved_and_moved_back(stack: Stack) -> None:
    assert "50 %" in stack.succeed("route", MODEL, "--set", "v1=50,v2=50")
    try:
        assert stack.succeed("route", MODEL).count("50 %") == 2
        done = stack.command("route", MODEL, "--set", "v1=50,v9=50")
        assert done.returncode == 1
        assert "no variant, version or deployment is 'v9'" in done.stderr
    finally:
        back = stack.succeed("route", MODEL, "--set", "v1=90,v2=10")
    assert "90 %" in back


def test_a_file_that_is_no_model_is_not_even_described(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "notes.onnx"
    file.write_text("these are notes, not a model", "utf-8")
    done = stack.command("register", "notes", "--file", str(file))
    assert done.returncode == 1
    assert "want an ONNX model, got something else" in done.stderr


@pytest.mark.parametrize("content", ["no model", "cut off"])
def test_a_broken_file_fails_its_deployment_with_a_reason_and_harms_nobody(
    stack: Stack, tmp_path: Path, content: str
) -> None:
    name = f"broken-{uuid.uuid4().hex[:8]}"
    file = _doubling_model(tmp_path / "x.onnx")
    file.write_bytes(b"this is no model at all" if content == "no model" else file.read_bytes()[:40])
    described = tmp_path / "version.json"
    described.write_text(json.dumps({"signature": SIGNATURE}), "utf-8")
    stack.succeed("register", name, "--file", str(file), "--version", str(described))
    done = stack.command("deploy", name, "1", "--timeout", "60")
    assert done.returncode == 1
    assert "failed:" in done.stderr
    assert not any(leak in done.stderr for leak in _LEAKS), done.stderr
    assert httpx.post(f"http://{stack.edge}/v1/predict", json=BODY, timeout=10).is_success


def test_a_signature_that_is_not_the_files_fails_its_deployment(stack: Stack, tmp_path: Path) -> None:
    name = f"wrong-{uuid.uuid4().hex[:8]}"
    file = _doubling_model(tmp_path / "x.onnx")
    described = tmp_path / "version.json"
    wrong = {**SIGNATURE, "inputs": [{"name": "z", "data_type": "DATA_TYPE_INT64", "shape": ["-1", "3"]}]}
    described.write_text(json.dumps({"signature": wrong}), "utf-8")
    stack.succeed("register", name, "--file", str(file), "--version", str(described))
    done = stack.command("deploy", name, "1", "--timeout", "60")
    assert done.returncode == 1
    assert "failed:" in done.stderr
    assert "z" in done.stderr or "x" in done.stderr
    assert httpx.post(f"http://{stack.edge}/v1/predict", json=BODY, timeout=10).is_success
