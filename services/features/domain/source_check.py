"""Whether the source of a view is sound by itself; what expressions and aggregates mean is checked elsewhere."""

import re
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final

from services.common import names
from services.common.duration_text import format_duration
from services.common.errors import Violation, echo
from services.common.text_check import check_text
from services.features.domain.definitions import (
    Aggregate,
    AggregateFunction,
    AggregateSource,
    BatchSource,
    EventField,
    FeatureView,
    FileLocation,
    OnDemandSource,
    SqlLocation,
)
from services.features.domain.file_roots import FileRoots

FIELD_NAME_RULE: Final = "a letter or _ and up to 127 letters, digits and _"
FIELD_LIMIT: Final = 100
QUERY_LIMIT_CHARS: Final = 20_000
COLUMN_LIMIT_CHARS: Final = 256
LAST_COUNT_LIMIT: Final = 1_000
LONGEST_WINDOW: Final = timedelta(days=400)
# Columns that every history has beside its own; DuckDB does not tell cases apart.
_RESERVED: Final = ("absent", "event_id", "event_time", "known_at")
_RESERVED_PREFIX: Final = "entity__"
_FIELD_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)

Violations = Iterator[Violation]


def check_source(view: FeatureView, roots: FileRoots, path: str) -> Violations:
    """Yield what is wrong with the source of a view; files have to lie under the roots."""
    match view.source:
        case None:
            want = "want push_source, batch_source, on_demand_source or aggregate_source, got none of them"
            yield Violation(path, want)
        case BatchSource():
            features = [feature.name for feature in view.features]
            yield from check_batch(view.source, view.entities, features, roots, f"{path}.batch_source")
        case OnDemandSource():
            yield from _check_fields(view.source.inputs, f"{path}.on_demand_source.inputs")
        case AggregateSource():
            yield from _check_fields(view.source.fields, f"{path}.aggregate_source.fields")
            yield from _check_aggregates(view.source.aggregates, f"{path}.aggregate_source.aggregates")


def check_column_name(name: str, seen: set[str], path: str) -> Violations:
    """Yield what is wrong with the name of a feature or event field; `seen` gathers lower-cased names."""
    folded = name.lower()
    if not _FIELD_NAME.fullmatch(name):
        yield Violation(path, f"want {FIELD_NAME_RULE}; got {echo(name)}")
    elif folded in _RESERVED or folded.startswith(_RESERVED_PREFIX):
        want = f"want none of {', '.join(_RESERVED)} and nothing that begins with {_RESERVED_PREFIX}"
        yield Violation(path, f"{want}: so the history's own columns are called; got {echo(name)}")
    elif folded in seen:
        yield Violation(path, f"want a name that differs from the others in more than case, got {echo(name)} again")
    seen.add(folded)


def _check_fields(fields: Sequence[EventField], path: str) -> Violations:
    if not 1 <= len(fields) <= FIELD_LIMIT:
        yield Violation(path, f"want 1 to {FIELD_LIMIT}, got {len(fields)}")
    seen: set[str] = set()
    for index, field in enumerate(fields):
        yield from check_column_name(field.name, seen, f"{path}[{index}].name")
        if field.type is None:
            yield Violation(f"{path}[{index}].type", "want DOUBLE, INT64, STRING or BOOL, got none of them")


def _check_aggregates(aggregates: Sequence[Aggregate], path: str) -> Violations:
    seen: set[str] = set()
    for index, aggregate in enumerate(aggregates):
        at = f"{path}[{index}]"
        if aggregate.feature in seen:
            yield Violation(f"{at}.feature", f"want each feature once, got {echo(aggregate.feature)} again")
        seen.add(aggregate.feature)
        if aggregate.function is None:
            known = ", ".join(each.value for each in AggregateFunction)
            yield Violation(f"{at}.function", f"want one of {known}; got none of them")
        if not timedelta() < aggregate.window <= LONGEST_WINDOW:
            want = f"want more than 0 and at most {format_duration(LONGEST_WINDOW)}"
            yield Violation(f"{at}.window", f"{want}, got {format_duration(aggregate.window)}")
        yield from _check_last_count(aggregate, f"{at}.last_count")


def _check_last_count(aggregate: Aggregate, path: str) -> Violations:
    if aggregate.function is AggregateFunction.LAST_N:
        if not 1 <= aggregate.last_count <= LAST_COUNT_LIMIT:
            yield Violation(path, f"want 1 to {LAST_COUNT_LIMIT}, got {aggregate.last_count}")
    elif aggregate.last_count:
        yield Violation(path, f"want none unless the function is LAST_N, got {aggregate.last_count}")


def check_batch(
    source: BatchSource, entities: Sequence[str], features: Sequence[str], roots: FileRoots, path: str
) -> Violations:
    """Yield what is wrong with a batch source for these entities and features, by id and name."""
    match source.location:
        case None:
            yield Violation(path, "want files or sql, got neither")
        case FileLocation():
            yield from _check_files(source.location, roots, f"{path}.files")
        case SqlLocation():
            yield from _check_sql(source.location, f"{path}.sql")
    yield from _check_columns(source.entity_columns, entities, f"{path}.entity_columns")
    yield from _check_columns(source.feature_columns, features, f"{path}.feature_columns")
    yield from check_text(source.event_time_column, f"{path}.event_time_column", COLUMN_LIMIT_CHARS, required=True)
    yield from check_text(source.known_at_column, f"{path}.known_at_column", COLUMN_LIMIT_CHARS)
    if source.time_zone and not _is_time_zone(source.time_zone):
        want = 'want a zone of the IANA data base such as "America/New_York" or "UTC"'
        yield Violation(f"{path}.time_zone", f"{want}, got {echo(source.time_zone)}")


def _check_files(location: FileLocation, roots: FileRoots, path: str) -> Violations:
    yield from roots.check(location.uri, f"{path}.uri")
    if location.format is None:
        yield Violation(f"{path}.format", "want PARQUET or CSV, got neither")


def _check_sql(location: SqlLocation, path: str) -> Violations:
    wrong = names.id_violation(location.connection, f"{path}.connection")
    if wrong is not None:
        yield wrong
    yield from check_text(location.query, f"{path}.query", QUERY_LIMIT_CHARS, required=True)
    if location.query.rstrip().endswith(";"):
        yield Violation(f"{path}.query", "want a table or SELECT without a semicolon at its end, got one")


def _check_columns(columns: Mapping[str, str], known: Sequence[str], path: str) -> Violations:
    for name, column in sorted(columns.items()):
        at = f"{path}[{echo(name)}]"
        if name not in known:
            yield Violation(at, "want the name of one that the view has, got another one")
        yield from check_text(column, at, COLUMN_LIMIT_CHARS, required=True)


def _is_time_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
