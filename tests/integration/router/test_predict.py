"""RouterService.Predict and its REST twin."""

import json
import re
import uuid
from typing import Any

import grpc
import pytest
from interlock.router.v1 import prediction_pb2
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.common.json_body import decode_object
from tests.fakes.router_models import FLIGHT, MIRROR, PAIR, late_probability
from tests.fakes.router_world import README, World, error_of, reason_of

PREDICT = "interlock.router.v1.RouterService/Predict"
HTTP_PREDICT = "interlock.router.v1.RouterHttpService/Predict"


def value(found: object) -> FeatureValue:
    kinds = {str: "string_value", float: "double_value", int: "int64_value", bool: "bool_value"}
    fields: dict[str, Any] = {kinds[type(found)]: found}
    return FeatureValue(**fields)


def request(**changes: Any) -> pb.PredictRequest:
    features = {name: value(found) for name, found in README["features"].items()}
    fields: dict[str, Any] = {"model": FLIGHT, "features": features, "user_id": "u-42"}
    return pb.PredictRequest(**(fields | changes))


@pytest.mark.rpc(PREDICT, "happy")
async def test_a_row_is_answered_with_everything_that_the_contract_names(world: World) -> None:
    prediction = (await world.router.Predict(request(include_probabilities=True), timeout=5)).prediction
    assert uuid.UUID(prediction.prediction_id).version == 7
    assert prediction.prediction.int64_value == 1
    assert prediction.label == "late"
    assert prediction.confidence == pytest.approx(late_probability(17), rel=1e-6)
    assert list(prediction.probabilities) == pytest.approx([1 - late_probability(17), late_probability(17)], rel=1e-6)
    assert prediction.latency_ms > 0
    assert (prediction.model_version, prediction.variant) == ("1", "1")
    assert prediction.served_by == "deployments/flight-delay-1"
    assert prediction.assignment == prediction_pb2.ASSIGNMENT_STICKY
    assert prediction.config_epoch == 1
    assert not prediction.cached
    assert list(prediction.degraded) == list(prediction.flagged) == []


@pytest.mark.rpc(HTTP_PREDICT, "happy")
async def test_the_readme_request_works_and_prints_defaults(world: World) -> None:
    status, body = await world.post("/v1/predict", README)
    assert status == 200
    assert list(body) == [
        "prediction_id", "prediction", "label", "confidence", "latency_ms", "model_version", "variant", "served_by", "degraded",
        "cached", "probabilities", "assignment", "flagged", "config_epoch", "missing_features",
    ]  # fmt: skip
    assert (body["prediction"], body["label"], body["cached"], body["probabilities"]) == (1, "late", False, [])
    assert body["assignment"] == "ASSIGNMENT_STICKY"


async def test_the_other_class_is_a_printed_zero(world: World) -> None:
    changed = README | {"features": README["features"] | {"sched_dep_hour": 6}}
    _, body = await world.post("/v1/predict", changed)
    assert (body["prediction"], body["label"]) == (0, "on_time")


async def test_a_regression_has_no_label_and_no_confidence(world: World) -> None:
    answer = await world.router.Predict(
        pb.PredictRequest(model=PAIR, features={"a": value(2.5), "b": value(3)}), timeout=5
    )
    assert answer.prediction.prediction.double_value == 2503.0
    assert not answer.prediction.HasField("label")
    assert not answer.prediction.HasField("confidence")
    assert answer.prediction.assignment == prediction_pb2.ASSIGNMENT_PER_REQUEST
    _, body = await world.post("/v1/predict", {"model": PAIR, "features": {"a": 2.5, "b": 3}})
    assert body["prediction"] == 2503.0
    assert "label" not in body
    assert "confidence" not in body


async def test_defaults_clips_and_flags_are_told(world: World) -> None:
    features = README["features"] | {"weekday": 9, "distance": 20_000}
    del features["month"]
    status, body = await world.post("/v1/predict", README | {"features": features})
    assert status == 200
    assert body["degraded"] == ["features_default"]
    assert sorted(body["flagged"]) == ["distance", "weekday"]


@pytest.mark.parametrize("pin", ["2", "1.0.2"])
async def test_a_pinned_version_answers_by_id_and_by_semantic_label(world: World, pin: str) -> None:
    prediction = (await world.router.Predict(request(version=pin), timeout=5)).prediction
    assert (prediction.model_version, prediction.variant) == ("2", "")
    assert prediction.assignment == prediction_pb2.ASSIGNMENT_PINNED


