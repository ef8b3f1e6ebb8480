"""Commands about how versions are doing."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from interlock.monitor.v1 import analysis_pb2 as pb
from interlock.monitor.v1 import report_service_pb2 as report_pb
from interlock.types.v1.interval_pb2 import Interval

from interlock_cli.commands.models import last_of
from interlock_cli.commands.running import Target, call, settings
from interlock_cli.errors import CommandFailed
from interlock_cli.output import Row, print_json, print_table, say
from interlock_cli.stack.plan import edge_address
from interlock_cli.wire_json import to_json
from interlock_sdk.client import Client
from interlock_sdk.deployments import DEFAULT_ENVIRONMENT
from services.common.duration_text import DURATION_FORM, parse_duration

_ReportT = TypeVar("_ReportT", pb.DriftReport, pb.DataQualityReport, pb.QualityReport, pb.FairnessReport)
_PSI: Final = pb.DRIFT_METRIC_PSI
_JENSEN_SHANNON: Final = pb.DRIFT_METRIC_JENSEN_SHANNON
_SHAPE: Final = (pb.DRIFT_METRIC_KOLMOGOROV_SMIRNOV, pb.DRIFT_METRIC_CHI_SQUARE)
_WASSERSTEIN: Final = pb.DRIFT_METRIC_WASSERSTEIN
_GAPS: Final = ("demographic_parity", "equal_opportunity", "predictive_parity", "false_positive_rate")


@dataclass(frozen=True, slots=True)
class Question:
    """What the options of a command ask for."""

    model: str
    version: str
    scope: pb.AnalysisScope
    target: str
    as_json: bool


def question_of(
    model: Annotated[str, typer.Argument(help="Id of the model.")],
    *,
    version: Annotated[
        str, typer.Option("--version", help="Id, semantic label or alias. Default: every version that has traffic.")
    ] = "",
    since: Annotated[
        str, typer.Option("--since", help="How far back, such as 24h or 7d. Default: the last complete window.")
    ] = "",
    start: Annotated[
        str, typer.Option("--start", help="First time, such as 2026-03-01T12:00, UTC; not with --since.")
    ] = "",
    end: Annotated[str, typer.Option("--end", help="Last time. Default: the end of the last complete window.")] = "",
    slice_name: Annotated[str, typer.Option("--slice", help="A slice of the policy.")] = "",
    variant: Annotated[str, typer.Option("--variant", help="A variant of the route.")] = "",
    env: Annotated[str, typer.Option("--env", help="Environment.")] = DEFAULT_ENVIRONMENT,
    target: Target = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of tables, or of a page.")] = False,
) -> Question:
    """Return what the options that all these commands have ask for; raises CommandFailed."""
    scope = scope_of(since=since, start=start, end=end, slice_name=slice_name, variant=variant, environment=env)
    return Question(model, version, scope, target, as_json)


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `question_of` beside its own; it gets the question."""
    shared, own = signature(question_of).parameters, list(signature(command).parameters.values())[1:]

    def run(**options: Any) -> None:
        given = {name: options.pop(name) for name in shared}
        command(question_of(given.pop("model"), **given), **options)

    parameters = [*shared.values(), *own]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    # What Typer reads.
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@asking
def drift(
    question: Question,
    *,
    against: Annotated[str, typer.Option(help="Version to compare with instead of the baseline.")] = "",
    feature: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again.")] = None,
) -> None:
    """Compare what a version gets and gives with its baseline."""

    async def ask(client: Client, scope: pb.AnalysisScope) -> pb.DriftReport:
        reference = None
        if against:
            reference = pb.AnalysisScope()
            reference.CopyFrom(scope)
            reference.model_version = f"models/{question.model}/versions/{against}"
        return await client.monitoring.drift(scope, reference=reference, features=feature or ())

    _answer(question, ask, _show_drift)


@asking
def data_quality(question: Question) -> None:
    """Check what a version gets: nulls, ranges, categories, age, volume."""
    _answer(question, lambda client, scope: client.monitoring.data_quality(scope), _show_data_quality)


@asking
def quality(
    question: Question,
    *,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Also estimate from confidences, without labels.")
    ] = False,
) -> None:
    """Measure what a version said against what came true."""

    async def ask(client: Client, scope: pb.AnalysisScope) -> pb.QualityReport:
        return await client.monitoring.quality(scope, include_estimates=estimate)

    _answer(question, ask, _show_quality)


@asking
def fairness(question: Question) -> None:
    """Compare how groups fare; `interlock policy set` names them."""
    _answer(question, lambda client, scope: client.monitoring.fairness(scope), _show_fairness)


