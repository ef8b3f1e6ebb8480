"""Routes: who gets how much of the traffic, and which buckets."""

import asyncio
import math
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.registry.v1.deployment_pb2 import DEPLOYMENT_STATE_LOADING
from interlock.registry.v1.route_pb2 import (
    FEATURE_FAILURE_POLICY_FALLBACK,
    CachePolicy,
    FallbackLadder,
    FallbackRung,
    Guardrail,
    Route,
    ShadowPolicy,
    Variant,
)

from tests.fakes.registry_service import Registry, buckets, new_id, refused, seconds, variants, weights

SERVICE = "interlock.registry.v1.RegistryService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
NAME = "models/fraud/routes/production"


async def test_the_first_deployment_gets_everything_once_it_is_ready(registry: Registry) -> None:
    await registry.create_model("fraud")
    await registry.create_version()
    deployment = await registry.deploy(traffic_percent=30)
    await registry.report(deployment.name, state=DEPLOYMENT_STATE_LOADING)
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await registry.route()
    epoch = (await registry.report(deployment.name)).epoch
    route = await registry.route()
    assert weights(route) == {"1": 10_000}
    assert buckets(route.variants[0]) == set(range(10_000))
    assert (route.name, route.salt) == (NAME, NAME)
    assert not (await registry.deployment(deployment.name)).HasField("pending_weight_basis_points")
    assert (await registry.report(deployment.name)).epoch == epoch, "the share is given once"


async def test_later_deployments_take_their_share_from_all_others(registry: Registry) -> None:
    await registry.serve_versions(None, 10, None, 33.33)
    route = await registry.route()
    assert weights(route) == {"1": 6_000, "2": 667, "4": 3_333}
    held = [buckets(variant) for variant in route.variants]
    assert sum(map(len, held)) == 10_000
    assert set().union(*held) == set(range(10_000))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_the_order_in_which_two_become_ready_does_not_matter(registry: Registry, order: tuple[int, int]) -> None:
    await registry.create_model("fraud")
    for _ in range(2):
        await registry.create_version()
    deployed = [(await registry.deploy("1")).name, (await registry.deploy("2", traffic_percent=10)).name]
    for index in order:
        await registry.report(deployed[index], replica=f"r-{index}")
    assert weights(await registry.route()) == {"1": 9_000, "2": 1_000}


@pytest.mark.rpc(f"{SERVICE}/UpdateRoute", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetRoute", "happy")
async def test_weights_change_and_few_users_change_sides(registry: Registry) -> None:
    await registry.serve_versions(None, 5)
    before = {variant.name: buckets(variant) for variant in (await registry.route()).variants}
    answer = await registry.set_route(*variants(fraud_1_production=7_500, fraud_2_production=2_500))
    after = {variant.name: buckets(variant) for variant in answer.route.variants}
    assert before["2"] < after["2"], "whoever had the newcomer keeps it"
    assert after["1"] < before["1"]
    assert len(after["2"]) == 2_500
    assert answer.route == await registry.route()
    assert answer.epoch > 0


async def test_an_update_that_changes_nothing_keeps_the_etag(registry: Registry) -> None:
    await registry.serve_versions(None)
    route = await registry.route()
    answer = await registry.set_route(*variants(fraud_1_production=10_000))
    assert answer.route == route


@pytest.mark.rpc(f"{SERVICE}/UpdateRoute", "error")
async def test_weights_must_add_up(registry: Registry) -> None:
    await registry.serve_versions(None, 0)
    wrong: list[tuple[dict[str, int], str]] = [
        ({}, "route.variants"),
        ({"fraud_1_production": 9_999}, "route.variants"),
        ({"fraud_1_production": 10_001}, "route.variants[0].weight_basis_points"),
        ({"fraud_1_production": 11_000, "fraud_2_production": -1_000}, "route.variants[1].weight_basis_points"),
    ]
    for shares, field in wrong:
        route = Route(name=NAME, variants=variants(**shares))
        request = pb.UpdateRouteRequest(route=route, update_mask=FieldMask(paths=["variants"]))
        with refused(INVALID, "INVALID_FIELD") as seen:
            await registry.api.UpdateRoute(request)
        assert field in seen[0].violations


async def test_variants_need_names_of_their_own(registry: Registry) -> None:
    await registry.serve_versions(None, 0)
    both = [
        Variant(name=name, deployment=f"deployments/fraud-{number}-production", weight_basis_points=5_000)
        for number, name in ((1, "arm"), (2, "ARM"))
    ]
    with refused(INVALID, "INVALID_FIELD"):
        await registry.set_route(*both)
    both[1].name = "other"
    assert weights((await registry.set_route(*both)).route) == {"arm": 5_000, "other": 5_000}
    with refused(INVALID, "INVALID_FIELD"):
        await registry.set_route(*([both[0]] * 33))


async def test_traffic_goes_to_ready_deployments_of_the_route_only(registry: Registry) -> None:
    await registry.serve_versions(None)
    await registry.create_version()
    await registry.deploy("2", traffic_percent=0)
    await registry.deploy("2", environment="dev", traffic_percent=0)
    not_ready = variants(fraud_1_production=5_000, fraud_2_production=5_000)
    for bad in (
        not_ready,
        variants(fraud_1_production=5_000, fraud_2_dev=5_000),
        variants(fraud_1_production=10_000, none=0),
    ):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "DEPLOYMENT_NOT_READY"):
            await registry.set_route(*bad)
    without_weight = await registry.set_route(*variants(fraud_1_production=10_000, fraud_2_production=0))
    assert weights(without_weight.route) == {"1": 10_000, "2": 0}
    await registry.report("deployments/fraud-1-production", "deployments/fraud-2-production")
    assert weights((await registry.set_route(*not_ready)).route) == {"1": 5_000, "2": 5_000}


