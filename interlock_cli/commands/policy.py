"""Commands about how models are watched."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict, ParseError
from interlock.monitor.v1 import monitoring_policy_pb2 as pb

from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, print_table
from interlock_cli.wire_json import to_json
from interlock_sdk.values import value_from_proto
from services.common.duration_text import DURATION_FORM, format_duration, parse_duration

app = typer.Typer(help="How models are watched: windows, slices, groups, retention.", no_args_is_help=True)
Model = Annotated[str, typer.Argument(help="Id of the model.")]
_DURATIONS = ("window_duration", "log_retention", "label_retention")


class _Plain(yaml.SafeLoader):
    """YAML in which `NO` is Norway: truth values are true and false only, as in YAML 1.2, and dates are texts."""


_BOOL: Final = "tag:yaml.org,2002:bool"
_Plain.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in found if tag not in (_BOOL, "tag:yaml.org,2002:timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Plain.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


@app.callback()
def policy() -> None:
    """How models are watched: windows, slices, groups, retention."""


@app.command(name="get")
def get_policy(model: Model, target: Target = "", as_json: AsJson = False) -> None:
    """Show how a model is watched."""
    _show(call(target, lambda client: client.monitoring.policy(model)), as_json)


@app.command(name="set")
def set_policy(
    model: Model,
    *,
    file: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON with fields of a MonitoringPolicy: slices, ...", exists=True, dir_okay=False),
    ] = None,
    window: Annotated[str, typer.Option(help="Length of a window, such as 15m.")] = "",
    log_percent: Annotated[
        float | None, typer.Option(min=0, max=100, help="Share of predictions that are logged.")
    ] = None,
    log_retention: Annotated[str, typer.Option(help="How long they are kept, such as 30d.")] = "",
    label_retention: Annotated[str, typer.Option(help="How long after a prediction its label may come.")] = "",
    positive_label: Annotated[str, typer.Option(help="Class that counts as positive.")] = "",
    false_discovery_rate: Annotated[
        float | None, typer.Option(help="Share of false alarms among drift alarms.")
    ] = None,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Change how a model is watched; what is not named stays. It holds from the next window on."""
    wanted = read_policy(file) if file else pb.MonitoringPolicy()
    durations = dict(zip(_DURATIONS, (window, log_retention, label_retention), strict=True))
    for field, text in durations.items():
        if text:
            getattr(wanted, field).CopyFrom(_duration(field, text))
    if positive_label:
        wanted.positive_label = positive_label
    if log_percent is not None:
        wanted.log_basis_points = round(log_percent * 100)
    if false_discovery_rate is not None:
        wanted.false_discovery_rate = false_discovery_rate
    fields = [descriptor.name for descriptor, _ in wanted.ListFields()]
    if not fields:
        raise CommandFailed("nothing to change: want --file or an option that says what")
    _show(call(target, lambda client: client.monitoring.set_policy(model, wanted, fields)), as_json)


def policy_rows(policy: pb.MonitoringPolicy) -> Iterator[tuple[str, str]]:
    """Yield what a policy says, for people."""
    yield "window", format_duration(policy.window_duration.ToTimedelta())
    yield "logged", f"{policy.log_basis_points / 100:g} %"
    yield "log kept", format_duration(policy.log_retention.ToTimedelta())
    yield "labels until", format_duration(policy.label_retention.ToTimedelta())
    yield "positive class", policy.positive_label or "the last label"
    yield "false alarms", f"{policy.false_discovery_rate:.3g} of all drift alarms"
    yield "smallest drift", ", ".join(f"{name} {value:g}" for name, value in sorted(policy.minimum_effects.items()))
    for found in policy.slices:
        yield f"slice {found.name}", _slice(found)
    for group in policy.fairness_groups:
        reference = f" against {value_from_proto(group.reference_value)}" if group.HasField("reference_value") else ""
        yield f"groups of {group.feature}", f"from {group.minimum_count or 100} predictions on{reference}"


def _slice(found: pb.Slice) -> str:
    if found.values:
        return f"{found.feature} is {' or '.join(str(value_from_proto(value)) for value in found.values)}"
    low = f"{found.minimum:g} <= " if found.HasField("minimum") else ""
    high = f" < {found.maximum:g}" if found.HasField("maximum") else ""
    return f"{low}{found.feature}{high}"


def _show(policy: pb.MonitoringPolicy, as_json: bool) -> None:
    if as_json:
        print_json(to_json(policy))
    else:
        print_table(("what", "value"), list(policy_rows(policy)))


def read_policy(file: Path) -> pb.MonitoringPolicy:
    """Return the fields of a policy in a file; raises CommandFailed."""
    try:
        value: Any = yaml.load(file.read_text("utf-8"), _Plain)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandFailed(f"--file: want YAML or JSON: {error}") from None
    if not isinstance(value, dict):
        raise CommandFailed(f"--file: want fields of a MonitoringPolicy, got {type(value).__name__}")
    for part in (*value.get("slices", ()), *value.get("fairness_groups", ())):
        _spell_out(part)
    for field in _DURATIONS:
        if isinstance(value.get(field), str) and (found := parse_duration(value[field])) is not None:
            value[field] = f"{found.total_seconds():g}s"
    try:
        return ParseDict(value, pb.MonitoringPolicy())
    except ParseError as error:
        raise CommandFailed(f"--file: want fields of a MonitoringPolicy: {error}") from None


def _spell_out(part: Any) -> None:
    """Put plain values of features as the contract's JSON has them; what is malformed is left to the parser."""
    if isinstance(part, dict):
        if isinstance(part.get("values"), list):
            part["values"] = [_feature_value(value) for value in part["values"]]
        if "reference_value" in part:
            part["reference_value"] = _feature_value(part["reference_value"])


def _feature_value(value: Any) -> Any:
    names = {bool: "bool_value", int: "int64_value", float: "double_value", str: "string_value"}
    return {names[type(value)]: value} if type(value) in names else value


def _duration(field: str, text: str) -> Duration:
    found: timedelta | None = parse_duration(text)
    if not found:
        raise CommandFailed(f"--{field.replace('_', '-')}: want {DURATION_FORM}, got {text!r}")
    message = Duration()
    message.FromTimedelta(found)
    return message
