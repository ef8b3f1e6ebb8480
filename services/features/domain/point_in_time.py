"""What a point-in-time join is: which columns of which views are joined to rows, and by which clocks.

The value of a feature for a row with time T is the one with the greatest (event time, known-at time) among those of its
entity with event time <= T and known-at time <= T in which that feature was set. Times are microseconds since 1970 UTC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from services.features.domain.catalog import ANY_AGE_US, CompiledFeature, CompiledView, Snapshot
from services.features.domain.definitions import (
    Aggregate,
    AggregateSource,
    BatchSource,
    EventField,
    FeatureType,
    OnDemandSource,
)


class Clock(Enum):
    """Which clocks a join obeys; EVENT_TIME leaks what became known late."""

    BOTH = "BOTH"
    EVENT_TIME = "EVENT_TIME"


@dataclass(frozen=True)
class PlannedKey:
    """One entity of a view: type of its key, and the column of the rows that holds it."""

    entity: str
    type: FeatureType
    column: str


@dataclass(frozen=True)
class PlannedFeature:
    """One feature to join; `output` is its column in the result, `max_age_us` None where any age is young enough."""

    name: str
    type: FeatureType
    output: str
    is_list: bool = False
    nullable: bool = True
    max_age_us: int | None = None


@dataclass(frozen=True)
class HistoryFiles:
    """Where the history of a view lies: Parquet parts, and an Arrow file with what is not rolled into parts yet."""

    parts: tuple[str, ...] = ()
    tail: str = ""


@dataclass(frozen=True)
class ValueView:
    """A view whose values are pushed (their history), or lie in a batch source."""

    view: str
    keys: tuple[PlannedKey, ...]
    features: tuple[PlannedFeature, ...]
    source: BatchSource | None = None


@dataclass(frozen=True)
class AggregateView:
    """A view that aggregates pushed events; an event known later than the lateness does not count."""

    view: str
    keys: tuple[PlannedKey, ...]
    features: tuple[PlannedFeature, ...]
    fields: tuple[EventField, ...]
    aggregates: tuple[Aggregate, ...]
    allowed_lateness_us: int


@dataclass(frozen=True)
class OnDemandView:
    """A view that is computed from the row's own columns, by one expression for each feature."""

    view: str
    features: tuple[PlannedFeature, ...]
    inputs: tuple[EventField, ...]
    expressions: tuple[str, ...]


PlannedView = ValueView | AggregateView | OnDemandView


@dataclass(frozen=True)
class JoinPlan:
    """What is joined to rows whose time stands in `time_column`."""

    time_column: str
    views: tuple[PlannedView, ...]
    time_zone: str = ""
    clock: Clock = Clock.BOTH
    assumed_delay_us: int = 0
    include_event_times: bool = False

    @property
    def keys(self) -> tuple[PlannedKey, ...]:
        """The entities of all views, each once."""
        found = {key.entity: key for view in self.views if not isinstance(view, OnDemandView) for key in view.keys}
        return tuple(found.values())

    @property
    def history_views(self) -> tuple[str, ...]:
        """Ids of the views whose history is read."""
        return tuple(
            view.view
            for view in self.views
            if isinstance(view, AggregateView) or (isinstance(view, ValueView) and view.source is None)
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Columns of the features, in the order asked."""
        return tuple(feature.output for view in self.views for feature in view.features)


def output_column(view: str, feature: str) -> str:
    """Return the column of a feature: "<view>.<feature>" with "." written as "__"."""
    return f"{view}.{feature}".replace(".", "__")


def event_time_column(view: str) -> str:
    """Return the column with the event times of a view."""
    return output_column(view, "event_time")


def plan_views(
    snapshot: Snapshot, references: Sequence[str], entity_columns: Mapping[str, str]
) -> tuple[PlannedView, ...]:
    """Return what has to be joined for the features asked, each once; ResourceNotFound names one that is unknown."""
    wanted: dict[str, dict[str, CompiledFeature]] = {}
    for feature in snapshot.expand(references):
        wanted.setdefault(feature.view, {})[feature.spec.name] = feature
    return tuple(
        _plan_view(snapshot.view(view), tuple(features.values()), entity_columns) for view, features in wanted.items()
    )


def _plan_view(
    view: CompiledView, features: Sequence[CompiledFeature], entity_columns: Mapping[str, str]
) -> PlannedView:
    keys = tuple(
        PlannedKey(entity.id, entity.key_type or FeatureType.STRING, entity_columns.get(entity.id) or entity.id)
        for entity in view.entities
    )
    planned = tuple(_plan_feature(feature, view.retention_us) for feature in features)
    source = view.definition.source
    if isinstance(source, OnDemandSource):
        expressions = tuple(source.expressions[feature.name] for feature in planned)
        return OnDemandView(view.id, planned, source.inputs, expressions)
    if isinstance(source, AggregateSource):
        by_feature = {aggregate.feature: aggregate for aggregate in source.aggregates}
        aggregates = tuple(by_feature[feature.name] for feature in planned)
        used = {aggregate.field for aggregate in aggregates}
        fields = tuple(field for field in source.fields if field.name in used)
        return AggregateView(view.id, keys, planned, fields, aggregates, view.allowed_lateness_us)
    return ValueView(view.id, keys, planned, source if isinstance(source, BatchSource) else None)


def _plan_feature(feature: CompiledFeature, retention_us: int | None) -> PlannedFeature:
    spec = feature.spec
    # What the online store no longer holds no model gets to see.
    limits = [each for each in (feature.max_age_us, retention_us) if each is not None and each != ANY_AGE_US]
    return PlannedFeature(
        name=spec.name,
        type=spec.type or FeatureType.DOUBLE,
        output=output_column(feature.view, spec.name),
        is_list=spec.is_list,
        nullable=spec.nullable,
        max_age_us=min(limits, default=None),
    )