@asking
def report(
    question: Question,
    *,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the pages, too.")] = None,
) -> None:
    """Write a page about a version: traffic, quality, calibration, drift, groups; prints its address."""
    form = report_pb.REPORT_FORMAT_JSON if question.as_json else report_pb.REPORT_FORMAT_HTML

    async def work(client: Client) -> list[str]:
        shown = []
        for scope in await _scopes(client, question):
            made = await client.reports.create(scope, form)
            edge = question.target or edge_address(settings())
            shown.append(f"{scope.model_version}: http://{edge}/v1/{made.name}/content")
            if output is not None:
                ending = "json" if question.as_json else "html"
                name = f"{question.model}-{last_of(scope.model_version)}.{ending}"
                output.mkdir(parents=True, exist_ok=True)
                (output / name).write_bytes(await client.reports.download(made.name))
                shown.append(f"  written to {output / name}")
        return shown

    for line in call(question.target, work):
        say(line)


def scope_of(*, since: str, start: str, end: str, slice_name: str, variant: str, environment: str) -> pb.AnalysisScope:
    """Return the scope of the options, without a version; raises CommandFailed."""
    scope = pb.AnalysisScope(environment=environment, slice=slice_name, variant=variant)
    if since and start:
        raise CommandFailed("--since: want either --since or --start, got both")
    if since:
        length = parse_duration(since)
        if not length:
            raise CommandFailed(f"--since: want {DURATION_FORM}, got {since!r}")
        scope.start_time.FromDatetime(datetime.now(UTC) - length)
    for option, text, stamp in (("--start", start, scope.start_time), ("--end", end, scope.end_time)):
        if text:
            stamp.FromDatetime(_time(option, text))
    return scope