BAD_REQUESTS = [
    ({"features": {"carrier": 5}}, "features.carrier: want a text, got 5"),
    ({"features": {"carrier": "ZZ"}}, 'want one of "B6", "AA", "UA", got the text "ZZ"'),
    ({"features": {"sched_dep_hour": "17"}}, 'want a whole number, got the text "17"'),
    ({"features": {"sched_dep_hour": 17.5}}, "want a whole number, got 17.5"),
    ({"features": {"sched_dep_hour": True}}, "want a whole number, got true"),
    ({"features": {"sched_dep_hour": 24}}, "want a whole number from 0 to 23, got 24"),
    ({"features": {"sched_dep_hour": None}}, "want a whole number, got null"),
    ({"features": {"sched_dep_hour": [17]}}, "want a whole number, got a list of 1 values"),
    ({"features": {"sched_dep_hour": {"v": 1}}}, "want a whole number, got an object"),
    ({"features": {"cariier": "B6"}}, 'got an unknown name; did you mean "carrier"?'),
    ({"model": "../etc"}, "model: want 1 to 128 characters"),
    ({"model": "a\r\nb"}, "model: want 1 to 128 characters"),
    ({"model": ""}, "model: want the id of a model, got nothing"),
    ({"model": 5}, "model: want a text, got 5"),
    ({"version": "x/y"}, "version: want 1 to 128 characters"),
    ({"usr_id": "u"}, 'usr_id: want a field of the contract, got an unknown one; did you mean "user_id"?'),
    ({"userId": "u"}, 'did you mean "user_id"?'),
    ({"user_id": 42}, "user_id: want a text, got 42"),
    ({"user_id": "u" * 257}, "user_id: want at most 256 bytes, got 257"),
    ({"include_probabilities": "yes"}, "include_probabilities: want true or false"),
    ({"include_probabilities": 1}, "include_probabilities: want true or false, got 1"),
    ({"features": []}, "features: want an object, got a list of 0 values"),
    ({"entities": {"user": 5}}, "entities.user: want a text, got 5"),
]


@pytest.mark.rpc(HTTP_PREDICT, "error")
@pytest.mark.parametrize(("change", "message"), BAD_REQUESTS)
async def test_bad_json_input_is_refused_with_want_and_got(world: World, change: dict[str, Any], message: str) -> None:
    body = README | change
    if isinstance(change.get("features"), dict):
        body = README | {"features": README["features"] | change["features"]}
    status, answer = await world.post("/v1/predict", body)
    assert status == 400, answer
    assert message in answer["message"], answer
    assert answer["code"] == 3
    info = [detail for detail in answer["details"] if detail["@type"].endswith("ErrorInfo")]
    assert len(info) == 1
    assert world.replica.items == []


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"5",
    b"{'model': 'x'}",
    b'{"model": "flight-delay", "features": {"distance": NaN}}',
    b'{"model": "flight-delay", "features": {"distance": Infinity}}',
    b'{"model": "flight-delay", "features": {"distance": 1e400}}',
    b'{"model": "flight-delay", "features": {"distance": ' + b"9" * 5000 + b"}}",
    b'{"model": "flight-delay", "model": "other"}',
    b'{"model": "flight-delay", "features": {"distance": 1, "distance": 2}}',
    b'{"model": "\xff"}',
    b'{"model": "\\ud800"}',
    b'{"model": "x"} trailing',
    b'\xef\xbb\xbf{"model": "x"}',
    b'{"model": "flight-delay", "features": {"distance": ' + b"[" * 20_000 + b"]" * 20_000 + b"}}",
    b'{"model": "flight-delay", "features": {"distance": ' + b"[" * 600 + b"]" * 600 + b"}}",
    b"\x00" * 100,
    bytes(range(256)),
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_json_is_a_client_error_with_a_status_body(world: World, body: bytes) -> None:
    status, answer = await world.post("/v1/predict", body)
    assert status == 400
    assert answer["message"]
    assert not re.search(r"Traceback|\.py|site-packages|Error\b", answer["message"])
    assert world.replica.items == []
    assert (await world.post("/v1/predict", README))[0] == 200


