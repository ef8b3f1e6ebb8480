"""One call keeps its trace and its correlation id from the edge to the model."""

import secrets

import grpc
import httpx
import pytest
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1 import router_service_pb2_grpc as rpc

from interlock_sdk.values import values_to_proto
from tests.e2e.flight import BODY, FEATURES, MODEL
from tests.e2e.otlp import Receiver, Reported
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(240)

SERVING = {"interlock-router", "interlock-inference"}


def _new_trace() -> tuple[str, str, str]:
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-01"


def test_a_rest_call_is_one_trace_from_the_edge_to_the_model(stack: Stack, spans: Receiver) -> None:
    trace_id, span_id, traceparent = _new_trace()
    response = httpx.post(
        f"http://{stack.edge}/v1/predict", json=BODY, headers={"traceparent": traceparent}, timeout=10
    )
    assert response.status_code == httpx.codes.OK
    _check_chain(spans.wait_for(trace_id, span_id, SERVING), span_id)


def test_a_grpc_call_is_one_trace_from_the_edge_to_the_model(stack: Stack, spans: Receiver) -> None:
    trace_id, span_id, traceparent = _new_trace()
    with grpc.insecure_channel(stack.edge) as channel:
        request = pb.PredictRequest(model=MODEL, features=values_to_proto(FEATURES))
        rpc.RouterServiceStub(channel).Predict(request, timeout=10, metadata=(("traceparent", traceparent),))
    _check_chain(spans.wait_for(trace_id, span_id, SERVING), span_id)


def test_a_correlation_id_comes_back_as_it_went_in(stack: Stack) -> None:
    headers = {"x-correlation-id": "order-4711"}
    good = httpx.post(f"http://{stack.edge}/v1/predict", json=BODY, headers=headers, timeout=10)
    bad = httpx.post(f"http://{stack.edge}/v1/predict", json={"model": "../x"}, headers=headers, timeout=10)
    assert (good.status_code, bad.status_code) == (200, 400)
    assert good.headers["x-correlation-id"] == bad.headers["x-correlation-id"] == "order-4711"
    made = [
        httpx.post(f"http://{stack.edge}/v1/predict", json=BODY, timeout=10).headers["x-correlation-id"] for _ in "ab"
    ]
    assert len(set(made)) == 2


def test_a_correlation_id_goes_with_a_grpc_answer(stack: Stack) -> None:
    with grpc.insecure_channel(stack.edge) as channel:
        request = pb.PredictRequest(model=MODEL, features=values_to_proto(FEATURES))
        _, call = rpc.RouterServiceStub(channel).Predict.with_call(
            request, timeout=10, metadata=(("x-correlation-id", "order-4712"),)
        )
        assert dict(call.initial_metadata())["x-correlation-id"] == "order-4712"


def _check_chain(found: list[Reported], caller_span: str) -> None:
    assert {span.service for span in found} >= SERVING
    parents = {span.span_id: span.parent_id for span in found}
    for span in found:
        seen, at = set(), span.span_id
        while at in parents and at not in seen:
            seen.add(at)
            at = parents[at]
        assert at == caller_span, f"{span} does not descend from the caller's span"
