"""Commands about definitions of entities and feature views."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from interlock.features.v1 import feature_view_pb2
from interlock.features.v1 import feature_view_service_pb2 as pb
from interlock.types.v1.signature_pb2 import FeatureType

from interlock_cli.commands import feature_jobs
from interlock_cli.commands.models import last_of
from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.definitions.reading import DefinitionFiles, Place, read_definitions
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, print_table, say
from interlock_cli.wire_json import to_json
from interlock_sdk.client import Client
from interlock_sdk.errors import CallError
from interlock_sdk.values import value_from_proto
from services.common.duration_text import format_duration

app = typer.Typer(help="What models are fed: entities and feature views.", no_args_is_help=True)
_FIELD: Final = re.compile(r"(entities|feature_views)\[(\d+)\](?:\.features\[(\d+)\])?\.?(.*)")
_VERBS: Final = {
    pb.CHANGE_KIND_CREATED: "create",
    pb.CHANGE_KIND_UPDATED: "update",
    pb.CHANGE_KIND_BROKEN: "break",
    pb.CHANGE_KIND_DELETED: "delete",
}
_SOURCES: Final = {
    "push_source": "push",
    "batch_source": "batch",
    "on_demand_source": "request",
    "aggregate_source": "events",
}


@app.callback()
def features() -> None:
    """What models are fed: entities and feature views."""


@app.command()
def apply(
    paths: Annotated[list[Path], typer.Argument(help="YAML files, or folders of them.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Delete what the files do not define, with its online values.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    revision: Annotated[str, typer.Option(help="Revision of the files, for the record: a git commit.")] = "",
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Make the definitions what YAML files say; shows what changes and asks first."""
    if as_json and not (yes or dry_run):
        raise CommandFailed("--json asks nothing: want --yes or --dry-run with it")
    files = read_definitions(paths)

    # What somebody else changes between the question and the answer is not overwritten.
    call(target, lambda client: _take_etags(client, files))

    def ask(*, validate_only: bool) -> pb.ApplyFeatureDefinitionsResponse:
        return call(target, lambda client: _apply(client, files, delete_missing, validate_only, revision))

    plan = ask(validate_only=True)
    if not as_json:
        _show(plan)
    blocked = [change for change in plan.changes if change.blocking_versions]
    if blocked:
        _refuse(plan, blocked, as_json=as_json)
    if not dry_run and _changes(plan) and (yes or _agreed()):
        plan = ask(validate_only=False)
        if not as_json:
            say("applied")
    if as_json:
        print_json(to_json(plan))


@app.command(name="list")
def list_views(target: Target = "", as_json: AsJson = False) -> None:
    """List the feature views."""

    async def work(client: Client) -> list[feature_view_pb2.FeatureView]:
        return [view async for view in client.feature_views.list()]

    found = call(target, work)
    if as_json:
        print_json([to_json(view) for view in found])
        return
    rows = [
        (
            last_of(view.name),
            ", ".join(map(last_of, view.entities)),
            source_word(view),
            str(len(view.features)),
            _age(view),
            view.owner,
            view.description,
        )
        for view in found
    ]
    columns = ("view", "entities", "source", "features", "max age", "owner", "description")
    print_table(columns, rows, empty="no feature view is defined; `interlock features apply FILES` defines some")


@app.command()
def show(
    view: Annotated[str, typer.Argument(help="Id of the feature view.")], target: Target = "", as_json: AsJson = False
) -> None:
    """Show a feature view and its features."""
    found = call(target, lambda client: client.feature_views.get(view))
    if as_json:
        print_json(to_json(found))
        return
    facts = {
        "view": view,
        "entities": ", ".join(map(last_of, found.entities)),
        "source": source_word(found),
        "max age": _age(found),
        "owner": found.owner,
        "description": found.description,
        "digest": found.digest,
    }
    for name, fact in facts.items():
        if fact:
            say(f"{name:<11}  {fact}")
    say()
    print_table(("feature", "type", "null", "default", "max age", "from", "description"), list(_feature_rows(found)))


def source_word(view: feature_view_pb2.FeatureView) -> str:
    """Return where the values of a view come from, in a word."""
    return _SOURCES.get(view.WhichOneof("source") or "", "")


async def _take_etags(client: Client, files: DefinitionFiles) -> None:
    etags = {entity.name: entity.etag async for entity in client.feature_views.entities()}
    etags |= {view.name: view.etag async for view in client.feature_views.list()}
    for entity in files.entities:
        entity.etag = etags.get(entity.name, "")
    for view in files.views:
        view.etag = etags.get(view.name, "")


