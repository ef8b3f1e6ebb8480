"""Definitions to and from the contract's messages; the same messages are how the database keeps them."""

from collections.abc import Iterable
from typing import Any, Final, cast

from interlock.features.v1 import entity_pb2, feature_view_pb2
from interlock.types.v1 import signature_pb2

from services.common import names
from services.common.stamp import (
    duration_from_proto,
    duration_to_proto,
    enum_from_proto,
    enum_to_proto,
    time_from_proto,
    time_to_proto,
)
from services.features.convert.value import ILLEGAL, value_from_proto, value_to_proto
from services.features.domain.definitions import (
    DEFAULT_ALLOWED_LATENESS,
    NEVER,
    Aggregate,
    AggregateFunction,
    AggregateSource,
    BatchSource,
    Definition,
    Entity,
    EventField,
    Feature,
    FeatureType,
    FeatureView,
    FileFormat,
    FileLocation,
    OnDemandSource,
    PushSource,
    Source,
    SqlLocation,
)

_ENTITY: Final = names.ENTITY.pattern.partition("{")[0]
_VIEW: Final = names.FEATURE_VIEW.pattern.partition("{")[0]


def entity_from_proto(message: entity_pb2.Entity) -> Entity:
    """Return the entity as it was given, sound or not; an id of a malformed name is the whole name."""
    return Entity(
        id=message.name.removeprefix(_ENTITY),
        key_type=type_from_proto(message.key_type),
        description=message.description,
        owner=message.owner,
        create_time=time_from_proto(message.create_time) if message.HasField("create_time") else NEVER,
        update_time=time_from_proto(message.update_time) if message.HasField("update_time") else NEVER,
        etag=message.etag,
    )


def entity_to_proto(entity: Entity) -> entity_pb2.Entity:
    """Return the contract's entity."""
    return entity_pb2.Entity(
        name=entity.name,
        key_type=_type_to_proto(entity.key_type),
        description=entity.description,
        owner=entity.owner,
        create_time=time_to_proto(entity.create_time),
        update_time=time_to_proto(entity.update_time),
        etag=entity.etag,
    )


def view_from_proto(message: feature_view_pb2.FeatureView) -> FeatureView:
    """Return the view as it was given, sound or not; ids of malformed names are the whole names."""
    lateness = message.allowed_lateness
    return FeatureView(
        id=message.name.removeprefix(_VIEW),
        entities=tuple(entity.removeprefix(_ENTITY) for entity in message.entities),
        features=tuple(_feature_from_proto(feature) for feature in message.features),
        source=_source_from_proto(message),
        max_age=duration_from_proto(message.max_age) if message.HasField("max_age") else None,
        retention=duration_from_proto(message.retention) if message.HasField("retention") else None,
        allowed_lateness=(
            duration_from_proto(lateness) if message.HasField("allowed_lateness") else DEFAULT_ALLOWED_LATENESS
        ),
        description=message.description,
        owner=message.owner,
        labels=dict(message.labels),
        create_time=time_from_proto(message.create_time) if message.HasField("create_time") else NEVER,
        update_time=time_from_proto(message.update_time) if message.HasField("update_time") else NEVER,
        etag=message.etag,
    )


def view_to_proto(view: FeatureView) -> feature_view_pb2.FeatureView:
    """Return the contract's view."""
    message = feature_view_pb2.FeatureView(
        name=view.name,
        entities=[names.ENTITY.format(entity) for entity in view.entities],
        features=map(_feature_to_proto, view.features),
        max_age=None if view.max_age is None else duration_to_proto(view.max_age),
        retention=None if view.retention is None else duration_to_proto(view.retention),
        allowed_lateness=duration_to_proto(view.allowed_lateness),
        description=view.description,
        owner=view.owner,
        labels=view.labels,
        digest=view.digest(),
        create_time=time_to_proto(view.create_time),
        update_time=time_to_proto(view.update_time),
        etag=view.etag,
    )
    _put_source(message, view.source)
    return message


def definition_to_bytes(definition: Definition) -> bytes:
    """Return how the database keeps a definition: the contract's message, so that old rows stay readable."""
    message = entity_to_proto(definition) if isinstance(definition, Entity) else view_to_proto(definition)
    return message.SerializeToString(deterministic=True)


def definition_from_bytes(name: str, body: bytes) -> Definition:
    """Return the definition that `definition_to_bytes` gave, by its resource name."""
    if name.startswith(_ENTITY):
        return entity_from_proto(entity_pb2.Entity.FromString(body))
    return view_from_proto(feature_view_pb2.FeatureView.FromString(body))


def type_from_proto(number: int) -> FeatureType | None:
    """Return a type, None when it is not given or not known."""
    return enum_from_proto(FeatureType, signature_pb2.FeatureType, "FEATURE_TYPE_", number)


def _type_to_proto(type_: FeatureType | None) -> "signature_pb2.FeatureType.ValueType":
    number = 0 if type_ is None else enum_to_proto(type_, signature_pb2.FeatureType, "FEATURE_TYPE_")
    return cast("signature_pb2.FeatureType.ValueType", number)