def amount(value: float) -> str:
    """Return a figure as people read it: four significant digits, no exponent for what is not tiny."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def interval(value: Interval) -> str:
    """Return an estimate with its interval."""
    return f"{amount(value.estimate)} ({amount(value.lower)} to {amount(value.upper)})"


def _time(option: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise CommandFailed(f"{option}: want a time such as 2026-03-01T12:00, got {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _answer(
    question: Question,
    ask: Callable[[Client, pb.AnalysisScope], Awaitable[_ReportT]],
    show: Callable[[_ReportT], None],
) -> None:
    async def work(client: Client) -> list[_ReportT]:
        return [await ask(client, scope) for scope in await _scopes(client, question)]

    reports = call(question.target, work)
    if question.as_json:
        shown = [to_json(report) for report in reports]
        print_json(shown[0] if question.version else shown)
        return
    for index, report in enumerate(reports):
        if index:
            say()
        show(report)


async def _scopes(client: Client, question: Question) -> list[pb.AnalysisScope]:
    """Return the scope of each version that is asked for."""
    scopes = []
    for version in await _versions(client, question):
        scope = pb.AnalysisScope()
        scope.CopyFrom(question.scope)
        scope.model_version = f"models/{question.model}/versions/{version}"
        scopes.append(scope)
    return scopes


async def _versions(client: Client, question: Question) -> list[str]:
    """Return the version asked for, or all that the route gives traffic to."""
    if question.version:
        return [question.version]
    route = await client.routes.get(question.model, question.scope.environment)
    taken = {variant.deployment for variant in route.variants} if route is not None else set()
    deployed = [found async for found in client.deployments.list(question.model, question.scope.environment)]
    versions = {last_of(found.model_version) for found in deployed if found.name in taken}
    if not versions:
        raise CommandFailed(
            f"{question.model} has no traffic in {question.scope.environment}", ["--version names a version"]
        )
    return sorted(versions, key=lambda version: (len(version), version))


def _head(scope: pb.AnalysisScope, *facts: str) -> None:
    begin, end = (datetime.fromtimestamp(stamp.seconds, UTC) for stamp in (scope.start_time, scope.end_time))
    until = f"{end:%H:%M}" if begin.date() == end.date() else f"{end:%Y-%m-%d %H:%M}"
    parts = [f"{begin:%Y-%m-%d %H:%M} to {until} UTC"]
    parts += [f"slice {scope.slice}"] * bool(scope.slice) + [f"variant {scope.variant}"] * bool(scope.variant)
    say(f"{scope.model_version}, {', '.join([*parts, *facts])}")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _show_drift(report: pb.DriftReport) -> None:
    compared = report.reference.model_version if report.HasField("reference") else "the baseline"
    drifted = sum(feature.drifted for feature in report.features)
    verdict = f"{drifted} of {len(report.features)} drifted from {compared}"
    _head(report.scope, _counted(report.prediction_count, "prediction"), *[verdict] * bool(report.features))
    columns = ("feature", "drift", "psi", "usual psi", "jensen-shannon", "ks or v", "wasserstein", "missing", "before")
    print_table(columns, list(map(_drift_row, report.features)), empty="no predictions in this time")


def _drift_row(feature: pb.FeatureDrift) -> Row:
    statistics = {statistic.metric: statistic for statistic in feature.statistics}
    shape = next((statistics[metric] for metric in _SHAPE if metric in statistics), None)
    return (
        f"{feature.name} (output)" if feature.is_output else feature.name,
        f"{'DRIFT ' * feature.drifted}{'(few past windows)' * feature.few_past_windows}".strip(),
        interval(statistics[_PSI].value) if _PSI in statistics else "",
        f"up to {amount(statistics[_PSI].null_quantile_95)}" if _PSI in statistics else "",
        amount(statistics[_JENSEN_SHANNON].value.estimate) if _JENSEN_SHANNON in statistics else "",
        amount(shape.value.estimate) if shape is not None else "",
        amount(statistics[_WASSERSTEIN].value.estimate) if _WASSERSTEIN in statistics else "",
        f"{feature.missing_share:.1%}",
        f"{feature.baseline_missing_share:.1%}",
    )


def _show_data_quality(report: pb.DataQualityReport) -> None:
    expected = f"about {report.expected_count:,.0f} expected" if report.HasField("expected_count") else ""
    count = _counted(report.prediction_count, "prediction")
    _head(report.scope, count, *[expected] * bool(expected), _counted(report.feature_count, "feature") + " checked")
    rows = [
        (
            pb.DataQualityCheck.Name(finding.check).removeprefix("DATA_QUALITY_CHECK_").lower().replace("_", " "),
            finding.feature,
            f"{finding.count:,}",
            f"{finding.share:.2%}",
            finding.expected,
            ", ".join(finding.examples),
        )
        for finding in report.findings
    ]
    print_table(("check", "feature", "count", "share", "expected", "found"), rows, empty="nothing is wrong")


def _show_quality(report: pb.QualityReport) -> None:
    facts = (
        _counted(report.prediction_count, "prediction"),
        f"{report.labelled_count:,} with a label",
        f"{report.pending_count:,} may still get one",
    )
    _head(report.scope, *facts)
    rows = [
        (
            metric.name,
            _how(metric),
            amount(metric.value.estimate),
            f"{amount(metric.value.lower)} to {amount(metric.value.upper)}" if metric.value.level else "not stated",
            amount(metric.baseline_value) if metric.HasField("baseline_value") else "",
            "higher" if metric.higher_is_better else "lower",
        )
        for metric in report.metrics
    ]
    print_table(("metric", "how", "value", "95 %", "baseline", "better is"), rows, empty="no labels yet")


def _how(metric: pb.QualityMetric) -> str:
    if not metric.estimated:
        return "measured"
    if metric.basis == pb.ESTIMATE_BASIS_DRIFTED_INPUTS:
        return f"estimated, no labels yet with {', '.join(metric.unsupported_inputs)} as now"
    if metric.basis == pb.ESTIMATE_BASIS_NO_BASELINE:
        return "estimated, no baseline tells whether inputs have drifted"
    if not metric.HasField("coverage"):
        return "estimated, not yet held against labels"
    known = f"{metric.coverage.lower:.0%} to {metric.coverage.upper:.0%} of such intervals are"
    return f"estimated, right in {metric.held_count} of {_counted(metric.checked_count, 'past label window')} ({known})"


def _show_fairness(report: pb.FairnessReport) -> None:
    _head(report.scope)
    columns = ("feature", "group", "predictions", "positive rate", *(gap.replace("_", " ") for gap in _GAPS))
    rows = list(_fairness_rows(report.groups))
    print_table(columns, rows, empty="the policy names no groups; `interlock policy set` does")


def _fairness_rows(groups: Sequence[pb.GroupFairness]) -> Iterator[Row]:
    for group in groups:
        name = f"{group.group} (reference)" if group.is_reference else group.group
        count = f"{group.prediction_count:,}" + ("" if group.judged else " (too few)")
        gaps = [interval(group.gaps[gap]) if gap in group.gaps else "" for gap in _GAPS]
        yield (group.feature, name, count, interval(group.positive_rate), *gaps)
