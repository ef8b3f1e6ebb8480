"""Commands about alerts: what is wrong now, when somebody is told, and keeping quiet."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.monitor.v1 import alert_pb2 as pb

from interlock_cli.commands.models import last_of
from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.definitions.alert_rules import RuleFile, read_alert_rules
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, print_table, say
from interlock_cli.wire_json import to_json
from interlock_sdk.client import Client
from interlock_sdk.errors import CallError
from services.common.duration_text import DURATION_FORM, format_duration, parse_duration

app = typer.Typer(help="What is wrong now, when somebody is told, and keeping quiet.", no_args_is_help=True)
rules_app = typer.Typer(help="When somebody is told.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")
_STATES: Final = {
    "pending": pb.ALERT_STATE_PENDING,
    "firing": pb.ALERT_STATE_FIRING,
    "resolved": pb.ALERT_STATE_RESOLVED,
}
_COLUMNS: Final = ("alert", "state", "severity", "version", "rule", "about", "value", "limit", "since", "told")


@app.callback()
def alerts() -> None:
    """What is wrong now, when somebody is told, and keeping quiet."""


@app.command(name="list")
def list_alerts(
    *,
    model: Annotated[str, typer.Option(help="Id of a model.")] = "",
    rule: Annotated[str, typer.Option(help="Id of a rule.")] = "",
    state: Annotated[
        list[str] | None, typer.Option(help="pending, firing or resolved; may be given again. Default: open ones.")
    ] = None,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """List alerts, the newest first."""
    for name in state or ():
        if name not in _STATES:
            raise CommandFailed(f"--state: want {', '.join(_STATES)}, got {name!r}")
    states = [_STATES[name] for name in state or ()]

    async def work(client: Client) -> list[pb.Alert]:
        return [alert async for alert in client.alerts.list(model=model, rule=rule, states=states)]

    found = call(target, work)
    if as_json:
        print_json([to_json(alert) for alert in found])
        return
    print_table(_COLUMNS, [_row(alert) for alert in found], empty="no alert")
    for alert in found:
        for sink, error in sorted(alert.delivery_errors.items()):
            say(f"{last_of(alert.name)}: {sink} could not be told: {error}")


@app.command()
def show(
    alert: Annotated[str, typer.Argument(help="Id of the alert.")], target: Target = "", as_json: AsJson = False
) -> None:
    """Show an alert."""
    found = call(target, lambda client: client.alerts.get(alert))
    if as_json:
        print_json(to_json(found))
    else:
        print_table(("what", "value"), list(alert_facts(found)))


@app.command()
def silence(
    *,
    reason: Annotated[str, typer.Option(help="Why.")],
    duration: Annotated[str, typer.Option("--for", help="How long, such as 2h.")],
    rule: Annotated[str, typer.Option(help="Id of a rule.")] = "",
    model: Annotated[str, typer.Option(help="Id of a model.")] = "",
    feature: Annotated[str, typer.Option(help="Name of a feature.")] = "",
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Keep alerts quiet for a time; they are evaluated and listed all the same."""
    length = parse_duration(duration)
    if not length:
        raise CommandFailed(f"--for: want {DURATION_FORM}, got {duration!r}")
    wanted = pb.Silence(rule=f"alertRules/{rule}" if rule else "", model=model, feature=feature, reason=reason)
    wanted.end_time.FromDatetime(datetime.now(UTC) + length)
    made = call(target, lambda client: client.alerts.silence(wanted))
    if as_json:
        print_json(to_json(made))
    else:
        say(
            f"{last_of(made.name)} until {when(made.end_time)}; `interlock alerts end-silence {last_of(made.name)}` ends it"
        )


