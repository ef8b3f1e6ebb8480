"""The configuration: pushed, kept on disk, used without the registry, never half applied."""

import asyncio

import grpc
import pytest
from interlock.registry.v1.route_pb2 import BucketRange
from interlock.router.v1 import prediction_pb2
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE

from tests.fakes.router_models import FLIGHT, PAIR, flight_signature, pair_signature
from tests.fakes.router_registry import Resource, deployment_of, model_of, route_of, served, version_of
from tests.fakes.router_world import World, error_of, eventually, reason_of, standard_resources


def ask(user_id: str = "", version: str = "", model: str = PAIR) -> pb.PredictRequest:
    features = {"a": FeatureValue(int64_value=1), "b": FeatureValue(int64_value=2)}
    return pb.PredictRequest(model=model, features=features, user_id=user_id, version=version)


async def predict(world: World, **fields: str) -> prediction_pb2.Prediction:
    return (await world.router.Predict(ask(**fields), timeout=5)).prediction


async def applied(world: World, epoch: int) -> None:
    await eventually(lambda: world.metric("interlock_router_config_epoch") == epoch)


def split(first: int) -> list[Resource]:
    """PAIR in two versions, the first with `first` hundredths of a percent."""
    return [
        version_of(PAIR, 1, pair_signature()),
        version_of(PAIR, 2, pair_signature()),
        deployment_of(PAIR, 1),
        deployment_of(PAIR, 2),
        route_of(PAIR, [(1, first), (2, 10_000 - first)]),
    ]


async def test_the_router_watches_its_environment(world: World) -> None:
    assert world.control.requests[0].environment == "production"
    assert world.control.requests[0].watcher_id


async def test_a_new_route_is_in_force_at_once_and_in_every_answer(world: World) -> None:
    world.replica.set_ready({(PAIR, "1"), (PAIR, "2")})
    world.control.publish(split(0))
    await applied(world, 2)
    found = await predict(world, user_id="u-1")
    assert (found.variant, found.model_version, found.config_epoch) == ("2", "2", 2)
    assert found.served_by == "deployments/pair-2"


async def test_users_stick_and_shares_hold(world: World) -> None:
    world.replica.set_ready({(PAIR, "1"), (PAIR, "2")})
    world.control.publish(split(9000))
    await applied(world, 2)
    first = [(await predict(world, user_id=f"user-{index}")).variant for index in range(300)]
    again = [(await predict(world, user_id=f"user-{index}")).variant for index in range(300)]
    assert first == again
    assert 240 <= first.count("1") <= 295
    drawn = [(await predict(world)).variant for _ in range(300)]
    assert 240 <= drawn.count("1") <= 295


async def test_a_growing_share_flips_nobody_back(world: World) -> None:
    world.replica.set_ready({(PAIR, "1"), (PAIR, "2")})
    world.control.publish(split(9000))
    await applied(world, 2)
    before = {index: (await predict(world, user_id=f"user-{index}")).variant for index in range(150)}
    world.control.publish(split(5000))
    await applied(world, 3)
    after = {index: (await predict(world, user_id=f"user-{index}")).variant for index in range(150)}
    assert all(after[index] == "2" for index, variant in before.items() if variant == "2")


async def test_an_alias_pins_the_version_it_names(world: World) -> None:
    world.replica.set_ready({(PAIR, "1"), (PAIR, "2")})
    world.control.publish([*split(10_000), model_of(PAIR, {"challenger": "2"})])
    await applied(world, 2)
    found = await predict(world, version="challenger")
    assert (found.model_version, found.assignment) == ("2", prediction_pb2.ASSIGNMENT_PINNED)
    error = await error_of(world.router.Predict(ask(version="champion"), timeout=5))
    assert reason_of(error) == "VERSION_NOT_FOUND"


async def test_without_the_registry_predictions_go_on_even_after_a_restart(world: World) -> None:
    assert world.control_server is not None
    await eventually(lambda: list((world.folder / "router").glob("*.snapshot")) != [])
    await world.control_server.stop(0)
    assert (await predict(world)).prediction.double_value == 1002.0
    await world.stop_router()
    await world.start_router()
    found = await predict(world, user_id="u-1")
    assert (found.prediction.double_value, found.config_epoch) == (1002.0, 1)


async def test_a_damaged_snapshot_is_not_used(world: World) -> None:
    assert world.control_server is not None
    await eventually(lambda: list((world.folder / "router").glob("*.snapshot")) != [])
    await world.control_server.stop(0)
    await world.stop_router()
    (snapshot,) = (world.folder / "router").glob("*.snapshot")
    snapshot.write_bytes(snapshot.read_bytes()[:-1] + b"\x00")
    await world.start_router(wait=False)
    error = await error_of(world.router.Predict(ask(), timeout=5))
    assert reason_of(error) == "NO_CONFIGURATION"


@pytest.mark.parametrize("fault", ["gap", "overlap", "outside"])
async def test_a_route_that_makes_no_sense_leaves_the_one_before(world: World, fault: str) -> None:
    resources = split(5000)
    route = resources[-1].route
    if fault == "gap":
        route.variants[0].buckets[0].last -= 1
    elif fault == "overlap":
        route.variants[0].buckets.append(BucketRange(first=9999, last=9999))
    else:
        route.variants[1].buckets[0].last = 10_000
    world.control.publish(resources)
    await applied(world, 2)
    assert (await predict(world)).config_epoch == 1


async def test_a_version_that_no_row_can_be_made_for_does_not_stop_the_others(world: World) -> None:
    signature = flight_signature()
    signature.features[0].type = FEATURE_TYPE_DOUBLE
    world.control.publish([*served(FLIGHT, signature), *served(PAIR, pair_signature())])
    await applied(world, 2)
    assert (await predict(world)).config_epoch == 2
    error = await error_of(world.router.Predict(ask(model=FLIGHT), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_FEATURES_IN_SIGNATURE")
    assert "carrier" in (error.details() or "")


async def test_a_model_that_is_gone_is_not_found(world: World) -> None:
    world.control.publish(standard_resources()[:5])
    await applied(world, 2)
    error = await error_of(world.router.Predict(ask(), timeout=5))
    assert reason_of(error) == "MODEL_NOT_FOUND"


async def test_calls_in_flight_keep_the_configuration_they_began_with(world: World) -> None:
    world.replica.hold = asyncio.Event()
    answering = asyncio.ensure_future(predict(world))
    await eventually(lambda: bool(world.replica.items))
    world.control.publish(standard_resources()[:5])
    await applied(world, 2)
    world.replica.hold.set()
    assert (await answering).config_epoch == 1
