"""Files of definitions as the contract's messages. docs/features.md describes the format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from interlock.features.v1 import entity_pb2, feature_view_pb2
from interlock.types.v1 import feature_value_pb2, signature_pb2

from interlock_cli.definitions.section import Problem, Problems, Section, documents, line_of
from interlock_cli.errors import CommandFailed
from interlock_sdk.values import value_to_proto

TYPES: Final = ("double", "int64", "string", "bool")
KEY_TYPES: Final = ("string", "int64")
FORMATS: Final = ("parquet", "csv")
AGGREGATES: Final = ("count", "sum", "mean", "minimum", "maximum", "last_n")
SOURCES: Final = ("push", "files", "sql", "request", "events")
_ENTITY_KEYS: Final = ("entity", "key_type", "description", "owner")
_VIEW_KEYS: Final = (
    "feature_view",
    "entities",
    "source",
    "features",
    "max_age",
    "retention",
    "allowed_lateness",
    "description",
    "owner",
    "labels",
)
_FEATURE_KEYS: Final = ("type", "list", "nullable", "default", "max_age", "description", "owner")
_COMPUTED_KEYS: Final = {
    "files": ("column",),
    "sql": ("column",),
    "request": ("expression",),
    "events": ("aggregate", "of", "window", "count"),
}
_COLUMN_KEYS: Final = ("event_time_column", "known_at_column", "time_zone", "entity_columns")
_LOCATION_KEYS: Final = {"files": ("uri", "format"), "sql": ("connection", "query")}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a definition stands, and the lines of its features in order."""

    file: str
    line: int
    feature_lines: Sequence[int] = ()


@dataclass(slots=True)
class DefinitionFiles:
    """What files define, in the order of reading, and where each stands."""

    entities: list[entity_pb2.Entity] = field(default_factory=list)
    entity_places: list[Place] = field(default_factory=list)
    views: list[feature_view_pb2.FeatureView] = field(default_factory=list)
    view_places: list[Place] = field(default_factory=list)


def read_definitions(paths: Iterable[Path]) -> DefinitionFiles:
    """Return what files, and the .yaml and .yml files below folders, define; CommandFailed lists every problem."""
    found, problems = DefinitionFiles(), list[Problem]()
    for path in _files(paths):
        noted = Problems(str(path))
        for node in documents(path, noted):
            _read_document(Section(node, noted, "a definition"), noted, found, str(path))
        problems += noted.found
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise CommandFailed(f"the definitions have {count}", [str(problem) for problem in sorted(problems)])
    return found


