"""Registry and features, both real, on one database: neither lets the other down."""

import asyncio
from pathlib import Path

import grpc
from interlock.features.v1 import feature_view_service_pb2 as pb
from interlock.features.v1.feature_view_pb2 import Feature
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE, FEATURE_TYPE_STRING

from tests.fakes.features_service import Features, a_view, an_entity, hours, running_features
from tests.fakes.registry_service import Registry, a_signature, new_id, refused

WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION


async def register(registry: Registry, *sources: str) -> None:
    """Register version 1 of `fraud`, whose features come from these sources."""
    await registry.create_model()
    signature = a_signature()
    for feature, source in zip(signature.features, sources, strict=False):
        feature.source = source
    await registry.create_version(signature=signature)


async def test_a_version_is_deployed_on_its_views_and_they_stay_as_they_are(
    registry: Registry, features: Features
) -> None:
    await register(registry, "carrier_delays.delay_mean")
    with refused(WRONG_STATE, "SIGNATURE_UNSATISFIED") as seen:
        await registry.deploy()
    assert "signature.features.amount" in seen[0].violations
    await features.apply(an_entity(), a_view())
    deployment = await registry.deploy()
    assert dict(deployment.feature_view_digests) == {"carrier_delays": (await features.view()).digest}
    broken = a_view(features=[Feature(name="delay_mean", type=FEATURE_TYPE_STRING)])
    with refused(WRONG_STATE, "DEFINITION_IN_USE") as seen:
        await features.apply(broken)
    assert "models/fraud/versions/1" in seen[0].message
    with refused(WRONG_STATE, "DEFINITION_IN_USE"):
        await features.apply(delete_missing=True)
    harmless = a_view()
    harmless.features.add(name="another", type=FEATURE_TYPE_DOUBLE)
    await features.apply(harmless)
    assert (await features.view()).digest != deployment.feature_view_digests["carrier_delays"]
    assert dict((await registry.deployment(deployment.name)).feature_view_digests) == dict(
        deployment.feature_view_digests
    ), "a pin stays"


async def test_a_version_that_is_registered_and_not_deployed_counts_too(registry: Registry, features: Features) -> None:
    await features.apply(an_entity(), a_view())
    await register(registry, "carrier_delays.delay_mean", "carrier_delays.flight_count")
    shorter = a_view()
    shorter.features[0].max_age.CopyFrom(hours(1))
    with refused(WRONG_STATE, "DEFINITION_IN_USE"):
        await features.apply(shorter)


async def test_applies_at_the_same_time_leave_one_state(features: Features) -> None:
    await features.apply(an_entity())
    views = [a_view(f"view_{index}") for index in range(6)]
    await asyncio.gather(*(features.apply(view) for view in views))
    assert await features.names() == ["entities/carrier", *(view.name for view in views)]
    etags = [(await features.view(f"view_{index}")).etag for index in range(6)]
    assert len(set(etags)) == 6


async def test_a_repeated_apply_is_known_to_another_process(
    features: Features, database_url: str, tmp_path: Path
) -> None:
    request_id = new_id()
    first = await features.apply(an_entity(), a_view(), request_id=request_id)
    async with running_features(tmp_path / "other", features_database_url=database_url) as other:
        assert await other.apply(an_entity(), a_view(), request_id=request_id) == first
        assert await other.names() == await features.names()


async def test_many_definitions_are_applied_at_once(features: Features) -> None:
    entities = [an_entity(f"e{index}") for index in range(100)]
    views = [a_view(f"v{index}", entities=[f"entities/e{index % 100}"]) for index in range(900)]
    assert len((await features.apply(*entities, *views)).changes) == 1_000
    listed, token = 0, ""
    while True:
        request = pb.ListFeatureViewsRequest(page_size=400, page_token=token)
        page = await features.views.ListFeatureViews(request)
        listed, token = listed + len(page.feature_views), page.next_page_token
        if not token:
            break
    assert listed == 900
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await features.apply(*entities, *views, a_view("one_more"))
