"""Reports for people: ordered, written, read, listed; and what is refused."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from interlock.monitor.v1 import (
    analysis_pb2,
    analysis_service_pb2,
    feedback_service_pb2,
    feedback_service_pb2_grpc,
    http_service_pb2,
    http_service_pb2_grpc,
    report_service_pb2_grpc,
)
from interlock.monitor.v1 import report_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue
from matplotlib.image import imread

from services.monitor.adapters.window_store import SqlWindowStore
from services.monitor.domain.window_ports import Selection
from tests.fakes.browser import render
from tests.fakes.monitor_registry import FakeRegistry
from tests.fakes.monitor_traffic import Traffic, draw_traffic, hour_times, requests
from tests.integration.monitor.conftest import Monitor, running_monitor
from tests.integration.monitor.test_analysis import NAME, analysis, record, scope_of, trained_version

SERVICE = "interlock.monitor.v1.ReportService/"
NOW = np.array([0x1F, 0x6F, 0xEB]) / 255
CONTENT = "interlock.monitor.v1.MonitorHttpService/GetReportContent"


class Page(HTMLParser):
    """Collects what a page would load, its headings and its plots."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.plots: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        address = found.get("src") or found.get("xlink:href") or found.get("href") or ""
        if tag in {"script", "link", "img", "iframe", "object", "image"} or "://" in address:
            self.loads.append(f"{tag} {address}")
        if tag == "svg":
            self.plots.append(found.get("aria-label") or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    registry = FakeRegistry([trained_version(metrics={"auc": 0.9})])
    async with running_monitor(tmp_path, registry, monitor_window_interval_s=0.1) as running:
        yield running


def reports(monitor: Monitor) -> "report_service_pb2_grpc.ReportServiceAsyncStub":
    return report_service_pb2_grpc.ReportServiceStub(monitor.channel)


async def order(monitor: Monitor, form: pb.ReportFormat.ValueType = pb.REPORT_FORMAT_HTML) -> pb.Report:
    """Order a report on the last three hours and wait for its end."""
    scope = scope_of(start_s=hour_times(1, 3)[0], end_s=hour_times(1, 0)[0] + 1)
    asked = pb.CreateReportRequest(report=pb.Report(scope=scope, format=form), request_id=str(uuid.uuid4()))
    report = (await reports(monitor).CreateReport(asked)).report
    assert report.state == pb.REPORT_STATE_RUNNING
    async with asyncio.timeout(40):
        while report.state == pb.REPORT_STATE_RUNNING:
            await asyncio.sleep(0.05)
            report = (await reports(monitor).GetReport(pb.GetReportRequest(name=report.name))).report
    again = (await reports(monitor).CreateReport(asked)).report
    assert again == report, "the same order gives the same report"
    return report


async def content_of(monitor: Monitor, report: pb.Report) -> bytes:
    parts = [part async for part in reports(monitor).DownloadReport(pb.DownloadReportRequest(name=report.name))]
    assert [part.offset_bytes for part in parts] == [1024 * 1024 * index for index in range(len(parts))]
    return b"".join(part.data for part in parts)


async def seen(monitor: Monitor, shift: float = 0.0, illegal_count: int = 0) -> None:
    """Three hours of traffic, all of it labelled; in each hour so many amounts are larger than the signature allows."""
    labels = feedback_service_pb2_grpc.FeedbackServiceStub(monitor.channel)
    for hours_ago in (3, 2, 1):
        traffic: Traffic = draw_traffic(hours_ago, hour_times(400, hours_ago), shift=shift)
        traffic.amount[:illegal_count] = 5_000
        await record(monitor, requests(traffic))
        feedback = [
            feedback_service_pb2.Feedback(
                prediction_id=str(uuid.UUID(bytes=one)), label=FeatureValue(int64_value=int(truth))
            )
            for one, truth in zip(traffic.ids, traffic.label, strict=True)
        ]
        await labels.SendFeedback(feedback_service_pb2.SendFeedbackRequest(feedback=feedback))


def noted(reads: list[tuple[str, Selection]], name: str, read: Any) -> Any:
    async def reading(store: SqlWindowStore, selection: Selection) -> Any:
        reads.append((name, selection))
        return await read(store, selection)

    return reading


@pytest.mark.rpc(SERVICE + "CreateReport", "happy")
@pytest.mark.rpc(SERVICE + "GetReport", "happy")
@pytest.mark.rpc(SERVICE + "DownloadReport", "happy")
@pytest.mark.rpc(CONTENT, "happy")
async def test_a_page_loads_nothing_and_shows_everything(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    await seen(monitor, shift=2000.0)
    reads: list[tuple[str, Selection]] = []
    for name in ("read", "read_labelled"):
        monkeypatch.setattr(SqlWindowStore, name, noted(reads, name, getattr(SqlWindowStore, name)))
    report = await order(monitor)
    # The monitor looks at other stretches of time for itself meanwhile.
    asked = report.scope.start_time.ToMicroseconds(), report.scope.end_time.ToMicroseconds()
    whole = [name for name, selection in reads if (selection.start_us, selection.end_us) == asked]
    assert sorted(whole) == ["read", "read_labelled"], "all parts of a report together read a window once"
    assert (report.state, report.creator, report.error.message) == (pb.REPORT_STATE_SUCCEEDED, "local", "")
    content = await content_of(monitor, report)
    assert report.size_bytes == len(content)
    http = http_service_pb2_grpc.MonitorHttpServiceStub(monitor.channel)
    body = await http.GetReportContent(http_service_pb2.GetReportContentHttpRequest(name=report.name))
    assert (body.content_type, body.data) == ("text/html; charset=utf-8", content)
    page = Page()
    page.feed(content.decode())
    assert page.loads == []
    assert "Predictions over time" in page.plots
    assert any("training in grey" in plot for plot in page.plots)
    text = " ".join(page.text)
    assert "1,200" in text
    assert "drift" in text


async def all_labelled(monitor: Monitor, scope: analysis_pb2.AnalysisScope) -> analysis_pb2.QualityReport:
    """Ask until the labels that `seen` sends are joined."""
    while True:
        answer = await analysis(monitor).GetQualityReport(analysis_service_pb2.GetQualityReportRequest(scope=scope))
        if answer.quality_report.labelled_count == 1200:
            return answer.quality_report
        await asyncio.sleep(0.02)


async def test_a_browser_shows_the_page_whole(tmp_path: Path) -> None:
    """Every plot is there and drawn, nothing is asked for but the page, and nothing is complained of."""
    often = {"monitor_window_interval_s": 0.05, "monitor_label_join_interval_s": 0.05}
    file = tmp_path / "report.html"
    async with running_monitor(tmp_path, FakeRegistry([trained_version()]), **often) as monitor:
        await seen(monitor, shift=40.0, illegal_count=30)
        await all_labelled(monitor, scope_of(start_s=hour_times(1, 4)[0]))
        file.write_bytes(await content_of(monitor, await order(monitor)))
    rendered = await asyncio.to_thread(render, file.as_uri())
    assert rendered.requested == [file.as_uri()]
    assert rendered.problems == []
    assert "fraud, version 1" in rendered.text
    assert "1,200" in rendered.text
    labels = [plot["label"] for plot in rendered.plots]
    expected = ("Predictions over time", "AUC over time", "Calibration", "amount: training", "country: training")
    for wanted in expected:
        assert any(label.startswith(wanted) for label in labels), labels
    pixels = imread(BytesIO(rendered.screenshot))[:, :, :3]
    for plot in rendered.plots:
        assert plot["width"] > 300, plot
        assert plot["height"] > 100, plot
        top, left = round(plot["y"]), round(plot["x"])
        drawn = pixels[top : top + round(plot["height"]), left : left + round(plot["width"])]
        # What is now is blue in every plot.
        assert (np.abs(drawn - NOW).max(axis=2) < 0.05).sum() > 100, plot["label"]
    narrow = await asyncio.to_thread(render, file.as_uri(), width=520)
    assert (rendered.overflow, narrow.overflow) == (0, 0), "a page is never wider than its window"


async def test_the_same_figures_as_json(monitor: Monitor) -> None:
    await seen(monitor)
    content = json.loads(await content_of(monitor, await order(monitor, pb.REPORT_FORMAT_JSON)))
    assert content["drift_report"]["prediction_count"] == "1200"
    assert content["quality_report"]["scope"]["model_version"] == NAME
    assert content["data_quality_report"]["feature_count"] > 0


async def test_a_time_without_predictions_is_a_page_too(monitor: Monitor) -> None:
    report = await order(monitor)
    assert report.state == pb.REPORT_STATE_SUCCEEDED, report.error.message
    assert b"No labels have come" in await content_of(monitor, report)


@pytest.mark.rpc(SERVICE + "ListReports", "happy")
async def test_reports_are_listed_newest_first_and_survive_a_restart(tmp_path: Path) -> None:
    registry = FakeRegistry([trained_version()])
    async with running_monitor(tmp_path, registry, monitor_window_interval_s=0.1) as monitor:
        made = [(await order(monitor)).name for _ in range(3)]
    async with running_monitor(tmp_path, registry, monitor_window_interval_s=0.1) as monitor:
        first = await reports(monitor).ListReports(pb.ListReportsRequest(model="fraud", page_size=2))
        asked = pb.ListReportsRequest(model="fraud", page_size=2, page_token=first.next_page_token)
        second = await reports(monitor).ListReports(asked)
        assert [report.name for report in (*first.reports, *second.reports)] == made[::-1]
        assert second.next_page_token == ""
        assert not (await reports(monitor).ListReports(pb.ListReportsRequest(model="other"))).reports
        assert await content_of(monitor, first.reports[0])


@pytest.mark.rpc(SERVICE + "CreateReport", "error")
@pytest.mark.rpc(SERVICE + "GetReport", "error")
@pytest.mark.rpc(SERVICE + "ListReports", "error")
@pytest.mark.rpc(SERVICE + "DownloadReport", "error")
@pytest.mark.rpc(CONTENT, "error")
async def test_what_is_wrong_is_named(monitor: Monitor) -> None:
    service, http = reports(monitor), http_service_pb2_grpc.MonitorHttpServiceStub(monitor.channel)
    unknown = pb.CreateReportRequest(report=pb.Report(scope=scope_of("models/fraud/versions/9")))
    wrong = pb.CreateReportRequest(report=pb.Report(scope=scope_of("fraud")), request_id="now")
    download = service.DownloadReport(pb.DownloadReportRequest(name="reports/none"))
    for call, code, word in (
        (service.CreateReport(unknown), grpc.StatusCode.NOT_FOUND, "models/fraud/versions/9"),
        (service.CreateReport(wrong), grpc.StatusCode.INVALID_ARGUMENT, "report.scope.model_version"),
        (service.GetReport(pb.GetReportRequest(name="fraud")), grpc.StatusCode.INVALID_ARGUMENT, "reports/{report}"),
        (service.ListReports(pb.ListReportsRequest(page_size=-1)), grpc.StatusCode.INVALID_ARGUMENT, "page_size"),
        (download.read(), grpc.StatusCode.NOT_FOUND, "reports/none"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code
        assert word in (caught.value.details() or "")
    # REST twins answer OK with the error as their body.
    page = http.GetReportContent(http_service_pb2.GetReportContentHttpRequest(name="reports/none"))
    assert json.loads((await page).data)["message"] == '"reports/none" does not exist'
    assert dict(await page.initial_metadata())["x-interlock-http-status"] == "404"