def _files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(each for each in path.rglob("*") if each.suffix in (".yaml", ".yml") and each.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise CommandFailed(f"{path}: want a file or folder, got nothing")
    if not found:
        raise CommandFailed(f"want .yaml files, got none below {', '.join(map(str, paths))}")
    return list(dict.fromkeys(found))


def _read_document(document: Section, problems: Problems, found: DefinitionFiles, file: str) -> None:
    place = Place(file, line_of(document.node))
    if "entity" in document:
        found.entities.append(_entity(Section(document.node, problems, "an entity", _ENTITY_KEYS)))
        found.entity_places.append(place)
    elif "feature_view" in document:
        view, lines = _view(Section(document.node, problems, "a feature view", _VIEW_KEYS))
        found.views.append(view)
        found.view_places.append(Place(file, place.line, lines))
    elif document.entries:
        problems.add(document.node, "want a document with the key 'entity' or 'feature_view', got neither")


def _entity(section: Section) -> entity_pb2.Entity:
    return entity_pb2.Entity(
        name=f"entities/{section.text('entity', required=True)}",
        key_type=_type(section.choice("key_type", KEY_TYPES, required=True)),
        description=section.text("description"),
        owner=section.text("owner"),
    )


def _view(section: Section) -> tuple[feature_view_pb2.FeatureView, list[int]]:
    view = feature_view_pb2.FeatureView(
        name=f"featureViews/{section.text('feature_view', required=True)}",
        entities=[f"entities/{entity}" for entity in section.texts("entities")],
        max_age=_duration(section.duration("max_age")),
        retention=_duration(section.duration("retention")),
        allowed_lateness=_duration(section.duration("allowed_lateness")),
        description=section.text("description"),
        owner=section.text("owner"),
    )
    labels = section.section("labels", "the labels")
    if labels is not None:
        view.labels.update({name: labels.text(name) for name in labels.entries})
    kind = _put_source(view, section)
    features = section.section("features", "the features")
    if features is None:
        section.problem("features", "want at least one feature, got nothing")
        return view, []
    keys = (*_FEATURE_KEYS, *_COMPUTED_KEYS.get(kind, ()))
    lines = []
    for name, feature in features.inner("the feature", keys):
        view.features.append(_feature(name, feature))
        _put_computed(view, kind, name, feature)
        lines.append(line_of(feature.node))
    return view, lines


def _put_source(view: feature_view_pb2.FeatureView, section: Section) -> str:
    """Set the source and return its kind, empty for none."""
    node = section.entries.get("source")
    if node is not None and node.value == "push":
        view.push_source.SetInParent()
        return "push"
    source = section.section("source", "the source", SOURCES)
    if source is None or len(source.entries) != 1:
        section.problem("source", f"want push, or one of {', '.join(SOURCES[1:])} with what belongs to it")
        return ""
    kind = next(iter(source.entries))
    if kind in _LOCATION_KEYS:
        inner = source.section(kind, f"the source {kind!r}", (*_LOCATION_KEYS[kind], *_COLUMN_KEYS))
        if inner is not None:
            _put_batch(view.batch_source, kind, inner)
    elif kind in ("request", "events"):
        fields = source.section(kind, f"the source {kind!r}")
        into = view.on_demand_source.inputs if kind == "request" else view.aggregate_source.fields
        for name in fields.entries if fields else ():
            into.add(name=name, type=_type(fields.choice(name, TYPES)) if fields else 0)
    else:
        view.push_source.SetInParent()
    return kind


def _put_batch(source: feature_view_pb2.BatchSource, kind: str, section: Section) -> None:
    if kind == "files":
        source.files.uri = section.text("uri", required=True)
        word = section.choice("format", FORMATS, required=True)
        source.files.format = _enum(feature_view_pb2.FileFormat, "FILE_FORMAT_", word)
    else:
        source.sql.connection = section.text("connection", required=True)
        source.sql.query = section.text("query", required=True).strip()
    source.event_time_column = section.text("event_time_column", required=True)
    source.known_at_column = section.text("known_at_column")
    source.time_zone = section.text("time_zone")
    columns = section.section("entity_columns", "the columns of entities")
    if columns is not None:
        source.entity_columns.update({name: columns.text(name) for name in columns.entries})


def _feature(name: str, section: Section) -> feature_view_pb2.Feature:
    default = section.value("default")
    return feature_view_pb2.Feature(
        name=name,
        type=_type(section.choice("type", TYPES, required=True)),
        is_list=section.truth("list"),
        nullable=section.truth("nullable"),
        default_value=None if default is None else _value(default),
        max_age=_duration(section.duration("max_age")),
        description=section.text("description"),
        owner=section.text("owner"),
    )


def _put_computed(view: feature_view_pb2.FeatureView, kind: str, name: str, section: Section) -> None:
    """Set how a feature comes from the source of its view."""
    if kind in _LOCATION_KEYS and "column" in section:
        view.batch_source.feature_columns[name] = section.text("column")
    elif kind == "request":
        view.on_demand_source.expressions[name] = section.text("expression", required=True)
    elif kind == "events":
        word = section.choice("aggregate", AGGREGATES, required=True)
        if "window" not in section:
            section.problem("window", 'want a duration such as "7d", got nothing')
        view.aggregate_source.aggregates.add(
            feature=name,
            function=_enum(feature_view_pb2.AggregateFunction, "AGGREGATE_FUNCTION_", word),
            field=section.text("of"),
            window=_duration(section.duration("window")),
            last_count=section.whole("count"),
        )


def _type(word: str) -> Any:
    return _enum(signature_pb2.FeatureType, "FEATURE_TYPE_", word)


def _enum(contract: Any, prefix: str, word: str) -> Any:
    """Return the contract's number of a word; 0 for none, which has been noted as a problem already."""
    return contract.Value(f"{prefix}{word.upper()}") if word else 0


def _value(value: Any) -> feature_value_pb2.FeatureValue:
    return value_to_proto(value)


def _duration(duration: timedelta | None) -> Duration | None:
    if duration is None:
        return None
    message = Duration()
    message.FromTimedelta(duration)
    return message
