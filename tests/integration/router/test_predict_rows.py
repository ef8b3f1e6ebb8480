"""RouterService.PredictRows and its REST twin."""

from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from tests.fakes.router_inference import status_of
from tests.fakes.router_models import FLIGHT, MIRROR, PAIR, pair_signature
from tests.fakes.router_registry import deployment_of, route_of, version_of
from tests.fakes.router_world import README, World, error_of, eventually, reason_of

ROWS = "interlock.router.v1.RouterService/PredictRows"
HTTP_ROWS = "interlock.router.v1.RouterHttpService/PredictRows"


def pair_rows(count: int) -> list[pb.PredictRow]:
    return [
        pb.PredictRow(features={"a": FeatureValue(int64_value=index), "b": FeatureValue(double_value=0.5)})
        for index in range(count)
    ]


@pytest.mark.rpc(ROWS, "happy")
async def test_a_thousand_rows_are_answered_in_order(world: World) -> None:
    answer = await world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=pair_rows(1000)), timeout=5)
    found = [result.prediction.prediction.double_value for result in answer.results]
    assert found == [index * 1000 + 0.5 for index in range(1000)]
    assert len({result.prediction.prediction_id for result in answer.results}) == 1000
    assert max(item.rows for item in world.replica.items) <= 64


@pytest.mark.rpc(HTTP_ROWS, "happy")
async def test_rows_over_rest_answer_or_say_why_not(world: World) -> None:
    good = {"features": README["features"], "user_id": "u-42"}
    bad = {"features": README["features"] | {"carrier": "ZZ"}}
    status, body = await world.post("/v1/predict_rows", {"model": FLIGHT, "rows": [good, bad, good]})
    assert status == 200
    first, second, third = body["results"]
    assert first["prediction"]["label"] == third["prediction"]["label"] == "late"
    assert second["error"]["code"] == 3
    assert "features.carrier" in second["error"]["message"]
    assert [detail["@type"].rsplit(".", 1)[1] for detail in second["error"]["details"]] == ["ErrorInfo", "BadRequest"]


async def test_rows_are_assigned_each_by_its_user(world: World) -> None:
    resources = [
        version_of(PAIR, 1, pair_signature()),
        version_of(PAIR, 2, pair_signature()),
        deployment_of(PAIR, 1),
        deployment_of(PAIR, 2),
        route_of(PAIR, [(1, 5000), (2, 5000)]),
    ]
    world.control.publish(resources)
    world.replica.set_ready({(PAIR, "1"), (PAIR, "2")})
    await eventually(lambda: world.metric("interlock_router_config_epoch") == 2)
    await world.wait_ready(PAIR)
    rows = [pb.PredictRow(features=pair_rows(1)[0].features, user_id=f"user-{index}") for index in range(60)]
    first = await world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=rows), timeout=5)
    second = await world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=rows), timeout=5)
    variants = [result.prediction.variant for result in first.results]
    assert set(variants) == {"1", "2"}
    assert variants == [result.prediction.variant for result in second.results]
    assert all(result.prediction.model_version == result.prediction.variant for result in first.results)


async def test_a_failure_of_inference_is_an_error_of_its_rows_alone(world: World) -> None:
    refused = status_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue is full")
    seen: list[int] = []

    def refuse_second(item: object) -> object:
        seen.append(1)
        return refused if len(seen) == 2 else None

    world.replica.refuse = refuse_second  # type: ignore[assignment]
    answer = await world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=pair_rows(128)), timeout=5)
    kinds = [result.WhichOneof("result") for result in answer.results]
    assert set(kinds) == {"error", "prediction"}
    assert kinds.count("error") == 64


async def test_a_row_that_the_model_refuses_fails_alone(world: World) -> None:
    refused = status_of(grpc.StatusCode.INVALID_ARGUMENT, "MODEL_REFUSED", "the model refused")
    alone: list[object] = []

    def refuse_many_and_the_third_alone(item: Any) -> Status | None:
        alone.extend([item] if item.rows == 1 else [])
        return refused if item.rows > 1 or len(alone) == 3 else None

    world.replica.refuse = refuse_many_and_the_third_alone
    answer = await world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=pair_rows(8)), timeout=5)
    assert [result.WhichOneof("result") for result in answer.results].count("error") == 1
    assert len(alone) == 8


@pytest.mark.rpc(ROWS, "error")
@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (pb.PredictRowsRequest(model=PAIR), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (pb.PredictRowsRequest(model=PAIR, rows=pair_rows(1001)), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (pb.PredictRowsRequest(model="nobody", rows=pair_rows(2)), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        (
            pb.PredictRowsRequest(model=PAIR, version="7", rows=pair_rows(2)),
            grpc.StatusCode.NOT_FOUND,
            "VERSION_NOT_FOUND",
        ),
        (
            pb.PredictRowsRequest(model=MIRROR, rows=pair_rows(2)),
            grpc.StatusCode.FAILED_PRECONDITION,
            "NO_FEATURES_IN_SIGNATURE",
        ),
    ],
    ids=["none", "too many", "unknown model", "unknown version", "no features"],
)
async def test_what_concerns_every_row_fails_the_call(
    world: World, request_: pb.PredictRowsRequest, code: grpc.StatusCode, reason: str
) -> None:
    error = await error_of(world.router.PredictRows(request_, timeout=5))
    assert (error.code(), reason_of(error)) == (code, reason)
    assert world.replica.items == []


@pytest.mark.rpc(HTTP_ROWS, "error")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": PAIR, "rows": [5]}, "rows[0]: want an object, got 5"),
        (
            {"model": PAIR, "rows": [{"feature": {}}]},
            "rows[0].feature: want a field of the contract, got an unknown one",
        ),
        ({"model": PAIR, "rows": {}}, "rows: want a list, got an object"),
        ({"model": PAIR, "rows": []}, "rows: want 1 to 1000 rows, got 0"),
        ({"model": PAIR, "row": []}, 'did you mean "rows"?'),
        ({"model": PAIR, "rows": [{"features": {"a": 1}}] * 1001}, "want 1 to 1000 rows, got 1001"),
    ],
)
async def test_bad_rows_are_refused_with_their_place(world: World, body: dict[str, Any], message: str) -> None:
    status, answer = await world.post("/v1/predict_rows", body)
    assert status == 400
    assert message in answer["message"]