@app.command()
def silences(
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """List silences, the newest first."""

    async def work(client: Client) -> list[pb.Silence]:
        return [found async for found in client.alerts.silences(active_only=not every)]

    found = call(target, work)
    if as_json:
        print_json([to_json(one) for one in found])
        return
    rows = [
        (last_of(one.name), last_of(one.rule), one.model, one.feature, when(one.end_time), one.reason) for one in found
    ]
    print_table(("silence", "rule", "model", "feature", "until", "reason"), rows, empty="no silence")


@app.command(name="end-silence")
def end_silence(
    silence: Annotated[str, typer.Argument(help="Id of the silence.")], target: Target = "", as_json: AsJson = False
) -> None:
    """End a silence now."""
    ended = call(target, lambda client: client.alerts.end_silence(silence))
    if as_json:
        print_json(to_json(ended))
    else:
        say(f"ended {when(ended.end_time)}")


@rules_app.callback()
def rules() -> None:
    """When somebody is told."""


@rules_app.command(name="list")
def list_rules(
    model: Annotated[str, typer.Option(help="Id of a model.")] = "", target: Target = "", as_json: AsJson = False
) -> None:
    """List rules."""

    async def work(client: Client) -> list[pb.AlertRule]:
        return [rule async for rule in client.alerts.rules(model)]

    found = call(target, work)
    if as_json:
        print_json([to_json(rule) for rule in found])
        return
    rows = [_rule_row(rule) for rule in found]
    columns = ("rule", "severity", "model", "when", "for", "sinks")
    print_table(columns, rows, empty="no rule; `interlock alerts rules apply FILE` makes some")


@rules_app.command()
def apply(
    paths: Annotated[list[Path], typer.Argument(help="YAML files, or folders of them.")],
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Make rules what YAML files say; others stay as they are."""
    files = read_alert_rules(paths)
    done = call(target, lambda client: _apply(client, files))
    if as_json:
        print_json([to_json(rule) for _, rule in done])
    else:
        print_table(("change", "rule"), [(what, last_of(rule.name)) for what, rule in done], empty="no rule")


@rules_app.command()
def delete(rule: Annotated[str, typer.Argument(help="Id of the rule.")], target: Target = "") -> None:
    """Delete a rule; its alerts are resolved."""
    call(target, lambda client: client.alerts.delete_rule(rule))
    say(f"deleted {rule}")


def alert_facts(alert: pb.Alert) -> Iterator[tuple[str, str]]:
    """Yield what an alert says, for people."""
    yield "state", _word(pb.AlertState.Name(alert.state), "ALERT_STATE_")
    yield "severity", _word(pb.AlertSeverity.Name(alert.severity), "ALERT_SEVERITY_")
    yield "version", alert.model_version
    yield "rule", last_of(alert.rule)
    if alert.slice:
        yield "slice", alert.slice
    if alert.feature:
        yield "feature", alert.feature
    yield "value", f"{alert.value:.6g}"
    yield "limit", f"{alert.limit:g}"
    yield "since", when(alert.start_time)
    for name in ("fire_time", "resolve_time"):
        if alert.HasField(name):
            yield ("fired" if name == "fire_time" else "resolved"), when(getattr(alert, name))
    if alert.silence:
        yield "silenced by", last_of(alert.silence)
    for sink, time in sorted(alert.delivery_times.items()):
        yield f"told {sink}", when(time)
    for sink, error in sorted(alert.delivery_errors.items()):
        yield f"not told {sink}", error


def when(stamp: Timestamp) -> str:
    """Return a time as people read it, UTC."""
    return f"{stamp.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}"


async def _apply(client: Client, files: Sequence[RuleFile]) -> list[tuple[str, pb.AlertRule]]:
    known = {rule.name: rule async for rule in client.alerts.rules()}
    done = []
    for file in files:
        before = known.get(file.rule.name)
        try:
            if before is None:
                done.append(("created", await client.alerts.create_rule(file.id, file.rule)))
                continue
            file.rule.etag = before.etag
            after = await client.alerts.replace_rule(file.rule)
            done.append(("unchanged" if after == before else "updated", after))
        except CallError as error:
            raise CommandFailed(f"{error.code.name}: {file.id}: {error.message}", list(_placed(error, file))) from None
    return done


def _placed(error: CallError, file: RuleFile) -> Iterator[str]:
    """Yield what is wrong with a rule where it stands."""
    for violation in error.violations:
        field = violation.field.removeprefix("alert_rule.").partition("[")[0]
        line = file.lines.get(field, file.lines[""])
        yield f"{file.file}:{line}: {field}: {violation.description}"


def _row(alert: pb.Alert) -> tuple[str, ...]:
    state = _word(pb.AlertState.Name(alert.state), "ALERT_STATE_")
    return (
        last_of(alert.name),
        f"{state} (silenced)" if alert.silence else state,
        _word(pb.AlertSeverity.Name(alert.severity), "ALERT_SEVERITY_"),
        alert.model_version.removeprefix("models/").replace("/versions/", " "),
        last_of(alert.rule),
        " in ".join(part for part in (alert.feature, alert.slice) if part),
        f"{alert.value:.4g}",
        f"{alert.limit:g}",
        when(alert.start_time),
        ", ".join(sorted(alert.delivery_times)),
    )


def _rule_row(rule: pb.AlertRule) -> tuple[str, ...]:
    condition = _word(pb.AlertCondition.Name(rule.condition), "ALERT_CONDITION_")
    about = f" of {', '.join(rule.features)}" if rule.features else ""
    return (
        last_of(rule.name) + ("" if rule.enabled else " (off)"),
        _word(pb.AlertSeverity.Name(rule.severity), "ALERT_SEVERITY_"),
        rule.model or "every",
        f"{rule.metric}{about} {condition} {rule.limit:g}" + (f" in {rule.slice}" if rule.slice else ""),
        format_duration(rule.for_duration.ToTimedelta()),
        ", ".join(rule.sinks),
    )


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
