"""Versions that fetch features: who fetches what, and no deployment without its features."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from interlock.registry.v1 import control_service_pb2 as control_pb
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.types.v1.signature_pb2 import Signature

from tests.fakes.feature_gate import FakeFeatureViews, serve_feature_views
from tests.fakes.registry_service import Registry, a_signature, execute, new_id, refused, running_registry, short_folder

CONTROL = "interlock.registry.v1.ControlService"
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION


def a_fetching_signature(**sources: str) -> Signature:
    """The signature with sources by feature name."""
    signature = a_signature()
    for feature in signature.features:
        feature.source = sources.get(feature.name, "")
    return signature


@pytest.fixture
async def features_address() -> AsyncIterator[str]:
    with short_folder() as folder:
        yield f"unix:{folder / 'features.sock'}"


@pytest.fixture
async def fraud(database_url: str, tmp_path: Path, features_address: str) -> AsyncIterator[Registry]:
    """Version 1 fetches its amount from `customer.v2`, version 2 both features, version 3 nothing."""
    async with running_registry(tmp_path, database_url, features_address=features_address) as running:
        await running.create_model("fraud")
        both = a_fetching_signature(amount="customer.v2.amount", age="account.age")
        for signature in (a_fetching_signature(amount="customer.v2.amount"), both, a_signature()):
            await running.create_version(signature=signature)
        yield running


@pytest.fixture
async def views(features_address: str) -> AsyncIterator[FakeFeatureViews]:
    fake = FakeFeatureViews()
    async with serve_feature_views(fake, features_address):
        yield fake


async def bindings(registry: Registry, *views: str, size: int = 0, token: str = "") -> tuple[list[str], str]:
    request = control_pb.ListFeatureBindingsRequest(feature_views=views, page_size=size, page_token=token)
    answer = await registry.control.ListFeatureBindings(request)
    found = [
        f"{each.model_version.rpartition('/')[2]}:{each.feature_spec.name}={each.feature_spec.source}"
        for each in answer.feature_bindings
    ]
    return found, answer.next_page_token


@pytest.mark.rpc(f"{CONTROL}/ListFeatureBindings", "happy")
async def test_what_versions_fetch_is_listed_by_view(fraud: Registry) -> None:
    everything = ["1:amount=customer.v2.amount", "2:age=account.age", "2:amount=customer.v2.amount"]
    assert (await bindings(fraud))[0] == everything
    assert (await bindings(fraud, "account", "none"))[0] == ["2:age=account.age"]
    assert (await bindings(fraud, "customer"))[0] == []
    found, token = [], ""
    for _ in everything:
        page, token = await bindings(fraud, size=1, token=token)
        found += page
    assert (found, token) == (everything, "")
    answer = await fraud.control.ListFeatureBindings(control_pb.ListFeatureBindingsRequest(feature_views=["account"]))
    assert answer.feature_bindings[0].feature_spec == a_fetching_signature(age="account.age").features[1]


@pytest.mark.rpc(f"{CONTROL}/ListFeatureBindings", "error")
async def test_a_wrong_question_for_bindings_is_refused(fraud: Registry) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as seen:
        await bindings(fraud, "a b", "ok", "..")
    assert set(seen[0].violations) == {"feature_views[0]", "feature_views[2]"}
    _, token = await bindings(fraud, "customer.v2", size=1)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"):
        await bindings(fraud, "account", token=token)


async def test_versions_of_an_older_release_are_found_after_the_upgrade(database_url: str, tmp_path: Path) -> None:
    async with running_registry(tmp_path, database_url) as old:
        await old.create_model("fraud")
        await old.create_version(signature=a_fetching_signature(amount="customer.amount"))
        await execute(database_url, "DROP TABLE feature_binding")
        await execute(database_url, "UPDATE alembic_version SET version_num = 'r0001'")
    async with running_registry(tmp_path, database_url) as new:
        assert (await bindings(new))[0] == ["1:amount=customer.amount"]


async def test_a_deployment_pins_the_views_that_it_fetches_from(fraud: Registry, views: FakeFeatureViews) -> None:
    deployment = await fraud.deploy("2")
    assert dict(deployment.feature_view_digests) == {"customer.v2": "customer.v2" * 2, "account": "accountaccount"}
    assert (await fraud.deployment(deployment.name)).feature_view_digests == deployment.feature_view_digests
    assert views.asked == 1


async def test_a_version_whose_features_are_not_there_is_not_deployed(fraud: Registry, views: FakeFeatureViews) -> None:
    views.wrong = {"amount": "want DOUBLE, got STRING", "age": "no such feature"}
    with refused(WRONG_STATE, "SIGNATURE_UNSATISFIED") as seen:
        await fraud.deploy("2")
    assert seen[0].violations == {
        "signature.features.amount": "customer.v2.amount: want DOUBLE, got STRING",
        "signature.features.age": "account.age: no such feature",
    }
    assert seen[0].metadata["model_version"] == "models/fraud/versions/2"
    assert not (await fraud.api.ListDeployments(pb.ListDeploymentsRequest())).deployments


async def test_without_the_features_service_nothing_that_fetches_is_deployed(
    fraud: Registry, features_address: str
) -> None:
    with refused(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE") as seen:
        await fraud.deploy("1")
    assert seen[0].metadata["service"] == "features"
    assert not (await fraud.api.ListDeployments(pb.ListDeploymentsRequest())).deployments
    await fraud.deploy("3", pool="other")
    async with serve_feature_views(FakeFeatureViews(), features_address), asyncio.timeout(10):
        while not (
            await fraud.api.ListDeployments(pb.ListDeploymentsRequest(model="fraud", pool="default"))
        ).deployments:
            # The channel tries again a moment after it has failed.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await fraud.deploy("1")


async def test_a_repeated_order_is_answered_without_the_features_service(
    fraud: Registry, features_address: str
) -> None:
    request = pb.DeployModelRequest(model="fraud", version="1", request_id=new_id())
    async with serve_feature_views(FakeFeatureViews(), features_address):
        first = await fraud.api.DeployModel(request)
    assert await fraud.api.DeployModel(request) == first
