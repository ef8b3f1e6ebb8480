"""What is asked in every form, and what must come back: one oracle for all servers."""

import json
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from inference import grpc_service_pb2 as oip
from interlock.router.v1 import router_service_pb2 as router_pb

from benchmarks.serving.loading import Asks, grpc_body, h1_request, h2_headers
from benchmarks.serving.models import Model

_TE = ("te", "trailers")
_TIMEOUT = ("grpc-timeout", "20S")
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/interlock.router.v1.RouterService/Predict"


@cache
def oip_grpc(model: Model, rows: int = 1) -> Asks:
    """ModelInfer with raw tensors: every server but mosec takes the same bytes."""
    picks = _picks(model, rows)
    requests = []
    for pick in picks:
        request = oip.ModelInferRequest(model_name=model.name, raw_input_contents=[model.rows[pick].tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=[rows, *model.row_shape])
        requests.append(grpc_body(request.SerializeToString()))

    def read(body: bytes) -> np.ndarray:
        return np.frombuffer(oip.ModelInferResponse.FromString(body[5:]).raw_output_contents[0], np.float32)

    return Asks("h2", requests, h2_headers(INFER, "application/grpc", _TE, _TIMEOUT), _check(model, picks, read), rows)


@cache
def predict_grpc(model: Model) -> Asks:
    """Predict with named features."""
    picks = _picks(model, 1)
    requests = []
    for pick in picks:
        request = router_pb.PredictRequest(model=model.name)
        for name, value in _features(model, pick).items():
            request.features[name].double_value = value
        requests.append(grpc_body(request.SerializeToString()))

    def read(body: bytes) -> np.ndarray:
        said = router_pb.PredictResponse.FromString(body[5:]).prediction.prediction
        return np.array([said.double_value], np.float32)

    return Asks("h2", requests, h2_headers(PREDICT, "application/grpc", _TE, _TIMEOUT), _check(model, picks, read))


@cache
def predict_json(model: Model) -> Asks:
    """POST /v1/predict with named features, over HTTP/1.1."""
    picks = _picks(model, 1)
    bodies = [json.dumps({"model": model.name, "features": _features(model, pick)}).encode() for pick in picks]
    return _rest("/v1/predict", bodies, _check(model, picks, lambda body: np.array([json.loads(body)["prediction"]])))


@cache
def oip_json(model: Model) -> Asks:
    """POST /v2/.../infer, numbers as JSON both ways."""
    picks = _picks(model, 1)
    bodies = []
    for pick in picks:
        tensor = {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, *model.row_shape],
            "data": model.rows[pick].ravel().tolist(),
        }
        bodies.append(json.dumps({"inputs": [tensor]}).encode())
    read = lambda body: np.array(json.loads(body)["outputs"][0]["data"], np.float32)  # noqa: E731
    return _rest(f"/v2/models/{model.name}/infer", bodies, _check(model, picks, read))


@cache
def oip_binary(model: Model) -> Asks:
    """POST /v2/.../infer with the binary tensor extension, raw both ways."""
    picks = _picks(model, 1)
    shape = [1, *model.row_shape]
    size = model.rows[0].nbytes
    parameters = {"binary_data_size": size}
    head = json.dumps({
        "inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "parameters": parameters}],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    bodies = [head + model.rows[pick].tobytes() for pick in picks]

    def read(body: bytes) -> np.ndarray:
        return np.frombuffer(body[-4 * model.outputs :], np.float32)

    headers = [("content-type", "application/octet-stream"), ("inference-header-content-length", str(len(head)))]
    path = f"/v2/models/{model.name}/infer"
    return Asks("h1", [h1_request(path, headers, body) for body in bodies], [], _check(model, picks, read))


@cache
def mosec(model: Model) -> Asks:
    """What our server on mosec takes: features as JSON; more than that as they are in memory, after a zero byte."""
    picks = _picks(model, 1)
    rows = [model.rows[pick].ravel() for pick in picks]
    as_json = bool(model.feature)
    bodies = [json.dumps({"x": row.tolist()}).encode() if as_json else b"\0" + row.tobytes() for row in rows]
    return _rest(f"/{model.name}", bodies, _check(model, picks, lambda body: np.array(json.loads(body)["y"])))


def _rest(path: str, bodies: Sequence[bytes], check: Callable[[int, bytes], bool]) -> Asks:
    headers = [("content-type", "application/json")]
    return Asks("h1", [h1_request(path, headers, body) for body in bodies], [], check)


def _picks(model: Model, rows: int) -> list[np.ndarray]:
    """Return which rows each request holds: no two requests the same."""
    count = model.row_count if rows == 1 else min(model.row_count, 300)
    return [(np.arange(rows) + first * (1 if rows == 1 else 7)) % model.row_count for first in range(count)]


def _features(model: Model, pick: np.ndarray) -> dict[str, float]:
    (row,) = model.rows[pick]
    return {name: float(value) for name, value in zip(model.feature_names, row, strict=True)}


def _check(
    model: Model, picks: Sequence[np.ndarray], read: Callable[[bytes], np.ndarray]
) -> Callable[[int, bytes], bool]:
    def check(request: int, body: bytes) -> bool:
        wanted = model.wanted[picks[request]].ravel()
        said = read(body)
        return said.shape == wanted.shape and bool(np.allclose(said, wanted, rtol=1e-3, atol=1e-4))

    return check
