"""Triton's Python client, unchanged, through the edge and at inference's own port: what it asks, infers and gets wrong."""

from collections.abc import Sequence
from typing import Any

import httpx
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from interlock_cli.demo.cache import cached_version
from interlock_cli.demo.data import CATEGORICAL, NUMERIC, RECIPES
from interlock_cli.demo.direct import run_onnx
from tests.e2e.clients import CATEGORIES, NUMBERS, OUTPUT, TENSORS, USER, Clients
from tests.e2e.flight import BODY, MODEL
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(300)
PROTOCOLS = ("grpc", "http")
FORMS = {
    "grpc": {"all_outputs", "one_output"},
    "http": {"all_outputs", "one_output", "json_both_ways", "json_in", "json_out", "one_input_of_each"},
}
JSON_FORMS = {"json_both_ways", "json_out"}
# What the client calls a refusal over gRPC and over HTTP, and a word that the message must hold.
REFUSALS = {
    "unknown_model": ("StatusCode.NOT_FOUND", "404", "no-such-model"),
    "unknown_version": ("StatusCode.NOT_FOUND", "404", "987654"),
    "unknown_input": ("StatusCode.INVALID_ARGUMENT", "400", "no-such-input"),
    "missing_input": ("StatusCode.INVALID_ARGUMENT", "400", "numbers"),
    "wrong_datatype": ("StatusCode.INVALID_ARGUMENT", "400", "FP32"),
    "unknown_output": ("StatusCode.NOT_FOUND", "404", "no-such-output"),
    "metadata_of_unknown_model": ("StatusCode.NOT_FOUND", "404", "no-such-model"),
    "load": ("StatusCode.FAILED_PRECONDITION", "400", "registry"),
    "unload": ("StatusCode.FAILED_PRECONDITION", "400", "registry"),
}


def model_outputs(stack: Stack) -> dict[str, Any]:
    """What version 1 gives for the same rows when it is called directly. Version 2 takes live features too."""
    trained = cached_version(RECIPES[0], stack.folder / "demo")
    assert trained is not None
    texts, numbers = pd.DataFrame(CATEGORIES, columns=list(CATEGORICAL)), pd.DataFrame(NUMBERS, columns=list(NUMERIC))
    return run_onnx(trained.artifact_path.read_bytes(), RECIPES[0], pd.concat([texts, numbers], axis=1))


def assert_answers(found: dict[str, Any], stack: Stack, forms: set[str]) -> None:
    """Every form of the request holds the model's own answer, row by row, and what was asked for beside it."""
    wanted = model_outputs(stack)
    assert set(found) == forms
    for form, answer in found.items():
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("job-7", MODEL, "1"), form
        assert set(answer["outputs"]) == (set(wanted) if form == "all_outputs" else {OUTPUT}), form
        assert set(answer["binary"]) == (set() if form in JSON_FORMS else set(answer["outputs"])), form
        for name, output in answer["outputs"].items():
            assert output["shape"] == list(wanted[name].shape), form
            assert_allclose(output["data"], wanted[name].ravel(), rtol=0, atol=1e-6, err_msg=form)


def assert_refusals(found: dict[str, Any], protocol: str) -> None:
    for mistake, (over_grpc, over_http, word) in REFUSALS.items():
        refusal = found[mistake]
        assert "answered" not in refusal, mistake
        assert refusal["status"] == (over_grpc if protocol == "grpc" else over_http), mistake
        assert word in refusal["message"], mistake


def tensors(described: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[int]]]:
    """The client for gRPC gives numbers of 64 bits as texts."""
    return [(one["name"], one["datatype"], [int(size) for size in one["shape"]]) for one in described]


def assert_described(look: dict[str, Any], server: str, extensions: set[str]) -> None:
    assert look["live"] is look["ready"] is look["model_ready"] is True
    assert look["server"]["name"] == server
    assert look["server"]["version"]
    assert extensions <= set(look["server"]["extensions"])
    model = look["model"]
    assert (model["name"], model["versions"]) == (MODEL, ["1", "2"])
    assert tensors(model["inputs"]) == [(one["name"], one["datatype"], [-1, one["shape"][1]]) for one in TENSORS]
    assert tensors(model["outputs"]) == [("label", "INT64", [-1]), (OUTPUT, "FP32", [-1, 2])]
    index = look["index"] if isinstance(look["index"], list) else look["index"]["models"]
    # Other tests leave models of their own in the stack.
    assert [(one["name"], one["version"], one["state"]) for one in index if one["name"] == MODEL] == [
        (MODEL, "1", "READY"),
        (MODEL, "2", "READY"),
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_finds_the_server_and_the_model(stack: Stack, clients: Clients, protocol: str) -> None:
    look = clients.triton(protocol, stack.edge)["look"]
    assert_described(look, "interlock-router", {"binary_tensor_data"})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_form_of_request_gives_the_models_answer(stack: Stack, clients: Clients, protocol: str) -> None:
    """The same user meets the same version as in `/v1/predict`."""
    served = httpx.post(f"http://{stack.edge}/v1/predict", json={**BODY, "user_id": USER}, timeout=10).json()
    assert served["model_version"] == "1"
    found = clients.triton(protocol, stack.edge)["answers"]
    assert_answers(found, stack, FORMS[protocol])


def test_a_version_can_be_pinned(stack: Stack, clients: Clients) -> None:
    assert_answers(clients.triton("http", stack.edge, version="1")["answers"], stack, FORMS["http"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_mistake_is_told_in_words_and_with_the_right_status(stack: Stack, clients: Clients, protocol: str) -> None:
    found = clients.triton(protocol, stack.edge)["mistakes"]
    assert_refusals(found, protocol)
    # Over HTTP the client reads the status alone, as every probe does.
    unknown = {"answered": False} if protocol == "http" else {"status": "StatusCode.NOT_FOUND"}
    assert unknown.items() <= found["ready_of_unknown_model"].items()


@pytest.mark.parametrize("door", ["grpcio", "envoy"])
def test_inference_serves_it_without_the_router(stacks: Any, clients: Clients, door: str) -> None:
    """Triton's configuration and statistics are there too."""
    stack: Stack = stacks.of("grpcio", inference_door=door)
    found = clients.triton("grpc", stack.address_of("inference"), version="1", extensions=True)
    look = found["look"]
    assert_described(look, "interlock-inference", {"model_configuration", "statistics"})
    assert look["model"]["platform"] == clients.triton("grpc", stack.edge)["look"]["model"]["platform"]
    assert_answers(found["answers"], stack, FORMS["grpc"])
    assert_refusals(found["mistakes"], "grpc")
    config = look["config"]["config"]
    assert (config["name"], [one["name"] for one in config["input"]]) == (MODEL, ["categories", "numbers"])
    statistics = {one["version"]: one for one in look["statistics"]["model_stats"]}
    assert int(statistics["1"]["inference_count"]) >= int(statistics["1"]["execution_count"]) > 0
