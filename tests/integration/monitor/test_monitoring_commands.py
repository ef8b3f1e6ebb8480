"""`interlock drift`, `data-quality`, `quality`, `fairness` and `report` against a real monitor, beside what its RPCs say."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from interlock.monitor.v1 import analysis_pb2, monitoring_policy_pb2
from interlock.monitor.v1 import analysis_service_pb2 as pb
from interlock.monitor.v1 import monitoring_policy_service_pb2 as policy_pb
from interlock.types.v1.interval_pb2 import Interval
from structlog.testing import capture_logs
from typer.testing import CliRunner

from interlock_cli.commands.monitoring import amount
from interlock_cli.errors import CommandFailed
from interlock_cli.main import app
from tests.fakes.monitor_registry import FakeRegistry
from tests.fakes.monitor_traffic import HOUR_S, hour_times
from tests.integration.monitor.conftest import Monitor, running_monitor
from tests.integration.monitor.test_analysis import NAME, analysis, scope_of, trained_version
from tests.integration.monitor.test_reports import Page, all_labelled, seen

_PSI = analysis_pb2.DRIFT_METRIC_PSI


class Commands:
    """Runs commands against a monitor in this process, on the four hours before this one."""

    def __init__(self, monitor: Monitor) -> None:
        self._target = f"127.0.0.1:{monitor.serving.ports[0]}"
        self.end_s = hour_times(1, 0)[0] + HOUR_S / 2
        self.start_s = self.end_s - 4 * HOUR_S

    async def run(self, command: str, *options: str) -> str:
        between = [datetime.fromtimestamp(time_s, UTC).isoformat() for time_s in (self.start_s, self.end_s)]
        arguments = [command, "fraud", "--version", "1", "--start", between[0], "--end", between[1]]
        arguments += ["--target", self._target, *options]
        answer = await asyncio.to_thread(CliRunner().invoke, app, arguments, catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    async def table(self, command: str, *options: str) -> tuple[str, dict[tuple[str, ...], list[str]]]:
        """Return the line above the table, and its rows by their first two cells."""
        head, _, *rows = (await self.run(command, *options)).splitlines()
        cells = [re.split(r"  +", row) for row in rows]
        return head, {tuple(row[:2]): row for row in cells}


async def test_each_command_shows_what_the_monitor_found_as_table_and_as_json(tmp_path: Path) -> None:
    registry = FakeRegistry([trained_version(metrics={"auc": 0.9})])
    often = {"monitor_window_interval_s": 0.05, "monitor_label_join_interval_s": 0.05}
    # The monitor in this process would write its log into what the commands print.
    with capture_logs():
        async with running_monitor(tmp_path, registry, **often) as monitor:
            await _check_commands(monitor, tmp_path)


async def _check_commands(monitor: Monitor, folder: Path) -> None:
    policy = monitoring_policy_pb2.MonitoringPolicy(
        name="monitoringPolicies/fraud", fairness_groups=[monitoring_policy_pb2.FairnessGroup(feature="country")]
    )
    await monitor.policies.UpdateMonitoringPolicy(policy_pb.UpdateMonitoringPolicyRequest(monitoring_policy=policy))
    # First, so that a new hour between the two lines changes nothing.
    commands = Commands(monitor)
    await seen(monitor, shift=60.0, illegal_count=100)
    scope = scope_of(start_s=commands.start_s, end_s=commands.end_s)

    quality = await all_labelled(monitor, scope)
    drift = (await analysis(monitor).GetDriftReport(pb.GetDriftReportRequest(scope=scope))).drift_report
    checks = await analysis(monitor).GetDataQualityReport(pb.GetDataQualityReportRequest(scope=scope))
    fairness = await analysis(monitor).GetFairnessReport(pb.GetFairnessReportRequest(scope=scope))
    reports: dict[str, Message] = {
        "drift": drift,
        "data-quality": checks.data_quality_report,
        "quality": quality,
        "fairness": fairness.fairness_report,
    }
    for command, found in reports.items():
        said = ParseDict(json.loads(await commands.run(command, "--json")), type(found)())
        assert said == found, command
    await _check_drift(commands, drift)
    await _check_data_quality(commands, checks.data_quality_report)
    await _check_quality(commands, quality)
    await _check_fairness(commands, fairness.fairness_report)
    await _check_report(commands, folder / "pages")
    with pytest.raises(CommandFailed, match="models/fraud/versions/9"):
        await commands.run("quality", "--version", "9")


def _with_interval(value: Interval) -> str:
    return f"{amount(value.estimate)} ({amount(value.lower)} to {amount(value.upper)})"


async def _check_drift(commands: Commands, report: analysis_pb2.DriftReport) -> None:
    head, rows = await commands.table("drift")
    assert f"{NAME}, " in head
    assert "1,200 predictions" in head
    assert f"of {len(report.features)} drifted from the baseline" in head
    shown = {row[0]: row for row in rows.values()}
    for feature in report.features:
        (psi,) = [one.value for one in feature.statistics if one.metric == _PSI]
        row = shown[f"{feature.name} (output)" if feature.is_output else feature.name]
        assert row[2] == _with_interval(psi)
        assert row[-2] == f"{feature.missing_share:.1%}"
    assert shown.keys() >= {"amount", "country", "probability/fraud (output)"}
    _, one = await commands.table("drift", "--feature", "amount")
    assert [row[0] for row in one.values()] == ["amount"]


async def _check_data_quality(commands: Commands, report: analysis_pb2.DataQualityReport) -> None:
    head, rows = await commands.table("data-quality")
    assert f"{report.feature_count} features checked" in head
    assert len(rows) == len(report.findings) > 0
    assert rows["range", "amount"][2:4] == ["300", "25.00%"]


async def _check_quality(commands: Commands, report: analysis_pb2.QualityReport) -> None:
    head, rows = await commands.table("quality")
    assert "1,200 with a label" in head
    assert "0 may still get one" in head
    assert {name for name, _ in rows} == {metric.name for metric in report.metrics} >= {"auc", "brier", "log_loss"}
    for metric in report.metrics:
        value = metric.value
        assert rows[metric.name, "measured"][2:4] == [
            amount(value.estimate),
            f"{amount(value.lower)} to {amount(value.upper)}",
        ]
    assert rows["auc", "measured"][4:] == ["0.9", "higher"]


async def _check_fairness(commands: Commands, report: analysis_pb2.FairnessReport) -> None:
    _, rows = await commands.table("fairness")
    assert len(rows) == len(report.groups) == 3
    for group in report.groups:
        row = rows["country", f"{group.group} (reference)" if group.is_reference else group.group]
        assert row[2] == f"{group.prediction_count:,}"
        assert row[3] == _with_interval(group.positive_rate)
        if not group.is_reference:
            assert row[4] == _with_interval(group.gaps["demographic_parity"])
    assert {row[1] for row in rows.values()} == {"NO (reference)", "SE", "DK"}


async def _check_report(commands: Commands, folder: Path) -> None:
    read: dict[str, Callable[[], Any]] = {
        "html": lambda: _page(folder / "fraud-1.html"),
        "json": lambda: json.loads((folder / "fraud-1.json").read_text("utf-8")),
    }
    said = await commands.run("report", "--output", str(folder))
    assert re.search(rf"^{NAME}: http://127\.0\.0\.1:\d+/v1/reports/[^/]+/content$", said, re.MULTILINE)
    assert f"written to {folder / 'fraud-1.html'}" in said
    assert "Predictions over time" in read["html"]().plots
    await commands.run("report", "--output", str(folder), "--json")
    assert read["json"]()["quality_report"]["labelled_count"] == "1200"


def _page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    return page
