"""Definitions through the wire: applied whole or not at all, and never under a registered version's feet."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from interlock.features.v1 import feature_view_service_pb2 as pb
from interlock.features.v1.feature_view_pb2 import (
    AGGREGATE_FUNCTION_COUNT,
    AGGREGATE_FUNCTION_LAST_N,
    AGGREGATE_FUNCTION_MEAN,
    FILE_FORMAT_CSV,
    Aggregate,
    AggregateSource,
    BatchSource,
    EventField,
    Feature,
    FeatureView,
    FileLocation,
    OnDemandSource,
)
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import (
    FEATURE_TYPE_BOOL,
    FEATURE_TYPE_DOUBLE,
    FEATURE_TYPE_INT64,
    FEATURE_TYPE_STRING,
    FeatureSpec,
    Signature,
)

from tests.fakes.feature_bindings import FakeBindings, serve_bindings
from tests.fakes.features_service import Features, a_view, an_entity, hours, running_features
from tests.fakes.registry_service import new_id, refused, short_folder

SERVICE = "interlock.features.v1.FeatureViewService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
IN_USE = (grpc.StatusCode.FAILED_PRECONDITION, "DEFINITION_IN_USE")
VERSION = "models/flight-delay/versions/2"


@pytest.fixture
async def registry_address() -> AsyncIterator[str]:
    with short_folder() as folder:
        yield f"unix:{folder / 'registry.sock'}"


@pytest.fixture
async def features(tmp_path: Path, registry_address: str) -> AsyncIterator[Features]:
    async with running_features(tmp_path, registry_address=registry_address) as running:
        yield running


@pytest.fixture
async def registry(registry_address: str) -> AsyncIterator[FakeBindings]:
    """A version 2 fetches the mean delay, not older than 24 hours and never null; version 1 takes what comes."""
    fake = FakeBindings()
    source = "carrier_delays.delay_mean"
    fake.bind("models/flight-delay/versions/1", name="c", source="carrier_delays.flight_count", nullable=True)
    fake.bind(VERSION, name="d", source=source, type=FEATURE_TYPE_DOUBLE, max_age=hours(24))
    async with serve_bindings(fake, registry_address):
        yield fake


def kinds(answer: pb.ApplyFeatureDefinitionsResponse) -> dict[str, str]:
    return {
        each.resource: pb.ChangeKind.Name(each.kind).removeprefix("CHANGE_KIND_").lower() for each in answer.changes
    }


def changed(change: Callable[[FeatureView], object]) -> FeatureView:
    view = a_view()
    change(view)
    return view


@pytest.mark.rpc(f"{SERVICE}/ApplyFeatureDefinitions", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetFeatureView", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetEntity", "happy")
async def test_what_is_applied_is_there(features: Features) -> None:
    answer = await features.apply(a_view(labels={"team": "ops"}), an_entity(description="An airline"))
    assert answer.applied
    assert kinds(answer) == {"entities/carrier": "created", "featureViews/carrier_delays": "created"}
    fields = {each.path: (each.before, each.after) for each in answer.changes[1].fields}
    assert fields["features.delay_mean.max_age"] == ("", "36h")
    assert fields["entities"] == ("", "[carrier]")
    view = await features.view()
    assert (dict(view.labels), view.owner, view.HasField("push_source")) == ({"team": "ops"}, "ops@example.org", True)
    assert view.features == a_view().features
    assert len(view.digest) == 64
    assert view.create_time == view.update_time
    entity = (await features.views.GetEntity(pb.GetEntityRequest(name="entities/carrier"))).entity
    assert (entity.description, entity.key_type, entity.etag) == ("An airline", FEATURE_TYPE_STRING, view.etag)


async def test_applying_the_same_again_changes_nothing(features: Features) -> None:
    await features.apply(an_entity(), a_view())
    before = await features.view()
    assert set(kinds(await features.apply(an_entity(), a_view())).values()) == {"unchanged"}
    assert await features.view() == before


@pytest.mark.rpc(f"{SERVICE}/ApplyFeatureDefinitions", "error")
async def test_every_wrong_field_is_told_and_nothing_is_changed(features: Features) -> None:
    entities = [an_entity(), an_entity("CARRIER"), an_entity("bad", key_type=FEATURE_TYPE_BOOL), an_entity(name="x")]
    pushed = a_view(
        "a..b",
        entities=["entities/none"],
        features=[
            Feature(name="1st", type=FEATURE_TYPE_DOUBLE),
            Feature(name="known_at", type=FEATURE_TYPE_DOUBLE),
            Feature(name="delay", max_age=hours(0)),
            Feature(name="DELAY", type=FEATURE_TYPE_INT64, default_value=FeatureValue(string_value="x")),
        ],
        max_age=hours(2),
        retention=hours(1),
        allowed_lateness=hours(24 * 31),
        description="\x00",
    )
    batch = a_view(
        "batch",
        batch_source=BatchSource(
            files=FileLocation(uri="http://x"), time_zone="Mars/Base", feature_columns={"none": "x"}
        ),
    )
    aggregate = a_view(
        "aggregate",
        aggregate_source=AggregateSource(
            fields=[EventField(name="carrier_name", type=FEATURE_TYPE_STRING)],
            aggregates=[
                Aggregate(feature="delay_mean", function=AGGREGATE_FUNCTION_MEAN, field="carrier_name"),
                Aggregate(feature="flight_count", function=AGGREGATE_FUNCTION_LAST_N, window=hours(9601)),
            ],
        ),
    )
    on_demand = a_view(
        "on_demand",
        entities=[],
        on_demand_source=OnDemandSource(
            inputs=[EventField(name="a", type=FEATURE_TYPE_DOUBLE)], expressions={"delay_mean": "a +", "other": "a"}
        ),
    )
    nothing = FeatureView(name="featureViews/nothing")
    with refused(INVALID, "INVALID_DEFINITION") as seen:
        await features.apply(*entities, pushed)
    assert {
        "entities[1].name",
        "entities[2].key_type",
        "entities[3].name",
        "feature_views[0].name",
        "feature_views[0].description",
        "feature_views[0].entities[0]",
        "feature_views[0].features[0].name",
        "feature_views[0].features[1].name",
        "feature_views[0].features[2].type",
        "feature_views[0].features[2].max_age",
        "feature_views[0].features[3].name",
        "feature_views[0].features[3].default_value",
        "feature_views[0].retention",
        "feature_views[0].allowed_lateness",
    } == set(seen[0].violations)
    with refused(INVALID, "INVALID_DEFINITION") as seen:
        await features.apply(an_entity(), batch, aggregate, on_demand, nothing)
    assert {
        "feature_views[0].batch_source.files.uri",
        "feature_views[0].batch_source.files.format",
        "feature_views[0].batch_source.event_time_column",
        "feature_views[0].batch_source.time_zone",
        'feature_views[0].batch_source.feature_columns["none"]',
        "feature_views[1].aggregate_source.aggregates[0].window",
        "feature_views[1].aggregate_source.aggregates[1].window",
        "feature_views[1].aggregate_source.aggregates[1].last_count",
        'feature_views[1].aggregate_source.aggregates["delay_mean"].field',
        'feature_views[2].on_demand_source.expressions["delay_mean"]',
        'feature_views[2].on_demand_source.expressions["other"]',
        "feature_views[3].entities",
        "feature_views[3].features",
        "feature_views[3]",
    } <= set(seen[0].violations)
    secret = FileLocation(uri="file:///etc/passwd", format=FILE_FORMAT_CSV)
    with refused(INVALID, "INVALID_DEFINITION") as seen:
        await features.apply(
            an_entity(), a_view("secret", batch_source=BatchSource(files=secret, event_time_column="a"))
        )
    assert set(seen[0].violations) == {"feature_views[0].batch_source.files.uri"}
    assert await features.names() == []


async def test_looking_changes_nothing(features: Features) -> None:
    answer = await features.apply(an_entity(), a_view(), validate_only=True)
    assert not answer.applied
    assert set(kinds(answer).values()) == {"created"}
    assert await features.names() == []


async def test_a_harmless_change_is_an_update_and_tells_its_fields(features: Features) -> None:
    await features.apply(an_entity(), a_view())
    before = await features.view()
    later = changed(lambda view: view.features[0].max_age.CopyFrom(hours(48)))
    later.features.add(name="late_share", type=FEATURE_TYPE_DOUBLE)
    answer = await features.apply(later)
    assert kinds(answer) == {"featureViews/carrier_delays": "updated"}
    fields = [(each.path, each.before, each.after) for each in answer.changes[0].fields]
    assert fields == [("features.delay_mean.max_age", "36h", "2d"), ("features.late_share.type", "", "double")]
    after = await features.view()
    assert (after.create_time, after.digest == before.digest) == (before.create_time, False)


async def test_what_is_set_once_stays(features: Features) -> None:
    await features.apply(an_entity(), an_entity("plane"), a_view())
    with refused(INVALID, "INVALID_DEFINITION") as seen:
        await features.apply(
            an_entity(key_type=FEATURE_TYPE_INT64), a_view(entities=["entities/carrier", "entities/plane"])
        )
    assert set(seen[0].violations) == {"entities[0].key_type", "feature_views[0].entities"}


async def test_one_of_two_who_change_the_same_is_told(features: Features) -> None:
    await features.apply(an_entity(), a_view())
    etag = (await features.view()).etag
    answers = await asyncio.gather(
        *(features.apply(a_view(description=text, etag=etag)) for text in ("first", "second")), return_exceptions=True
    )
    failed = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert [error.code() for error in failed] == [grpc.StatusCode.ABORTED]


async def test_a_repeated_apply_is_answered_as_before(features: Features) -> None:
    request_id = new_id()
    first = await features.apply(an_entity(), a_view(), request_id=request_id)
    await features.apply(a_view(description="another"))
    assert await features.apply(an_entity(), a_view(), request_id=request_id) == first
    assert (await features.view()).description == "another"
    with refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await features.apply(an_entity(), request_id=request_id)


BREAKS: dict[str, Callable[[FeatureView], object]] = {
    "type": lambda view: setattr(view.features[0], "type", FEATURE_TYPE_INT64),
    "list": lambda view: setattr(view.features[0], "is_list", True),
    "missing": lambda view: view.features.pop(0),
    "nullable": lambda view: setattr(view.features[0], "nullable", True),
    "max_age": lambda view: view.features[0].max_age.CopyFrom(hours(23)),
    "computed otherwise": lambda view: view.aggregate_source.CopyFrom(
        AggregateSource(
            fields=[EventField(name="delay", type=FEATURE_TYPE_DOUBLE)],
            aggregates=[
                Aggregate(feature="delay_mean", function=AGGREGATE_FUNCTION_MEAN, field="delay", window=hours(1)),
                Aggregate(feature="flight_count", function=AGGREGATE_FUNCTION_COUNT, window=hours(1)),
            ],
        )
    ),
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_change_that_breaks_a_version_is_refused_with_its_name(
    features: Features, registry: FakeBindings, how: str
) -> None:
    await features.apply(an_entity(), a_view())
    before = await features.view()
    broken = changed(BREAKS[how])
    shown = await features.apply(broken, validate_only=True)
    assert kinds(shown) == {"featureViews/carrier_delays": "broken"}
    assert VERSION in shown.changes[0].blocking_versions
    with refused(*IN_USE) as seen:
        await features.apply(broken, an_entity("plane"))
    assert VERSION in seen[0].message
    assert VERSION in seen[0].metadata["model_versions"]
    assert VERSION in seen[0].violations["featureViews/carrier_delays"]
    assert await features.view() == before
    assert await features.names() == ["entities/carrier", "featureViews/carrier_delays"], "all or nothing"


async def test_a_change_that_hurts_nobody_who_reckoned_with_it_is_made(
    features: Features, registry: FakeBindings
) -> None:
    await features.apply(an_entity(), a_view(), a_view("unused"))
    shorter = changed(lambda view: view.features[0].max_age.CopyFrom(hours(24)))
    shorter.features[1].nullable = True
    answer = await features.apply(shorter, a_view("unused"))
    assert kinds(answer) == {"featureViews/carrier_delays": "broken", "featureViews/unused": "unchanged"}
    unused = a_view("unused")
    unused.features.pop()
    assert kinds(await features.apply(unused)) == {"featureViews/unused": "broken"}


async def test_what_is_left_out_goes_only_when_nobody_needs_it(features: Features, registry: FakeBindings) -> None:
    await features.apply(an_entity(), an_entity("plane"), a_view(), a_view("unused"))
    with refused(*IN_USE) as seen:
        await features.apply(an_entity(), a_view("unused"), delete_missing=True)
    assert VERSION in seen[0].message
    answer = await features.apply(an_entity(), a_view(), delete_missing=True)
    assert kinds(answer)["featureViews/unused"] == kinds(answer)["entities/plane"] == "deleted"
    assert await features.names() == ["entities/carrier", "featureViews/carrier_delays"]
    with refused(INVALID, "INVALID_DEFINITION") as seen:
        await features.apply(a_view(), delete_missing=True)
    assert set(seen[0].violations) == {"feature_views[0].entities[0]"}


async def test_without_the_registry_nothing_that_may_break_is_changed(
    features: Features, registry_address: str
) -> None:
    await features.apply(an_entity(), a_view())
    before = await features.view()
    broken = changed(BREAKS["type"])
    for fields in ({"validate_only": True}, {}):
        with refused(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE") as seen:
            await features.apply(broken, **fields)
        assert seen[0].metadata["service"] == "registry"
    assert await features.view() == before
    await features.apply(changed(lambda view: setattr(view, "description", "harmless")))
    async with serve_bindings(FakeBindings(), registry_address), asyncio.timeout(10):
        while (await features.view()).features[0].type != FEATURE_TYPE_INT64:
            # The channel tries again a moment after it has failed.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await features.apply(broken)


async def test_a_signature_is_compared_with_what_an_apply_under_way_leaves(
    features: Features, registry: FakeBindings
) -> None:
    await features.apply(an_entity(), a_view())
    registry.bindings.clear()
    registry.may_answer.clear()
    applying = asyncio.ensure_future(features.apply(changed(BREAKS["missing"])))
    await registry.asked.wait()
    checking = asyncio.ensure_future(check(features))
    done, _ = await asyncio.wait([checking], timeout=0.1)
    assert not done, "nobody deploys what is about to break"
    registry.may_answer.set()
    await applying
    assert [each.feature for each in (await checking).violations] == ["mean"]


async def check(features: Features, *specs: FeatureSpec) -> pb.CheckSignatureResponse:
    wanted = specs or (fetched(),)
    return await features.views.CheckSignature(pb.CheckSignatureRequest(signature=Signature(features=wanted)))


def fetched(**fields: Any) -> FeatureSpec:
    values = {"name": "mean", "source": "carrier_delays.delay_mean", "type": FEATURE_TYPE_DOUBLE, **fields}
    return FeatureSpec(**values)


@pytest.mark.rpc(f"{SERVICE}/CheckSignature", "happy")
async def test_a_signature_that_fits_gets_the_digests_of_its_views(features: Features) -> None:
    await features.apply(an_entity(), a_view(), a_view("unused"))
    count = fetched(name="count", source="carrier_delays.flight_count", max_age=hours(10_000))
    answer = await check(features, fetched(max_age=hours(36)), count, FeatureSpec(name="x", type=FEATURE_TYPE_STRING))
    assert not answer.violations
    assert dict(answer.view_digests) == {"carrier_delays": (await features.view()).digest}


MISFITS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str]] = {
    "type": ({"type": FEATURE_TYPE_STRING}, grpc.StatusCode.FAILED_PRECONDITION, "want STRING, got DOUBLE"),
    "whole": ({"type": FEATURE_TYPE_INT64}, grpc.StatusCode.FAILED_PRECONDITION, "want INT64, got DOUBLE"),
    "max age": ({"max_age": hours(37)}, grpc.StatusCode.FAILED_PRECONDITION, "age of 37h, got ones that are stale"),
    "nullability": ({"source": "carrier_delays.late"}, grpc.StatusCode.FAILED_PRECONDITION, "never null"),
    "list": ({"source": "carrier_delays.last"}, grpc.StatusCode.FAILED_PRECONDITION, "got a list of DOUBLE"),
    "feature": ({"source": "carrier_delays.nothing"}, grpc.StatusCode.NOT_FOUND, 'a feature called "nothing"'),
    "view": ({"source": "nothing.delay_mean"}, grpc.StatusCode.NOT_FOUND, 'a feature view called "nothing"'),
    "input": ({"source": "speed.kmh"}, grpc.StatusCode.FAILED_PRECONDITION, 'its input "miles" among'),
}


@pytest.mark.parametrize("what", MISFITS)
async def test_each_way_in_which_a_signature_does_not_fit_is_found(features: Features, what: str) -> None:
    view = changed(lambda view: view.features.add(name="late", type=FEATURE_TYPE_DOUBLE, nullable=True))
    view.features.add(name="last", type=FEATURE_TYPE_DOUBLE, is_list=True)
    inputs = [EventField(name=name, type=FEATURE_TYPE_DOUBLE) for name in ("miles", "hours")]
    speed = a_view(
        "speed",
        entities=[],
        features=[Feature(name="kmh", type=FEATURE_TYPE_DOUBLE)],
        on_demand_source=OnDemandSource(inputs=inputs, expressions={"kmh": "miles * 1.609344 / hours"}),
    )
    await features.apply(an_entity(), view, speed)
    fields, code, text = MISFITS[what]
    answer = await check(features, fetched(**fields), FeatureSpec(name="hours", type=FEATURE_TYPE_INT64))
    assert [(each.feature, each.error.code) for each in answer.violations] == [("mean", code.value[0])]
    assert text in answer.violations[0].error.message


@pytest.mark.rpc(f"{SERVICE}/CheckSignature", "error")
async def test_a_signature_without_types_is_refused(features: Features) -> None:
    with refused(INVALID, "INVALID_FIELD") as seen:
        await check(features, fetched(type=0))
    assert set(seen[0].violations) == {"signature.features[0].type"}


@pytest.mark.rpc(f"{SERVICE}/ListFeatureViews", "happy")
@pytest.mark.rpc(f"{SERVICE}/ListEntities", "happy")
async def test_definitions_are_listed_by_name_in_pages(features: Features) -> None:
    plane = a_view("tail", entities=["entities/plane"])
    await features.apply(an_entity("plane"), an_entity(), plane, a_view(), a_view("a"))

    async def views(**fields: Any) -> pb.ListFeatureViewsResponse:
        return await features.views.ListFeatureViews(pb.ListFeatureViewsRequest(**fields))

    first = await views(page_size=2)
    rest = await views(page_size=2, page_token=first.next_page_token)
    found = [each.name.partition("/")[2] for each in (*first.feature_views, *rest.feature_views)]
    assert (found, rest.next_page_token) == (["a", "carrier_delays", "tail"], "")
    assert [each.name for each in (await views(entity="entities/plane")).feature_views] == ["featureViews/tail"]
    entities = await features.views.ListEntities(pb.ListEntitiesRequest(page_size=1))
    assert [each.name for each in entities.entities] == ["entities/carrier"]
    assert entities.next_page_token


@pytest.mark.rpc(f"{SERVICE}/ListFeatureViews", "error")
@pytest.mark.rpc(f"{SERVICE}/ListEntities", "error")
@pytest.mark.rpc(f"{SERVICE}/GetFeatureView", "error")
@pytest.mark.rpc(f"{SERVICE}/GetEntity", "error")
async def test_wrong_questions_are_refused(features: Features) -> None:
    await features.apply(an_entity(), an_entity("plane"))
    token = (await features.views.ListEntities(pb.ListEntitiesRequest(page_size=1))).next_page_token
    with refused(INVALID, "INVALID_PAGE_TOKEN"):
        await features.views.ListFeatureViews(pb.ListFeatureViewsRequest(page_token=token))
    with refused(INVALID, "INVALID_FIELD"):
        await features.views.ListEntities(pb.ListEntitiesRequest(page_size=-1))
    with refused(INVALID, "INVALID_NAME"):
        await features.view("../x")
    for ask in (
        features.view("none"),
        features.views.GetEntity(pb.GetEntityRequest(name="entities/none")),
    ):
        with refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"):
            await ask


async def test_definitions_outlive_the_process_and_reach_other_ones(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    async with running_features(tmp_path / "a", features_database_url=url) as first:
        await first.apply(an_entity())
    async with (
        running_features(tmp_path / "a", features_database_url=url) as first,
        running_features(tmp_path / "b", features_database_url=url) as second,
    ):
        assert await second.names() == ["entities/carrier"]
        await first.apply(a_view())
        assert await second.names() == ["entities/carrier", "featureViews/carrier_delays"]
        assert not (await check(second)).violations
