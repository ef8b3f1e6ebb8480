"""What is wrong is refused with a reason, never runs a model, and harms nobody else."""

import json
from collections.abc import Mapping
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1 import router_service_pb2_grpc as rpc

from interlock_sdk.values import values_to_proto
from tests.e2e.flight import BODY, FEATURES, MODEL
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(240)

_LEAKS = ("Traceback", "/services/", ".py", "site-packages", "0x", "Exception")


def _with(**changes: Any) -> dict[str, Any]:
    return {**BODY, "features": {**FEATURES, **changes}}


def _without(name: str) -> dict[str, Any]:
    return {**BODY, "features": {key: value for key, value in FEATURES.items() if key != name}}


# Body, HTTP status, what the message or a violation must name.
REST: dict[str, tuple[Any, int, str]] = {
    "wrong type": (_with(month="nine"), 400, "month"),
    "text for a number": (_with(distance="far"), 400, "distance"),
    "missing feature": (_without("carrier"), 400, "carrier"),
    "unknown feature": (_with(altitude=3), 400, "altitude"),
    "misspelt feature": ({**BODY, "features": {**_without("carrier")["features"], "carier": "B6"}}, 400, "carier"),
    "misspelt field": ({**BODY, "usr_id": "u"}, 400, "usr_id"),
    "null": (_with(month=None), 400, "month"),
    "unknown model": ({**BODY, "model": "no-such-model"}, 404, "no-such-model"),
    "unknown version": ({**BODY, "version": "99"}, 404, "99"),
    "model with dots": ({**BODY, "model": "../../etc/passwd"}, 400, "model"),
    "model with control characters": ({**BODY, "model": "a\u0000\u001b[31m"}, 400, "model"),
    "model of another type": ({**BODY, "model": 7}, 400, "model"),
    "features of another type": ({**BODY, "features": [1, 2]}, 400, "features"),
}
RAW: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"{", 400),
    "NaN": (json.dumps(BODY).replace("2475", "NaN").encode(), 400),
    "not UTF-8": (b'{"model": "\xff\xfe"}', 400),
    "empty": (b"", 400),
    "too large": (b" " * (33 * 1024 * 1024), 413),
}


@pytest.fixture(autouse=True)
def no_model_runs(stack: Stack) -> Any:
    """The execution counter stays where it is, and the service is healthy afterwards."""
    before = _executed(stack)
    yield
    assert _executed(stack) == before
    assert httpx.get(f"http://{stack.edge}/health/ready", timeout=10).status_code == httpx.codes.OK


def _executed(stack: Stack) -> float:
    return stack.metric("inference", "interlock_inference_batch_rows_sum")


def _check_body(body: Mapping[str, Any], named: str) -> None:
    text = json.dumps(body)
    assert named in text
    assert body["code"] in (3, 5, 8, 11), text
    assert not any(leak in text for leak in _LEAKS), text


@pytest.mark.parametrize("case", REST)
def test_rest_refuses(stack: Stack, case: str) -> None:
    body, status, named = REST[case]
    response = httpx.post(f"http://{stack.edge}/v1/predict", json=body, timeout=10)
    assert response.status_code == status, response.text
    _check_body(response.json(), named)


@pytest.mark.parametrize("case", RAW)
def test_rest_refuses_what_is_no_request(stack: Stack, case: str) -> None:
    content, status = RAW[case]
    headers = {"content-type": "application/json"}
    response = httpx.post(f"http://{stack.edge}/v1/predict", content=content, headers=headers, timeout=30)
    assert response.status_code == status, response.text
    _check_body(response.json(), "")


@pytest.mark.parametrize("path", ["/v1/models/..%2F..%2Fetc", "/v1/models/%00", "/v1/nothing", "/v2/models/%1b/infer"])
def test_rest_refuses_paths_that_name_nothing(stack: Stack, path: str) -> None:
    response = httpx.get(f"http://{stack.edge}{path}", timeout=10)
    assert 400 <= response.status_code < 500, response.text
    assert not any(leak in response.text for leak in _LEAKS), response.text


GRPC: dict[str, tuple[pb.PredictRequest, grpc.StatusCode, str]] = {
    "wrong type": (
        pb.PredictRequest(model=MODEL, features=values_to_proto({**FEATURES, "month": "nine"})),
        grpc.StatusCode.INVALID_ARGUMENT,
        "month",
    ),
    "NaN": (
        pb.PredictRequest(model=MODEL, features=values_to_proto({**FEATURES, "distance": float("nan")})),
        grpc.StatusCode.INVALID_ARGUMENT,
        "distance",
    ),
    "missing": (
        pb.PredictRequest(model=MODEL, features=values_to_proto(_without("origin")["features"])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "origin",
    ),
    "unknown model": (pb.PredictRequest(model="no-such-model"), grpc.StatusCode.NOT_FOUND, "no-such-model"),
    "unknown version": (
        pb.PredictRequest(model=MODEL, version="99", features=values_to_proto(FEATURES)),
        grpc.StatusCode.NOT_FOUND,
        "99",
    ),
    "name with dots": (pb.PredictRequest(model="../x"), grpc.StatusCode.INVALID_ARGUMENT, "model"),
    "name with control characters": (pb.PredictRequest(model="a\x1b[31m"), grpc.StatusCode.INVALID_ARGUMENT, "model"),
}


@pytest.mark.parametrize("case", GRPC)
def test_grpc_refuses(stack: Stack, case: str) -> None:
    request, code, named = GRPC[case]
    with grpc.insecure_channel(stack.edge) as channel, pytest.raises(grpc.RpcError) as caught:
        rpc.RouterServiceStub(channel).Predict(request, timeout=10)
    _check_error(caught.value, code, named)


def test_grpc_refuses_bytes_that_are_no_message(stack: Stack) -> None:
    path = "/interlock.router.v1.RouterService/Predict"
    with grpc.insecure_channel(stack.edge) as channel:
        predict: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            predict(b"\xff\xff\xff\xff", timeout=10)
    _check_error(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "")


def test_grpc_refuses_a_message_over_the_limit(stack: Stack) -> None:
    request = pb.PredictRequest(model=MODEL, user_id="u" * (33 * 1024 * 1024))
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(stack.edge, options=options) as channel, pytest.raises(grpc.RpcError) as caught:
        rpc.RouterServiceStub(channel).Predict(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _check_error(error: Any, code: grpc.StatusCode, named: str) -> None:
    assert error.code() is code, error.details()
    status = rpc_status.from_call(error)
    assert status is not None
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    text = f"{status}"
    assert named in text
    assert not any(leak in error.details() for leak in _LEAKS), error.details()
