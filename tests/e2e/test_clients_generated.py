"""Clients that others generate from the contract, and one that learns it by reflection: the same call, the same answer."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.e2e.clients import Clients, buf_curl
from tests.e2e.flight import BODY, MODEL
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(300)
PREDICT = "interlock.router.v1.RouterService/Predict"
# What a repeated call gives again; the id and the duration are each call's own.
SAME = ("label", "confidence", "model_version", "variant", "served_by", "assignment", "degraded", "cached")
GENERATED: dict[str, Callable[[Clients, str], Any]] = {"python": Clients.python, "node": Clients.node}
# One status, as each language calls it.
NOT_FOUND = {"python": "NOT_FOUND", "node": "NotFound"}
INVALID_ARGUMENT = {"python": "INVALID_ARGUMENT", "node": "InvalidArgument"}
generated = pytest.mark.parametrize("language", list(GENERATED))


def over_rest(stack: Stack) -> dict[str, Any]:
    answer = httpx.post(f"http://{stack.edge}/v1/predict", json=BODY, timeout=10)
    assert answer.status_code == httpx.codes.OK, answer.text
    found: dict[str, Any] = answer.json()
    return found


def assert_same(typed: dict[str, Any], rest: dict[str, Any]) -> None:
    """A prediction as JSON of the message, where 64-bit numbers are texts, beside the one over REST."""
    assert {name: typed[name] for name in SAME} == {name: rest[name] for name in SAME}
    assert int(typed["prediction"]["int64_value"]) == rest["prediction"]
    assert typed["prediction_id"] != rest["prediction_id"]


@generated
def test_predict_gives_what_rest_gives(stack: Stack, clients: Clients, language: str) -> None:
    found = GENERATED[language](clients, stack.edge)
    assert_same(found["predict"], over_rest(stack))


@generated
def test_rows_are_answered_one_by_one(stack: Stack, clients: Clients, language: str) -> None:
    """The second row is empty: it alone is refused, and says which features it lacks."""
    first, second = GENERATED[language](clients, stack.edge)["predict_rows"]
    assert_same(first["prediction"], over_rest(stack))
    assert second["error"]["code"] == 3
    (bad_request,) = [one for one in second["error"]["details"] if one["@type"].endswith("google.rpc.BadRequest")]
    assert {one["field"] for one in bad_request["field_violations"]} == {
        f"features.{name}" for name in BODY["features"]
    }


@generated
def test_a_refusal_carries_its_details(stack: Stack, clients: Clients, language: str) -> None:
    found = GENERATED[language](clients, stack.edge)
    unknown, misspelt = found["unknown_model"], found["unknown_feature"]
    assert (unknown["code"], unknown["reason"], unknown["domain"]) == (
        NOT_FOUND[language],
        "MODEL_NOT_FOUND",
        "interlock",
    )
    assert "no-such-model" in unknown["message"]
    assert (misspelt["code"], misspelt["reason"]) == (INVALID_ARGUMENT[language], "INVALID_FEATURES")
    assert misspelt["fields"] == ["features.no_such_feature"]


def as_features(values: dict[str, Any]) -> dict[str, Any]:
    kinds = {str: "string_value", int: "int64_value"}
    return {name: {kinds[type(value)]: value} for name, value in values.items()}


def test_reflection_is_enough_to_call(stack: Stack) -> None:
    done = buf_curl(stack.edge, PREDICT, {**BODY, "features": as_features(BODY["features"])})
    assert done.returncode == 0, done.stderr
    found, rest = json.loads(done.stdout)["prediction"], over_rest(stack)
    assert (found["label"], found["confidence"], found["modelVersion"]) == (
        rest["label"],
        rest["confidence"],
        rest["model_version"],
    )


def test_reflection_tells_a_misspelt_field_before_the_call(stack: Stack) -> None:
    done = buf_curl(stack.edge, PREDICT, {"modle": MODEL})
    assert done.returncode != 0
    assert "modle" in done.stderr


def test_a_refusal_reads_the_same_by_reflection(stack: Stack) -> None:
    done = buf_curl(stack.edge, PREDICT, {"model": "no-such-model"})
    assert done.returncode != 0
    error = json.loads(done.stderr)
    assert error["code"] == "not_found"
    assert "no-such-model" in error["message"]
    assert [one["type"] for one in error["details"]] == ["google.rpc.ErrorInfo"]