async def test_everything_may_be_deployed_without_traffic_first(registry: Registry) -> None:
    await registry.serve_versions(0, 0)
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await registry.route()
    answer = await registry.set_route(
        *variants(fraud_1_production=5_000, fraud_2_production=5_000), salt="a salt of my own"
    )
    assert answer.route.salt == "a salt of my own"
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await registry.set_route(*variants(none=10_000), name="models/none/routes/production")
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await registry.set_route(*variants(none=10_000), name="models/fraud/routes/none")


async def test_the_salt_is_set_once(registry: Registry) -> None:
    await registry.serve_versions(None)
    whole = variants(fraud_1_production=10_000)
    await registry.set_route(*whole, salt=NAME)
    with refused(INVALID, "INVALID_FIELD") as seen:
        await registry.set_route(*whole, salt="other")
    assert set(seen[0].violations) == {"route.salt"}


async def test_fields_that_nobody_acts_upon_are_refused(registry: Registry) -> None:
    await registry.serve_versions(None)
    given: list[dict[str, object]] = [
        {"layer": "checkout"},
        {"shadow": ShadowPolicy(deployment="deployments/x")},
        {"cache": CachePolicy()},
        {"guardrails": [Guardrail(metric="error_rate")]},
    ]
    for fields in given:
        with refused(grpc.StatusCode.UNIMPLEMENTED, "NOT_ACTED_UPON") as seen:
            await registry.set_route(*variants(fraud_1_production=10_000), **fields)
        assert seen[0].metadata["field"] == f"route.{next(iter(fields))}"
    cached = FallbackLadder(rungs=[FallbackRung(static_prediction=1), FallbackRung(cached_max_age=seconds(5))])
    with refused(grpc.StatusCode.UNIMPLEMENTED, "NOT_ACTED_UPON") as seen:
        await registry.set_route(fallback=cached)
    assert seen[0].metadata["field"] == "route.fallback.rungs[1].cached_max_age"


async def test_a_route_says_what_answers_when_features_or_inference_fail(registry: Registry) -> None:
    await registry.serve_versions(None, 0)
    rungs = [FallbackRung(deployment="deployments/fraud-2-production"), FallbackRung(static_prediction=0.5)]
    policies: dict[str, Any] = {
        "fallback": FallbackLadder(rungs=rungs),
        "feature_failure_policy": FEATURE_FAILURE_POLICY_FALLBACK,
        "redacted_features": ["amount", "age"],
    }
    answer = await registry.set_route(**policies)
    assert weights(answer.route) == {"1": 10_000}, "what is not named stays"
    stored = await registry.route()
    assert stored == answer.route
    assert stored.fallback == policies["fallback"]
    assert stored.feature_failure_policy == FEATURE_FAILURE_POLICY_FALLBACK
    assert list(stored.redacted_features) == ["amount", "age"]
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "DEPLOYMENT_IN_USE"):
        await registry.api.DeleteDeployment(pb.DeleteDeploymentRequest(name="deployments/fraud-2-production"))
    request = pb.UpdateRouteRequest(
        route=Route(name=NAME), update_mask=FieldMask(paths=["fallback", "feature_failure_policy"])
    )
    cleared = (await registry.api.UpdateRoute(request)).route
    assert not cleared.HasField("fallback")
    assert not cleared.feature_failure_policy
    assert list(cleared.redacted_features) == ["amount", "age"]
    await registry.api.DeleteDeployment(pb.DeleteDeploymentRequest(name="deployments/fraud-2-production"))