async def _apply(
    client: Client, files: DefinitionFiles, delete_missing: bool, validate_only: bool, revision: str
) -> pb.ApplyFeatureDefinitionsResponse:
    try:
        return await client.feature_views.apply(
            files.entities,
            files.views,
            delete_missing=delete_missing,
            validate_only=validate_only,
            source_revision=revision,
        )
    except CallError as error:
        if error.reason != "INVALID_DEFINITION":
            raise
        raise CommandFailed("the definitions are refused", list(placed(error, files))) from None


def placed(error: CallError, files: DefinitionFiles) -> Iterator[str]:
    """Yield what is wrong with definitions where it stands: file, line, field, want and got."""
    for violation in error.violations:
        match = _FIELD.fullmatch(violation.field)
        if match is None:
            yield f"{violation.field}: {violation.description}"
            continue
        places = files.entity_places if match[1] == "entities" else files.view_places
        place = places[int(match[2])]
        subject = ": ".join(part for part in (_feature_name(match, files), match[4]) if part)
        yield f"{place.file}:{_line(place, match[3])}: {subject or 'definition'}: {violation.description}"


def _line(place: Place, feature: str | None) -> int:
    return place.line if feature is None else place.feature_lines[int(feature)]


def _feature_name(match: re.Match[str], files: DefinitionFiles) -> str:
    return files.views[int(match[2])].features[int(match[3])].name if match[3] else ""


def _show(plan: pb.ApplyFeatureDefinitionsResponse) -> None:
    print_table(("change", "definition", "field", "before", "after"), list(_rows(plan)), empty="nothing changes")
    counts = Counter(change.kind for change in plan.changes)
    told = [f"{counts[kind]} to {verb}" for kind, verb in _VERBS.items() if counts[kind]]
    if told:
        unchanged = counts[pb.CHANGE_KIND_UNCHANGED]
        say(", ".join([*told, f"{unchanged} unchanged"] if unchanged else told))


def _rows(plan: pb.ApplyFeatureDefinitionsResponse) -> Iterator[Sequence[str]]:
    for change in plan.changes:
        if change.kind in (pb.CHANGE_KIND_CREATED, pb.CHANGE_KIND_DELETED):
            # What is new stands in the files, what goes is gone as a whole.
            yield _VERBS[change.kind], change.resource, "", "", ""
        elif change.kind in _VERBS:
            for field in change.fields:
                yield _VERBS[change.kind], change.resource, field.path, field.before, field.after


def _refuse(plan: pb.ApplyFeatureDefinitionsResponse, blocked: Sequence[pb.DefinitionChange], *, as_json: bool) -> None:
    if as_json:
        print_json(to_json(plan))
    hints = [f"{change.resource}: {', '.join(change.blocking_versions)}" for change in blocked]
    raise CommandFailed("registered versions depend on what would change", hints)


def _changes(plan: pb.ApplyFeatureDefinitionsResponse) -> bool:
    return any(change.kind in _VERBS for change in plan.changes)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise CommandFailed("nobody is there to be asked", ["--yes applies without asking, --dry-run only shows"])
    return typer.confirm("apply?")


def _feature_rows(view: feature_view_pb2.FeatureView) -> Iterator[Sequence[str]]:
    for feature in view.features:
        default = value_from_proto(feature.default_value)
        age = feature.max_age if feature.HasField("max_age") else view.max_age
        yield (
            feature.name,
            f"{'list of ' if feature.is_list else ''}{FeatureType.Name(feature.type).removeprefix('FEATURE_TYPE_').lower()}",
            "yes" if feature.nullable else "no",
            "" if default is None else str(default),
            format_duration(age.ToTimedelta()) if age.ByteSize() else "any",
            _origin(view, feature.name),
            feature.description,
        )


def _origin(view: feature_view_pb2.FeatureView, feature: str) -> str:
    """Return how a feature comes from the source of its view."""
    if view.HasField("batch_source"):
        return view.batch_source.feature_columns.get(feature, feature)
    for aggregate in view.aggregate_source.aggregates:
        if aggregate.feature == feature:
            word = feature_view_pb2.AggregateFunction.Name(aggregate.function).removeprefix("AGGREGATE_FUNCTION_")
            what = f" of {aggregate.field}" if aggregate.field else ""
            return f"{word.lower()}{what}, {format_duration(aggregate.window.ToTimedelta())}"
    return view.on_demand_source.expressions.get(feature, "")


def _age(view: feature_view_pb2.FeatureView) -> str:
    return format_duration(view.max_age.ToTimedelta()) if view.HasField("max_age") else ""


feature_jobs.add_to(app)