def _feature_from_proto(message: feature_view_pb2.Feature) -> Feature:
    default = value_from_proto(message.default_value) if message.HasField("default_value") else None
    return Feature(
        name=message.name,
        type=type_from_proto(message.type),
        is_list=message.is_list,
        nullable=message.nullable,
        default=None if default is ILLEGAL else default,
        illegal_default=default is ILLEGAL,
        max_age=duration_from_proto(message.max_age) if message.HasField("max_age") else None,
        description=message.description,
        owner=message.owner,
    )


def _feature_to_proto(feature: Feature) -> feature_view_pb2.Feature:
    return feature_view_pb2.Feature(
        name=feature.name,
        type=_type_to_proto(feature.type),
        is_list=feature.is_list,
        nullable=feature.nullable,
        default_value=None if feature.default is None else value_to_proto(feature.default),
        max_age=None if feature.max_age is None else duration_to_proto(feature.max_age),
        description=feature.description,
        owner=feature.owner,
    )


def _source_from_proto(message: feature_view_pb2.FeatureView) -> Source | None:
    match message.WhichOneof("source"):
        case "push_source":
            return PushSource()
        case "batch_source":
            return batch_from_proto(message.batch_source)
        case "on_demand_source":
            on_demand = message.on_demand_source
            return OnDemandSource(_fields_from_proto(on_demand.inputs), dict(on_demand.expressions))
        case "aggregate_source":
            source = message.aggregate_source
            return AggregateSource(
                _fields_from_proto(source.fields), tuple(_aggregate_from_proto(each) for each in source.aggregates)
            )
    return None


def batch_from_proto(message: feature_view_pb2.BatchSource) -> BatchSource:
    """Return a batch source as it was given, sound or not."""
    location: FileLocation | SqlLocation | None = None
    if message.WhichOneof("location") == "files":
        form = enum_from_proto(FileFormat, feature_view_pb2.FileFormat, "FILE_FORMAT_", message.files.format)
        location = FileLocation(message.files.uri, form)
    elif message.WhichOneof("location") == "sql":
        location = SqlLocation(message.sql.connection, message.sql.query)
    return BatchSource(
        location=location,
        event_time_column=message.event_time_column,
        entity_columns=dict(message.entity_columns),
        feature_columns=dict(message.feature_columns),
        known_at_column=message.known_at_column,
        time_zone=message.time_zone,
    )


def _fields_from_proto(messages: Iterable[feature_view_pb2.EventField]) -> tuple[EventField, ...]:
    return tuple(EventField(each.name, type_from_proto(each.type)) for each in messages)


def _aggregate_from_proto(message: feature_view_pb2.Aggregate) -> Aggregate:
    function = enum_from_proto(
        AggregateFunction, feature_view_pb2.AggregateFunction, "AGGREGATE_FUNCTION_", message.function
    )
    return Aggregate(
        feature=message.feature,
        function=function,
        field=message.field,
        window=duration_from_proto(message.window),
        last_count=message.last_count,
    )


def _put_source(message: feature_view_pb2.FeatureView, source: Source | None) -> None:
    match source:
        case PushSource():
            message.push_source.SetInParent()
        case BatchSource():
            message.batch_source.CopyFrom(batch_to_proto(source))
        case OnDemandSource():
            message.on_demand_source.inputs.extend(_fields_to_proto(source.inputs))
            message.on_demand_source.expressions.update(source.expressions)
        case AggregateSource():
            message.aggregate_source.fields.extend(_fields_to_proto(source.fields))
            message.aggregate_source.aggregates.extend(map(_aggregate_to_proto, source.aggregates))


def batch_to_proto(source: BatchSource) -> feature_view_pb2.BatchSource:
    """Return the contract's batch source."""
    message = feature_view_pb2.BatchSource(
        entity_columns=source.entity_columns,
        feature_columns=source.feature_columns,
        event_time_column=source.event_time_column,
        known_at_column=source.known_at_column,
        time_zone=source.time_zone,
    )
    if isinstance(source.location, FileLocation):
        message.files.uri = source.location.uri
        message.files.format = _number(source.location.format, feature_view_pb2.FileFormat, "FILE_FORMAT_")
    elif isinstance(source.location, SqlLocation):
        message.sql.connection = source.location.connection
        message.sql.query = source.location.query
    return message


def _fields_to_proto(fields: Iterable[EventField]) -> list[feature_view_pb2.EventField]:
    return [feature_view_pb2.EventField(name=each.name, type=_type_to_proto(each.type)) for each in fields]


def _aggregate_to_proto(aggregate: Aggregate) -> feature_view_pb2.Aggregate:
    return feature_view_pb2.Aggregate(
        feature=aggregate.feature,
        function=_number(aggregate.function, feature_view_pb2.AggregateFunction, "AGGREGATE_FUNCTION_"),
        field=aggregate.field,
        window=duration_to_proto(aggregate.window),
        last_count=aggregate.last_count,
    )


def _number(value: AggregateFunction | FileFormat | None, contract: Any, prefix: str) -> Any:
    return 0 if value is None else enum_to_proto(value, contract, prefix)
