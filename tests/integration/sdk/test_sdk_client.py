"""The client against the public API: what it sends, and what it makes of the answers."""

from datetime import datetime, timedelta, timezone

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from interlock.registry.v1 import deployment_pb2, model_pb2, model_version_pb2, route_pb2

from interlock_sdk.client import Client, Row, connect
from interlock_sdk.errors import CallError, DeploymentFailed, DeploymentNotReady, FieldViolation
from interlock_sdk.values import Value, value_from_proto
from tests.fakes.public_api import FakePublicApi


async def test_a_prediction_carries_typed_values_user_and_version(api: FakePublicApi, client: Client) -> None:
    features: dict[str, Value] = {"number": 1.5, "count": 2, "text": "x", "flag": True, "nothing": None, "list": [1, 2]}
    prediction = await client.predict("m", features, user_id="u-1", version="3", include_probabilities=True)
    (request,) = api.router.requests
    assert {name: value_from_proto(value) for name, value in request.features.items()} == features
    assert request.features["count"].WhichOneof("kind") == "int64_value"
    assert request.features["flag"].WhichOneof("kind") == "bool_value"
    assert (request.model, request.user_id, request.include_probabilities) == ("m", "u-1", True)
    assert prediction.model_version == "3"
    assert value_from_proto(prediction.prediction) == 6


async def test_a_prediction_carries_keys_and_the_time_it_is_asked_at(api: FakePublicApi, client: Client) -> None:
    time = datetime(2026, 3, 1, 8, 30, 0, 250_000, tzinfo=timezone(timedelta(hours=2)))
    await client.predict("m", {}, entities={"carrier": "B6"}, as_of_time=time)
    await client.predict_rows("m", [Row({"a": 1}, entities={"carrier": "DL"}, as_of_time=time), Row({})])
    (request,), (first, second) = api.router.requests, api.router.rows
    assert (dict(request.entities), dict(first.entities)) == ({"carrier": "B6"}, {"carrier": "DL"})
    assert {request.as_of_time.ToJsonString(), first.as_of_time.ToJsonString()} == {"2026-03-01T06:30:00.250Z"}
    assert not second.HasField("as_of_time")
    with pytest.raises(TypeError, match="want a time with its zone"):
        await client.predict("m", {}, as_of_time=datetime(2026, 3, 1))  # noqa: DTZ001 - the mistake under test


async def test_a_value_of_another_type_names_its_feature(client: Client) -> None:
    with pytest.raises(TypeError, match=r"feature 'x': want .* got bytes"):
        await client.predict("m", {"x": b"raw"})  # type: ignore[dict-item]  # the mistake under test


async def test_rows_are_answered_in_order_each_with_its_own_error(client: Client) -> None:
    rows = [Row({"a": 1}, "u-1"), Row({"bad": 1}, "u-2"), Row({}, "u-3")]
    first, second, third = await client.predict_rows("m", rows)
    assert not isinstance(first, CallError)
    assert first.variant == "u-1"
    assert isinstance(second, CallError)
    assert (second.code, second.message) == (grpc.StatusCode.INVALID_ARGUMENT, "u-2: bad")
    assert not isinstance(third, CallError)
    assert third.variant == "u-3"


async def test_an_error_carries_all_that_the_service_said(api: FakePublicApi, client: Client) -> None:
    violation = BadRequest.FieldViolation(field="features.x", description="want a number, got a text")
    details = [BadRequest(field_violations=[violation]), RetryInfo(retry_delay=Duration(nanos=500_000_000))]
    api.router.refusal = (Code.RESOURCE_EXHAUSTED, "no", "BYTES_IN_FLIGHT_EXCEEDED", details)
    with pytest.raises(CallError) as caught:
        await client.predict("m", {})
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BYTES_IN_FLIGHT_EXCEEDED")
    assert error.violations == (FieldViolation("features.x", "want a number, got a text"),)
    assert error.retry_after_s == 0.5
    assert str(error) == "RESOURCE_EXHAUSTED: no; features.x: want a number, got a text"


