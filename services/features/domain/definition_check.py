"""Whether definitions are sound: every wrong field is told, under its path in the request."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from services.common.duration_text import format_duration
from services.common.errors import Violation, echo
from services.common.text_check import check_pairs, check_text
from services.features.domain.aggregates import check_aggregates
from services.features.domain.definitions import (
    Entity,
    Feature,
    FeatureType,
    FeatureView,
    OnDemandSource,
)
from services.features.domain.file_roots import FileRoots
from services.features.domain.on_demand import check_expressions
from services.features.domain.ports import ValueType
from services.features.domain.source_check import check_column_name, check_source
from services.features.domain.value_check import WrongValue, checked

DESCRIPTION_LIMIT_CHARS: Final = 1_000
OWNER_LIMIT_CHARS: Final = 200
LABEL_LIMIT: Final = 64
LABEL_LIMIT_CHARS: Final = 128
ENTITY_LIMIT: Final = 8
FEATURE_LIMIT: Final = 500
LONGEST_LATENESS: Final = timedelta(days=30)
_KEY_TYPES: Final = (FeatureType.STRING, FeatureType.INT64)

Violations = Iterator[Violation]


def check_entity(entity: Entity, path: str) -> Violations:
    """Yield what is wrong with an entity."""
    if entity.key_type not in _KEY_TYPES:
        got = "none" if entity.key_type is None else entity.key_type.value
        yield Violation(f"{path}.key_type", f"want STRING or INT64, got {got}")
    yield from check_text(entity.description, f"{path}.description", DESCRIPTION_LIMIT_CHARS)
    yield from check_text(entity.owner, f"{path}.owner", OWNER_LIMIT_CHARS)


def check_view(view: FeatureView, roots: FileRoots, path: str) -> Violations:
    """Yield what is wrong with a view by itself; whether its entities exist is another question."""
    yield from check_text(view.description, f"{path}.description", DESCRIPTION_LIMIT_CHARS)
    yield from check_text(view.owner, f"{path}.owner", OWNER_LIMIT_CHARS)
    yield from check_pairs(
        view.labels, f"{path}.labels", limit=LABEL_LIMIT, key_chars=LABEL_LIMIT_CHARS, value_chars=LABEL_LIMIT_CHARS
    )
    yield from _check_entities(view, path)
    yield from _check_features(view.features, f"{path}.features")
    yield from _check_ages(view, path)
    yield from check_source(view, roots, path)
    yield from check_aggregates(view, f"{path}.")
    if isinstance(view.source, OnDemandSource):
        yield from check_expressions(view, f"{path}.")


def with_conforming_defaults(view: FeatureView) -> FeatureView:
    """Return a sound view whose defaults have the Python type of their features: a DOUBLE's 1 is 1.0."""
    return replace(view, features=tuple(_with_conforming_default(feature) for feature in view.features))


def check_names(held: Iterable[str], given: Mapping[str, str]) -> Violations:
    """Yield names that differ from another one in case only, or are given twice.

    `held` are the names of what stays as it is; `given` maps the path of each definition to its name.
    """
    by_folded = {name.lower(): name for name in held}
    for path, name in given.items():
        other = by_folded.setdefault(name.lower(), name)
        if other != name:
            yield Violation(f"{path}.name", f"want a name that differs in more than case from {echo(other)}")
    for name, count in Counter(given.values()).items():
        if count > 1:
            last = [path for path, each in given.items() if each == name][-1]
            yield Violation(f"{last}.name", f"want each definition once, got {echo(name)} {count} times")


def _check_entities(view: FeatureView, path: str) -> Violations:
    if isinstance(view.source, OnDemandSource):
        if view.entities:
            yield Violation(f"{path}.entities", f"want none for a view on demand, got {len(view.entities)}")
        return
    if not 1 <= len(view.entities) <= ENTITY_LIMIT:
        yield Violation(f"{path}.entities", f"want 1 to {ENTITY_LIMIT}, got {len(view.entities)}")
    if len(set(view.entities)) < len(view.entities):
        yield Violation(f"{path}.entities", "want each entity once, got one of them again")


def _check_features(features: Sequence[Feature], path: str) -> Violations:
    if not 1 <= len(features) <= FEATURE_LIMIT:
        yield Violation(path, f"want 1 to {FEATURE_LIMIT}, got {len(features)}")
    seen: set[str] = set()
    for index, feature in enumerate(features):
        at = f"{path}[{index}]"
        yield from check_column_name(feature.name, seen, f"{at}.name")
        yield from check_text(feature.description, f"{at}.description", DESCRIPTION_LIMIT_CHARS)
        yield from check_text(feature.owner, f"{at}.owner", OWNER_LIMIT_CHARS)
        if feature.type is None:
            yield Violation(f"{at}.type", "want DOUBLE, INT64, STRING or BOOL, got none of them")
        else:
            yield from _check_default(feature, feature.type, f"{at}.default_value")
        if feature.max_age is not None and feature.max_age <= timedelta():
            yield Violation(f"{at}.max_age", f"want more than 0, got {format_duration(feature.max_age)}")


def _check_default(feature: Feature, type_: FeatureType, path: str) -> Violations:
    if feature.illegal_default:
        yield Violation(path, "want a value, or none at all; got an empty one")
    elif feature.default is not None:
        try:
            checked(feature.default, ValueType(type_, feature.is_list))
        except WrongValue as wrong:
            yield Violation(path, str(wrong))


def _with_conforming_default(feature: Feature) -> Feature:
    if feature.default is None or feature.type is None:
        return feature
    return replace(feature, default=checked(feature.default, ValueType(feature.type, feature.is_list)))


def _check_ages(view: FeatureView, path: str) -> Violations:
    if isinstance(view.source, OnDemandSource):
        given = {"max_age": view.max_age, "retention": view.retention}
        for field, value in given.items():
            if value is not None:
                yield Violation(f"{path}.{field}", "want none for a view on demand: its values are of this moment")
        return
    if view.max_age is not None and view.max_age <= timedelta():
        yield Violation(f"{path}.max_age", f"want more than 0, got {format_duration(view.max_age)}")
    ages = [age for age in (view.max_age, *(feature.max_age for feature in view.features)) if age is not None]
    if view.retention is not None and (view.retention <= timedelta() or (ages and view.retention < max(ages))):
        want = f"want at least the longest max_age, {format_duration(max(ages))}" if ages else "want more than 0"
        yield Violation(f"{path}.retention", f"{want}; got {format_duration(view.retention)}")
    if not timedelta() <= view.allowed_lateness <= LONGEST_LATENESS:
        want = f"want 0 to {format_duration(LONGEST_LATENESS)}, got {format_duration(view.allowed_lateness)}"
        yield Violation(f"{path}.allowed_lateness", want)