def test_a_colon_in_a_text_is_not_taken_for_a_second_key() -> None:
    assert decode_object(json.dumps({"user_id": "a:b:c", "model": "x"}).encode()) == {"user_id": "a:b:c", "model": "x"}


@pytest.mark.rpc(PREDICT, "error")
async def test_every_violation_is_listed_and_no_model_runs(world: World) -> None:
    features = {"carrier": value("ZZ"), "origin": value(5), "destt": value("LAX")}
    error = await error_of(world.router.Predict(request(features=features), timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "INVALID_FEATURES"
    status, answer = await world.post(
        "/v1/predict", README | {"features": {"carrier": "ZZ", "origin": 5, "destt": "LAX"}}
    )
    violations = {
        found["field"]
        for detail in answer["details"]
        if detail["@type"].endswith("BadRequest")
        for found in detail["field_violations"]
    }
    wanted = {"carrier", "origin", "dest", "sched_dep_hour", "weekday", "distance", "destt"}
    assert (status, violations) == (400, {f"features.{name}" for name in wanted})
    assert world.replica.items == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e39])
async def test_numbers_that_no_tensor_should_hold_are_refused_over_grpc_too(world: World, number: float) -> None:
    features = {name: value(found) for name, found in README["features"].items()} | {"distance": value(number)}
    error = await error_of(world.router.Predict(request(features=features), timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "features.distance" in (error.details() or "")


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"model": "flight-delays"}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ({"version": "9"}, grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND"),
        ({"model": MIRROR}, grpc.StatusCode.FAILED_PRECONDITION, "NO_FEATURES_IN_SIGNATURE"),
        ({"model": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME"),
        ({"user_id": "ü" * 129}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ],
)
async def test_each_cause_has_its_code_and_reason(
    world: World, changes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    error = await error_of(world.router.Predict(request(**changes), timeout=5))
    assert (error.code(), reason_of(error)) == (code, reason)


async def test_a_flood_of_features_is_refused_before_it_is_unpacked(world: World) -> None:
    features = {f"f{index}": value(1) for index in range(20_000)}
    error = await error_of(world.router.Predict(request(features=features), timeout=5))
    assert "features: want at most 10000 features, got 20000" in (error.details() or "")


async def test_four_mebibytes_of_tiny_parts_are_refused_and_harm_nobody(world: World) -> None:
    bombs = [("interlock.router.v1.RouterService/Predict", tag + b"\x00") for tag in (b"\x12", b"\x1a")]
    bombs += [("interlock.router.v1.RouterService/Predict", b"\x12\x06\x0a\x04abcd")]
    bombs += [("interlock.router.v1.RouterService/PredictRows", b"\x12\x00")]
    bombs += [
        ("inference.GRPCInferenceService/ModelInfer", tag + b"\x00") for tag in (b"\x22", b"\x2a", b"\x32", b"\x3a")
    ]
    for path, part in bombs:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = world.channel.unary_unary(f"/{path}")
        error = await error_of(call(part * ((4 << 20) // len(part)), timeout=10))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), path
    assert (await world.router.Predict(request(), timeout=5)).prediction.model_version == "1"


async def test_a_near_model_name_is_suggested(world: World) -> None:
    error = await error_of(world.router.Predict(request(model="flight-delai"), timeout=5))
    assert 'did you mean "flight-delay"?' in (error.details() or "")


async def test_malformed_protobuf_is_invalid_argument(world: World) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = world.channel.unary_unary(
        "/interlock.router.v1.RouterService/Predict"
    )
    error = await error_of(call(b"\xff\xff\xff", timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "MALFORMED_REQUEST"


async def test_an_unusable_model_answer_is_internal_and_names_no_row_of_another(world: World) -> None:
    world.replica.wrong_rows = True
    error = await error_of(world.router.Predict(request(), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INVALID_MODEL_OUTPUT")


async def test_metrics_count_by_model_version_variant_and_code(world: World) -> None:
    await world.router.Predict(request(), timeout=5)
    await error_of(world.router.Predict(request(model="nobody"), timeout=5))
    labels = {"model": FLIGHT, "version": "1", "variant": "1", "code": "OK"}
    assert world.metric("interlock_router_predictions_total", **labels) == 1
    unknown = {"model": "_unknown", "version": "_unknown", "variant": "", "code": "NOT_FOUND"}
    assert world.metric("interlock_router_predictions_total", **unknown) == 1
