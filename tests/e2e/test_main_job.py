"""From flights to predictions: the demo, the README's call, and every other way to make it."""

import json
import subprocess

import grpc
import httpx
import pytest
from interlock.monitor.v1 import monitor_service_pb2 as monitor_pb
from interlock.monitor.v1 import monitor_service_pb2_grpc as monitor_rpc

from interlock_sdk.client import connect
from tests.e2e.flight import BODY, FEATURES, MODEL
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(300)


def test_the_call_of_the_readme_works_as_pasted(stack: Stack) -> None:
    done = subprocess.run(
        ["curl", "-sS", f"{stack.edge}/v1/predict", "-H", "content-type: application/json", "-d", json.dumps(BODY)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    answer = json.loads(done.stdout)
    assert answer["prediction"] in (0, 1)
    assert answer["label"] in ("on_time", "late")
    assert 0.5 <= answer["confidence"] <= 1
    assert answer["model_version"]
    assert answer["variant"]
    assert answer["prediction_id"]
    assert 0 < answer["latency_ms"] < 5_000


async def test_rest_grpc_and_the_command_give_the_same_answer(stack: Stack) -> None:
    async with httpx.AsyncClient(timeout=10) as http:
        rest = (await http.post(f"http://{stack.edge}/v1/predict", json=BODY)).json()
    async with connect(stack.edge) as client:
        typed = await client.predict(MODEL, FEATURES, user_id="u-42")
    features = json.dumps(FEATURES)
    shown = json.loads(stack.succeed("predict", MODEL, "--features", features, "--user-id", "u-42", "--json"))
    assert rest["confidence"] == typed.confidence == shown["confidence"]
    assert rest["model_version"] == typed.model_version == shown["model_version"]
    assert rest["variant"] == typed.variant == shown["variant"]
    assert rest["prediction"] == typed.prediction.int64_value == shown["prediction"]


async def test_a_user_meets_one_variant_and_all_users_are_split_90_to_10(stack: Stack) -> None:
    async with connect(stack.edge) as client:
        variants = [(await client.predict(MODEL, FEATURES, user_id=f"u-{n}")).variant for n in range(400)]
        again = [(await client.predict(MODEL, FEATURES, user_id=f"u-{n}")).variant for n in range(0, 400, 8)]
    assert again == variants[::8]
    route = json.loads(stack.succeed("route", MODEL, "--json"))
    weights = {variant["name"]: variant["weight_basis_points"] for variant in route["variants"]}
    assert sorted(weights.values()) == [1_000, 9_000]
    share = sum(weights[name] == 1_000 for name in variants) / len(variants)
    # Three standard deviations of 400 draws at 10 %.
    assert 0.055 <= share <= 0.145


def test_a_second_demo_reuses_what_is_there_and_prints_the_same_figures(stack: Stack) -> None:
    first = stack.succeed("demo", "--flights", "400", timeout_s=240)
    second = stack.succeed("demo", "--flights", "400", timeout_s=240)
    assert "trained before" in second
    assert _figures(first) == _figures(second)
    assert len(json.loads(stack.succeed("versions", MODEL, "--json"))) == 2


def test_the_command_lists_what_is_there(stack: Stack) -> None:
    assert stack.succeed("status").count(" ready ") == len(stack.status())
    assert MODEL in stack.succeed("models")
    assert stack.succeed("deployments", MODEL).count("READY") == 2
    assert stack.succeed("route", MODEL).count("%") == 2
    assert "intact" in stack.succeed("audit", "verify")


def test_the_monitor_counts_what_was_predicted(stack: Stack) -> None:
    before = _predictions_counted(stack)
    for number in range(20):
        httpx.post(f"http://{stack.edge}/v1/predict", json={**BODY, "user_id": f"c-{number}"}, timeout=10)
    stack.wait_until(lambda: _predictions_counted(stack) >= before + 20, "the monitor has counted 20 more")


def test_a_refused_prediction_names_the_field_on_the_command_line(stack: Stack) -> None:
    done = stack.command("predict", MODEL, "--features", json.dumps({**FEATURES, "month": "nine"}))
    assert done.returncode == 1
    assert "INVALID_ARGUMENT" in done.stderr
    assert "month" in done.stderr
    assert "Traceback" not in done.stderr


def _figures(printed: str) -> list[str]:
    """The lines of the quality table: they hold AUC and Brier, which depend on the seed alone."""
    return [
        line for line in printed.splitlines() if "spring" in line and "trained" not in line and "registered" not in line
    ]


def _predictions_counted(stack: Stack) -> int:
    with grpc.insecure_channel(stack.address_of("monitor")) as channel:
        stub = monitor_rpc.MonitorServiceStub(channel)
        answer = stub.GetPredictionCounts(monitor_pb.GetPredictionCountsRequest(model=MODEL), timeout=10)
    return sum(count.ok_count for count in answer.counts)
