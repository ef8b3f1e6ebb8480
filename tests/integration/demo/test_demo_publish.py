"""The demo's way to traffic: a fresh registry, one that has everything, and ones that stand in the way."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from interlock.registry.v1 import deployment_pb2, model_version_pb2

from interlock_cli.demo import publish as demo_publish
from interlock_cli.demo.cache import TrainedVersion
from interlock_cli.demo.data import RECIPES
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.publish import publish
from interlock_sdk.artifacts import hash_file
from interlock_sdk.client import Client, connect
from interlock_sdk.errors import DeploymentFailed
from tests.fakes.public_api import FakePublicApi

ROUTE = "models/flight-delay/routes/production"
ALL_CHANGES = [
    "CreateModel",
    "CreateModelVersion",
    "CreateModelVersion",
    "DeployModel",
    "DeployModel",
    "UpdateRoute",
]


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakePublicApi]:
    async with FakePublicApi.serve() as api:
        yield api


@pytest_asyncio.fixture
async def client(api: FakePublicApi) -> AsyncIterator[Client]:
    async with connect(api.target) as client:
        yield client


@pytest_asyncio.fixture
async def trained(tmp_path: Path) -> list[TrainedVersion]:
    versions = []
    for recipe in RECIPES:
        path = tmp_path / f"{recipe.name}.onnx"
        path.write_text(recipe.name)
        files = [model_version_pb2.ModelFile(path="model.onnx", digest=(await hash_file(path)).digest)]
        versions.append(TrainedVersion(recipe, path, model_version_pb2.ModelVersion(files=files)))
    return versions


def weights(api: FakePublicApi) -> dict[str, int]:
    return {variant.name: variant.weight_basis_points for variant in api.registry.routes[ROUTE].variants}


async def test_a_fresh_registry_gets_both_versions_and_the_split(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    said: list[str] = []
    published = await publish(client, trained, said.append)
    assert published.version_ids == ("1", "2")
    assert published.route_epoch == 7
    assert weights(api) == {"1": 9_000, "2": 1_000}
    assert api.registry.changes == ALL_CHANGES
    assert len(api.artifacts.stored) == 2
    assert said[-1] == "traffic: 90 % to version 1, 10 % to version 2"


async def test_a_second_start_changes_nothing(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    first = await publish(client, trained, lambda _: None)
    again = await publish(client, trained, lambda _: None)
    assert again.version_ids == first.version_ids
    assert api.registry.changes == ALL_CHANGES
    assert api.artifacts.upload_count == 2


async def test_weights_that_somebody_moved_stay(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    await publish(client, trained, lambda _: None)
    for variant in api.registry.routes[ROUTE].variants:
        variant.weight_basis_points = 5_000
    await publish(client, trained, lambda _: None)
    assert weights(api) == {"1": 5_000, "2": 5_000}


async def test_a_start_that_was_cut_off_before_the_split_is_taken_up(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    await publish(client, trained, lambda _: None)
    route = api.registry.routes[ROUTE]
    del route.variants[1:]
    route.variants[0].weight_basis_points = 10_000
    await publish(client, trained, lambda _: None)
    assert weights(api) == {"1": 9_000, "2": 1_000}


async def test_a_registry_that_fills_in_defaults_still_has_the_version(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    for version in trained:
        version.description.signature.features.add(name="distance", tensor="numbers")
    await publish(client, trained, lambda _: None)
    for registered in api.registry.versions.values():
        registered.signature.features[0].source = "request"
    assert (await publish(client, trained, lambda _: None)).version_ids == ("1", "2")


async def test_a_version_with_other_content_is_registered_beside_the_old_one(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    await publish(client, trained, lambda _: None)
    trained[1].artifact_path.write_text("trained anew")
    trained[1].description.files[0].digest = (await hash_file(trained[1].artifact_path)).digest
    published = await publish(client, trained, lambda _: None)
    assert published.version_ids == ("1", "3")
    assert weights(api) == {"1": 9_000, "3": 1_000}


async def test_a_route_that_changes_at_the_same_moment_is_read_again(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    api.registry.aborted_count = 2
    await publish(client, trained, lambda _: None)
    assert weights(api) == {"1": 9_000, "2": 1_000}


async def test_a_version_that_fails_its_check_is_named_with_the_reason(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion]
) -> None:
    api.registry.states = (deployment_pb2.DEPLOYMENT_STATE_FAILED,)
    api.registry.state_message = "golden row 3: want 0.2, got 0.9"
    with pytest.raises(DeploymentFailed, match="flight-delay-1-production failed: golden row 3"):
        await publish(client, trained, lambda _: None)
    assert ROUTE not in api.registry.routes


async def test_a_route_that_never_comes_is_a_failure_of_its_own(
    api: FakePublicApi, client: Client, trained: list[TrainedVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_publish, "_ROUTE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(api.registry, "_route_to", lambda _: None)
    with pytest.raises(DemoFailed, match=r"has had no route for 0.3 s"):
        await publish(client, trained, lambda _: None)
