"""Definitions: entities and feature views, as plain values; `definition_check` says what is sound.

Everything is referred to by its id: `carrier`, not `entities/carrier`. Times are UTC.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

DEFAULT_ALLOWED_LATENESS: Final = timedelta(hours=1)
NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)

Scalar = float | int | str | bool
Value = Scalar | tuple[Scalar, ...] | None
"""A feature's value as Python has it: float, int, str, bool, a tuple of one of them, None for null."""


class FeatureType(Enum):
    """Type of a feature's values, or of the elements of its lists."""

    DOUBLE = "DOUBLE"
    INT64 = "INT64"
    STRING = "STRING"
    BOOL = "BOOL"


class AggregateFunction(Enum):
    """What an aggregate computes from the events in its window."""

    COUNT = "COUNT"
    SUM = "SUM"
    MEAN = "MEAN"
    MINIMUM = "MINIMUM"
    MAXIMUM = "MAXIMUM"
    LAST_N = "LAST_N"


class FileFormat(Enum):
    """Format of the files of a batch source."""

    PARQUET = "PARQUET"
    CSV = "CSV"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A kind of thing that features describe. `key_type` is STRING or INT64; None: an illegal one was given."""

    id: str
    key_type: FeatureType | None
    description: str = ""
    owner: str = ""
    create_time: datetime = NEVER
    update_time: datetime = NEVER
    etag: str = ""

    @property
    def name(self) -> str:
        """Name of the resource; an illegal one of an illegal id."""
        return f"entities/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature of a view; `default` is the value of an entity that has none, `max_age` None: as the view says."""

    name: str
    type: FeatureType | None
    is_list: bool = False
    nullable: bool = False
    default: Value = None
    max_age: timedelta | None = None
    description: str = ""
    owner: str = ""
    illegal_default: bool = False
    """A default was given that is no value at all."""


@dataclass(frozen=True, slots=True)
class EventField:
    """One value of an event that is aggregated, or of a request that features are computed from."""

    name: str
    type: FeatureType | None


@dataclass(frozen=True, slots=True)
class PushSource:
    """Clients push values."""


@dataclass(frozen=True, slots=True)
class FileLocation:
    """Files: a URI of the scheme file, s3 or gs, maybe with glob patterns."""

    uri: str
    format: FileFormat | None


@dataclass(frozen=True, slots=True)
class SqlLocation:
    """A table or SELECT of a database; `connection` is a name in the service's settings."""

    connection: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource:
    """Files or a table hold values, which a materialization job brings in.

    Columns are by entity id and by feature name; one that is not named has the name of what it holds. An empty
    `known_at_column` means: known when it is materialized. An empty `time_zone` means: every time stamp carries one.
    """

    location: FileLocation | SqlLocation | None
    event_time_column: str
    entity_columns: Mapping[str, str] = field(default_factory=dict)
    feature_columns: Mapping[str, str] = field(default_factory=dict)
    known_at_column: str = ""
    time_zone: str = ""

    def entity_column(self, entity: str) -> str:
        """Return the column that holds the keys of an entity."""
        return self.entity_columns.get(entity) or entity

    def feature_column(self, feature: str) -> str:
        """Return the column that holds the values of a feature."""
        return self.feature_columns.get(feature) or feature


@dataclass(frozen=True, slots=True)
class OnDemandSource:
    """Features are computed from the values of the request, by an expression each."""

    inputs: tuple[EventField, ...]
    expressions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """How one feature is computed from events with event time in (now - window, now]; `field` is empty for COUNT."""

    feature: str
    function: AggregateFunction | None
    field: str = ""
    window: timedelta = timedelta()
    last_count: int = 0


@dataclass(frozen=True, slots=True)
class AggregateSource:
    """Features are aggregated from pushed events."""

    fields: tuple[EventField, ...]
    aggregates: tuple[Aggregate, ...]


Source = PushSource | BatchSource | OnDemandSource | AggregateSource


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """Features that share entities, a source and a clock. `source` None: none was given.

    `create_time` tells a view from an earlier one of the same id: no two have the same.
    """

    id: str
    entities: tuple[str, ...]
    features: tuple[Feature, ...]
    source: Source | None
    max_age: timedelta | None = None
    retention: timedelta | None = None
    allowed_lateness: timedelta = DEFAULT_ALLOWED_LATENESS
    description: str = ""
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime = NEVER
    update_time: datetime = NEVER
    etag: str = ""

    @property
    def name(self) -> str:
        """Name of the resource; an illegal one of an illegal id."""
        return f"featureViews/{self.id}"

    @property
    def pushable(self) -> bool:
        """Whether clients push rows or events into it."""
        return isinstance(self.source, PushSource | AggregateSource)

    def max_age_of(self, feature: Feature) -> timedelta | None:
        """Return how old a value of a feature may be before it is stale; None: any age."""
        return self.max_age if feature.max_age is None else feature.max_age

    def digest(self) -> str:
        """Return SHA-256 over what decides values and how good they are: entities, features and source.

        Texts for people (descriptions, owners, labels) and retention do not count.
        """
        decisive = {
            "entities": self.entities,
            "features": [
                (f.name, f.type, f.is_list, f.nullable, f.default, self.max_age_of(f))
                for f in sorted(self.features, key=lambda each: each.name)
            ],
            "source": source_document(self.source),
            "allowed_lateness": self.allowed_lateness if isinstance(self.source, AggregateSource) else None,
        }
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


Definition = Entity | FeatureView


def source_document(source: Source | None) -> dict[str, Any]:
    """Return a source as plain values, under its kind."""
    match source:
        case None:
            return {}
        case PushSource():
            return {"push": {}}
        case BatchSource(location=location):
            where = {} if location is None else {type(location).__name__: _fields(location)}
            return {"batch": {**_fields(source), "location": where}}
        case OnDemandSource():
            return {"on_demand": {"inputs": list(map(_fields, source.inputs)), "expressions": dict(source.expressions)}}
        case AggregateSource():
            aggregates = sorted(map(_fields, source.aggregates), key=lambda each: str(each["feature"]))
            return {"aggregate": {"fields": list(map(_fields, source.fields)), "aggregates": aggregates}}


def _fields(value: Any) -> dict[str, Any]:
    found = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: dict(each) if isinstance(each, Mapping) else each for name, each in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, timedelta):
        return value // timedelta(microseconds=1)
    raise TypeError(f"{type(value).__name__} has no canonical form")
