"""Definitions as values: what their digests depend on, how they are kept, and what reads find."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.common.refusals import ResourceNotFound
from services.features.convert.definition import definition_from_bytes, definition_to_bytes
from services.features.domain.catalog import ANY_AGE_US, Catalog, compile_snapshot
from services.features.domain.definitions import (
    Aggregate,
    AggregateFunction,
    AggregateSource,
    BatchSource,
    Entity,
    EventField,
    Feature,
    FeatureType,
    FeatureView,
    FileFormat,
    FileLocation,
    OnDemandSource,
    PushSource,
    SqlLocation,
)

HOUR = timedelta(hours=1)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
FIELD = EventField("delay", FeatureType.DOUBLE)
SOURCES = {
    "push": PushSource(),
    "files": BatchSource(
        location=FileLocation("s3://lake/*.parquet", FileFormat.PARQUET),
        event_time_column="t",
        known_at_column="k",
        time_zone="UTC",
        entity_columns={"carrier": "c"},
        feature_columns={"mean": "m"},
    ),
    "sql": BatchSource(location=SqlLocation("warehouse", "SELECT 1"), event_time_column="t"),
    "on demand": OnDemandSource((FIELD,), {"mean": "delay + 1"}),
    "events": AggregateSource(
        (FIELD,),
        (
            Aggregate(feature="mean", function=AggregateFunction.MEAN, field="delay", window=HOUR),
            Aggregate(feature="last", function=AggregateFunction.LAST_N, field="delay", window=HOUR, last_count=3),
        ),
    ),
}


def view(**fields: Any) -> FeatureView:
    mean = Feature(name="mean", type=FeatureType.DOUBLE, default=0.5, max_age=HOUR, nullable=True, description="x")
    last = Feature(name="last", type=FeatureType.STRING, is_list=True, default=("a", "b"))
    values: dict[str, Any] = {
        "id": "carrier.delays",
        "entities": ("carrier",),
        "features": (mean, last),
        "source": PushSource(),
        "max_age": 2 * HOUR,
        "retention": 3 * HOUR,
        "labels": {"team": "ops"},
        "create_time": NOW,
        "update_time": NOW,
        "etag": "1f",
        **fields,
    }
    return FeatureView(**values)


@pytest.mark.parametrize("source", SOURCES)
def test_a_definition_is_kept_as_it_was(source: str) -> None:
    for each in (view(source=SOURCES[source]), Entity(id="carrier", key_type=FeatureType.INT64, create_time=NOW)):
        assert definition_from_bytes(each.name, definition_to_bytes(each)) == each


def test_a_digest_is_that_of_what_decides_values() -> None:
    digest = view().digest()
    mean, last = view().features
    for same in (
        view(description="other", owner="o", labels={}, retention=None, etag="2", update_time=NOW + HOUR),
        view(features=(last, mean)),
        view(features=(replace(mean, description="y", owner="z"), last)),
        view(features=(mean, replace(last, max_age=2 * HOUR))),
        view(allowed_lateness=5 * HOUR),
    ):
        assert same.digest() == digest
    mutations: dict[str, Any] = {
        "name": "other",
        "type": FeatureType.INT64,
        "is_list": True,
        "nullable": False,
        "default": 1.5,
        "max_age": 2 * HOUR,
    }
    others = [
        view(id="another", entities=("plane",)),
        view(max_age=None),
        view(features=(mean,)),
        *(view(source=source) for name, source in SOURCES.items() if name != "push"),
        view(source=SOURCES["events"], allowed_lateness=5 * HOUR),
        *(view(features=(replace(mean, **{field: value}), last)) for field, value in mutations.items()),
    ]
    digests = {digest, *(other.digest() for other in others)}
    assert len(digests) == len(others) + 1


def test_reads_find_features_by_reference() -> None:
    snapshot = compile_snapshot(1, [Entity(id="carrier", key_type=FeatureType.STRING)], [view(max_age=None)])
    compiled = snapshot.view("carrier.delays")
    assert [entity.id for entity in compiled.entities] == ["carrier"]
    found = snapshot.expand(["carrier.delays.last", "carrier.delays.*"])
    assert [(each.reference, each.index, each.max_age_us) for each in found] == [
        ("carrier.delays.last", 1, ANY_AGE_US),
        ("carrier.delays.mean", 0, 3_600_000_000),
        ("carrier.delays.last", 1, ANY_AGE_US),
    ]
    for unknown in ("carrier.delays", "carrier.delays.none", "none.mean", "mean", ""):
        with pytest.raises(ResourceNotFound):
            snapshot.expand([unknown])


def test_a_view_is_told_from_an_earlier_one_of_its_name() -> None:
    entities = [Entity(id="carrier", key_type=FeatureType.STRING)]
    generations = [
        compile_snapshot(1, entities, [view(create_time=time)]).view("carrier.delays").generation
        for time in (NOW, NOW + timedelta(microseconds=1))
    ]
    assert generations[1] - generations[0] == 1


def test_the_catalog_never_goes_back() -> None:
    catalog = Catalog()
    newer, older = compile_snapshot(2, [], []), compile_snapshot(1, [], [])
    catalog.replace(newer)
    catalog.replace(older)
    assert catalog.current is newer