async def test_an_address_where_nothing_listens_is_named(unused_tcp_port: int) -> None:
    target = f"127.0.0.1:{unused_tcp_port}"
    async with connect(target) as client:
        with pytest.raises(CallError) as caught:
            await client.predict("m", {})
    assert str(caught.value) == f"UNAVAILABLE: {target} does not answer"


async def test_a_proxy_is_not_asked_for_calls_to_this_machine(
    api: FakePublicApi, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with connect(api.target) as client:
        assert (await client.predict("m", {})).model_version == "1"


async def test_a_call_that_is_not_answered_ends_at_its_limit(api: FakePublicApi) -> None:
    api.router.hangs = True
    async with connect(api.target, timeout_s=0.2) as client:
        with pytest.raises(CallError) as caught:
            await client.predict("m", {})
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_change_that_was_not_answered_is_sent_again_with_the_same_request_id(
    api: FakePublicApi, client: Client
) -> None:
    api.registry.unavailable_count = 1
    await client.models.ensure("m")
    assert len(api.registry.request_ids) == 2
    assert len(set(api.registry.request_ids)) == 1


async def test_two_changes_have_different_request_ids(api: FakePublicApi, client: Client) -> None:
    await client.models.ensure("a")
    await client.models.ensure("b")
    assert len(set(api.registry.request_ids)) == 2


async def test_a_model_that_exists_is_given_as_it_is(api: FakePublicApi, client: Client) -> None:
    api.registry.models["models/m"] = model_pb2.Model(name="models/m", description="theirs")
    assert (await client.models.ensure("m", description="ours")).description == "theirs"


async def test_lists_walk_every_page(api: FakePublicApi, client: Client) -> None:
    for index in range(5):
        await client.models.ensure(f"m{index}")
        await client.models.register("m0", model_version_pb2.ModelVersion(description=str(index)))
        await client.deployments.create("m0", str(index + 1))
    assert [model.name async for model in client.models.list()] == [f"models/m{index}" for index in range(5)]
    assert [version.description async for version in client.models.versions("m0")] == ["4", "3", "2", "1", "0"]
    assert len([deployment async for deployment in client.deployments.list("m0")]) == 5
    assert [deployment async for deployment in client.deployments.list("other")] == []


async def test_waiting_ends_when_the_deployment_is_ready(api: FakePublicApi, client: Client) -> None:
    deployment = await client.deployments.create("m", "1")
    seen: list[str] = []
    ready = await client.deployments.wait_until_ready(deployment.name, timeout_s=10, on_state=seen.append)
    assert ready.state == deployment_pb2.DEPLOYMENT_STATE_READY
    assert seen == ["LOADING", "READY"]


async def test_waiting_for_a_failed_deployment_says_why(api: FakePublicApi, client: Client) -> None:
    api.registry.states = (deployment_pb2.DEPLOYMENT_STATE_FAILED,)
    api.registry.state_message = "golden row 3 differs"
    deployment = await client.deployments.create("m", "1")
    with pytest.raises(DeploymentFailed, match=r"deployments/m-1-production failed: golden row 3 differs"):
        await client.deployments.wait_until_ready(deployment.name, timeout_s=10)


async def test_waiting_too_long_names_the_state(api: FakePublicApi, client: Client) -> None:
    api.registry.states = (deployment_pb2.DEPLOYMENT_STATE_LOADING,)
    deployment = await client.deployments.create("m", "1")
    with pytest.raises(DeploymentNotReady, match=r"is LOADING and not READY after 0.3 s"):
        await client.deployments.wait_until_ready(deployment.name, timeout_s=0.3)


async def test_a_route_that_has_changed_since_it_was_read_is_not_overwritten(
    api: FakePublicApi, client: Client
) -> None:
    api.registry.routes["models/m/routes/production"] = route_pb2.Route(name="models/m/routes/production", etag="e1")
    route = await client.routes.get("m")
    assert route is not None
    api.registry.aborted_count = 1
    with pytest.raises(CallError) as caught:
        await client.routes.set_variants(route, [])
    assert caught.value.code is grpc.StatusCode.ABORTED


async def test_a_model_without_traffic_has_no_route(client: Client) -> None:
    assert await client.routes.get("m") is None