async def test_wrong_policies_of_a_route_are_refused_with_every_field(registry: Registry) -> None:
    await registry.serve_versions(None)
    rungs = [FallbackRung(deployment="fraud"), FallbackRung(), FallbackRung(static_prediction=math.nan)]
    with refused(INVALID, "INVALID_FIELD") as seen:
        await registry.set_route(
            fallback=FallbackLadder(rungs=rungs),
            feature_failure_policy=77,
            redacted_features=["amount", "amount", "no name"],
        )
    assert set(seen[0].violations) == {
        "route.fallback.rungs[0].deployment",
        "route.fallback.rungs[1].deployment",
        "route.fallback.rungs[2].static_prediction",
        "route.feature_failure_policy",
        "route.redacted_features",
        "route.redacted_features[2]",
    }
    with refused(INVALID, "INVALID_FIELD"):
        await registry.set_route(fallback=FallbackLadder(rungs=[FallbackRung(static_prediction=1)] * 9))


async def test_a_rung_belongs_to_the_model_and_environment_of_its_route(registry: Registry) -> None:
    await registry.serve_versions(None)
    await registry.create_model("other")
    await registry.create_version("other")
    await registry.deploy(model="other")
    await registry.deploy(environment="dev")
    for foreign in ("none", "other-1-production", "fraud-1-dev"):
        rung = FallbackRung(deployment=f"deployments/{foreign}")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "DEPLOYMENT_NOT_READY"):
            await registry.set_route(fallback=FallbackLadder(rungs=[rung]))


async def test_one_of_two_who_change_the_same_route_is_told(registry: Registry) -> None:
    await registry.serve_versions(None, 0)
    etag = (await registry.route()).etag
    splits = [(9_000, 1_000), (8_000, 2_000), (7_000, 3_000), (6_000, 4_000)]
    answers = await asyncio.gather(
        *(
            registry.set_route(*variants(fraud_1_production=first, fraud_2_production=second), etag=etag)
            for first, second in splits
        ),
        return_exceptions=True,
    )
    good = [answer for answer in answers if isinstance(answer, pb.UpdateRouteResponse)]
    failed = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert (len(good), len(failed)) == (1, 3)
    assert {error.code() for error in failed} == {grpc.StatusCode.ABORTED}
    assert await registry.route() == good[0].route


async def test_a_repeated_update_changes_once(registry: Registry) -> None:
    await registry.serve_versions(None, 0)
    wanted = variants(fraud_1_production=5_000, fraud_2_production=5_000)
    request = pb.UpdateRouteRequest(route=Route(name=NAME, variants=wanted), request_id=new_id())
    first = await registry.api.UpdateRoute(request)
    await registry.set_route(*variants(fraud_1_production=10_000, fraud_2_production=0))
    assert await registry.api.UpdateRoute(request) == first
    assert weights(await registry.route()) == {"1": 10_000, "2": 0}


@pytest.mark.rpc(f"{SERVICE}/GetRoute", "error")
async def test_a_route_can_be_read_as_it_was(registry: Registry) -> None:
    await registry.serve_versions(None, 0)
    first = await registry.route()
    changed = await registry.set_route(*variants(fraud_1_production=5_000, fraud_2_production=5_000))

    async def as_of(time: Timestamp, offset: timedelta = timedelta()) -> Route:
        stamp = Timestamp()
        stamp.FromDatetime(time.ToDatetime() + offset)
        return (await registry.api.GetRoute(pb.GetRouteRequest(name=NAME, as_of_time=stamp))).route

    step = timedelta(microseconds=1)
    assert await as_of(changed.route.update_time) == changed.route
    assert await as_of(changed.route.update_time, -step) == first
    assert await as_of(changed.route.update_time, timedelta(days=1)) == changed.route
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await as_of(first.create_time, -step)
    with refused(INVALID, "INVALID_FIELD"):
        bad = Timestamp(seconds=10**15)
        await registry.api.GetRoute(pb.GetRouteRequest(name=NAME, as_of_time=bad))
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await registry.route(environment="dev")


@pytest.mark.rpc(f"{SERVICE}/ListRoutes", "happy")
@pytest.mark.rpc(f"{SERVICE}/ListRoutes", "error")
async def test_routes_are_listed_of_one_model_or_of_all(registry: Registry) -> None:
    await registry.serve_versions(None)
    await registry.serve_versions(None, model="other")
    staging = await registry.deploy("1", environment="staging")
    await registry.report(staging.name, replica="r-2")

    async def listed(parent: str) -> list[str]:
        return [each.name for each in (await registry.api.ListRoutes(pb.ListRoutesRequest(parent=parent))).routes]

    assert await listed("models/fraud") == [NAME, "models/fraud/routes/staging"]
    assert await listed("models/-") == [NAME, "models/fraud/routes/staging", "models/other/routes/production"]
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await listed("models/none")
    with refused(INVALID, "INVALID_NAME"):
        await listed("-")
