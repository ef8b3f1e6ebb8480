"""What happens to definitions when others take their place: field by field, and whether a reader must care."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from services.common.duration_text import format_duration
from services.features.domain.definitions import (
    AggregateSource,
    BatchSource,
    Definition,
    Entity,
    EventField,
    Feature,
    FeatureView,
    FileLocation,
    OnDemandSource,
    Source,
)

ABSENT: Final = ""
_PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+-]+)*", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_YAML_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


class ChangeKind(Enum):
    """What happens to a definition."""

    UNCHANGED = "UNCHANGED"
    CREATED = "CREATED"
    UPDATED = "UPDATED"
    BROKEN = "BROKEN"
    DELETED = "DELETED"


class Break(Enum):
    """Why a reader of a feature must care about a change."""

    GONE = "it goes"
    TYPE = "its type changes"
    NULLABLE = "it may become null"
    MAX_AGE = "it is stale sooner"
    MEANING = "it is computed otherwise"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """The difference of one field, both sides as YAML; an empty side is not there."""

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one definition, by its resource name.

    `broken_features` says why readers of a feature must care; `blocking_versions` are those that it would hurt.
    """

    resource: str
    kind: ChangeKind
    fields: tuple[FieldChange, ...] = ()
    broken_features: Mapping[str, frozenset[Break]] = field(default_factory=dict)
    blocking_versions: tuple[str, ...] = ()


def diff(before: Definition | None, after: Definition | None) -> Change:
    """Return what happens when `after` takes the place of `before`; one of them may be nothing."""
    known = before or after
    if known is None:
        raise ValueError("want a definition before or after, got neither")
    fields = tuple(_field_changes(_flat(before), _flat(after))) or tuple(_order_changes(before, after))
    if before is None:
        return Change(known.name, ChangeKind.CREATED, fields)
    if after is None:
        return Change(known.name, ChangeKind.DELETED, fields, _all_gone(before))
    if not fields:
        return Change(known.name, ChangeKind.UNCHANGED)
    broken = _broken_features(before, after)
    return Change(known.name, ChangeKind.BROKEN if broken else ChangeKind.UPDATED, fields, broken)


def _all_gone(before: Definition) -> dict[str, frozenset[Break]]:
    gone = frozenset({Break.GONE})
    return {each.name: gone for each in before.features} if isinstance(before, FeatureView) else {}


def _broken_features(before: Definition, after: Definition) -> dict[str, frozenset[Break]]:
    if not isinstance(before, FeatureView) or not isinstance(after, FeatureView):
        return {}
    later = {each.name: each for each in after.features}
    found = {each.name: frozenset(_breaks(before, each, after, later.get(each.name))) for each in before.features}
    return {name: breaks for name, breaks in found.items() if breaks}


def _breaks(before: FeatureView, old: Feature, after: FeatureView, new: Feature | None) -> Iterator[Break]:
    if new is None:
        yield Break.GONE
        return
    if (old.type, old.is_list) != (new.type, new.is_list):
        yield Break.TYPE
    if new.nullable and not old.nullable:
        yield Break.NULLABLE
    if _is_shorter(after.max_age_of(new), before.max_age_of(old)):
        yield Break.MAX_AGE
    if _meaning(before, old.name) != _meaning(after, new.name):
        yield Break.MEANING


def _is_shorter(new: timedelta | None, old: timedelta | None) -> bool:
    return new is not None and (old is None or new < old)


def _meaning(view: FeatureView, feature: str) -> Any:
    """Return what decides a feature's values as far as a definition can; stored values mean what was stored."""
    match view.source:
        case OnDemandSource(expressions=expressions) as source:
            return expressions.get(feature), inputs_of(source, feature)
        case AggregateSource(fields=fields, aggregates=aggregates):
            types = {each.name: each.type for each in fields}
            mine = [(each, types.get(each.field)) for each in aggregates if each.feature == feature]
            return mine, view.allowed_lateness
    return None


def inputs_of(source: OnDemandSource, feature: str) -> list[EventField]:
    """Return the inputs that the expression of a feature names."""
    words = set(_WORD.findall(source.expressions.get(feature, "")))
    return [each for each in source.inputs if each.name in words]


def _field_changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[FieldChange]:
    for path in [*before, *(path for path in after if path not in before)]:
        old, new = before.get(path, ABSENT), after.get(path, ABSENT)
        if old != new:
            yield FieldChange(path, old, new)


def _order_changes(before: Definition | None, after: Definition | None) -> Iterator[FieldChange]:
    """Whoever asks for all features of a view gets them in its order."""
    if isinstance(before, FeatureView) and isinstance(after, FeatureView):
        old, new = (_yaml(tuple(each.name for each in view.features)) for view in (before, after))
        if old != new:
            yield FieldChange("features", old, new)


def _flat(definition: Definition | None) -> dict[str, str]:
    """Return a definition as YAML texts by path, without what is not set."""
    if definition is None:
        return {}
    document = _entity(definition) if isinstance(definition, Entity) else _view(definition)
    return dict(_leaves(document, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    elif value not in (None, "", ()):
        yield path, _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, Enum):
        return str(value.value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def _entity(entity: Entity) -> dict[str, Any]:
    return {"key_type": entity.key_type, "description": entity.description, "owner": entity.owner}


def _view(view: FeatureView) -> dict[str, Any]:
    """Return a view under the names that a file of definitions has: how features are computed stands beside them."""
    return {
        "entities": view.entities,
        "source": _source(view.source),
        "features": {each.name: _feature(each) | _computed(view.source, each.name) for each in view.features},
        "max_age": view.max_age,
        "retention": view.retention,
        "allowed_lateness": view.allowed_lateness if isinstance(view.source, AggregateSource) else None,
        "description": view.description,
        "owner": view.owner,
        "labels": dict(view.labels),
    }


def _feature(feature: Feature) -> dict[str, Any]:
    return {
        "type": feature.type,
        "list": feature.is_list or None,
        "nullable": feature.nullable or None,
        "default": feature.default,
        "max_age": feature.max_age,
        "description": feature.description,
        "owner": feature.owner,
    }


def _computed(source: Source | None, feature: str) -> dict[str, Any]:
    match source:
        case BatchSource(feature_columns=columns):
            return {"column": columns.get(feature)}
        case OnDemandSource(expressions=expressions):
            return {"expression": expressions.get(feature)}
        case AggregateSource(aggregates=aggregates):
            mine = next((each for each in aggregates if each.feature == feature), None)
            if mine is not None:
                count = mine.last_count or None
                return {"aggregate": mine.function, "of": mine.field, "window": mine.window, "count": count}
    return {}


def _source(source: Source | None) -> Any:
    match source:
        case BatchSource(location=location):
            where = (
                {} if location is None else {name: getattr(location, name) for name in location.__dataclass_fields__}
            )
            columns = {name: getattr(source, name) for name in ("event_time_column", "known_at_column", "time_zone")}
            kind = "files" if isinstance(location, FileLocation) else "sql"
            return {kind: {**where, **columns, "entity_columns": dict(source.entity_columns)}}
        case OnDemandSource(inputs=fields):
            return {"request": {each.name: each.type for each in fields}}
        case AggregateSource(fields=fields):
            return {"events": {each.name: each.type for each in fields}}
    return None if source is None else "push"
