"""What is asked about versions, through the wire, beside the same figures computed directly."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interlock.monitor.v1 import analysis_pb2, analysis_service_pb2_grpc, monitoring_policy_pb2
from interlock.monitor.v1 import analysis_service_pb2 as pb
from interlock.monitor.v1 import monitor_service_pb2 as monitor_pb
from interlock.monitor.v1 import monitoring_policy_service_pb2 as policy_pb
from interlock.registry.v1.model_version_pb2 import ModelVersion
from interlock.types.v1.feature_value_pb2 import FeatureValue
from prometheus_client import generate_latest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from tests.fakes.monitor_registry import FakeRegistry, model_version
from tests.fakes.monitor_traffic import HOUR_S, Traffic, draw_traffic, fraud_profiles, hour_times, requests
from tests.integration.monitor.conftest import Monitor, running_monitor

DRIFT = "interlock.monitor.v1.AnalysisService/GetDriftReport"
DATA_QUALITY = "interlock.monitor.v1.AnalysisService/GetDataQualityReport"
QUALITY = "interlock.monitor.v1.AnalysisService/GetQualityReport"
FAIRNESS = "interlock.monitor.v1.AnalysisService/GetFairnessReport"
NAME = "models/fraud/versions/1"
TRAINING = draw_traffic(0, hour_times(3000, 1))


def trained_version(version: int = 1, **more: Any) -> ModelVersion:
    features, outputs = fraud_profiles(TRAINING)
    return model_version(version=version, profiles=features, output_profiles=outputs, **more)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Monitor]:
    registry = FakeRegistry([trained_version(), trained_version(2), model_version("bare")])
    async with running_monitor(tmp_path, registry, monitor_window_interval_s=0.1) as running:
        yield running


async def record(monitor: Monitor, *streams: Iterable[monitor_pb.RecordPredictionsRequest]) -> None:
    for stream in streams:

        async def batches(stream: Any = stream) -> AsyncIterator[monitor_pb.RecordPredictionsRequest]:
            for request in stream:
                yield request

        await monitor.stub.RecordPredictions(batches())


def analysis(monitor: Monitor) -> "analysis_service_pb2_grpc.AnalysisServiceAsyncStub":
    return analysis_service_pb2_grpc.AnalysisServiceStub(monitor.channel)


def scope_of(name: str = NAME, *, start_s: float = 0.0, end_s: float = 0.0, **more: Any) -> analysis_pb2.AnalysisScope:
    scope = analysis_pb2.AnalysisScope(model_version=name, **more)
    for stamp, time_s in ((scope.start_time, start_s), (scope.end_time, end_s)):
        if time_s:
            stamp.FromMicroseconds(int(time_s * 1e6))
    return scope


async def drift_when(
    monitor: Monitor, enough: Callable[[analysis_pb2.DriftReport], bool], scope: analysis_pb2.AnalysisScope, **more: Any
) -> analysis_pb2.DriftReport:
    """Ask until the answer has everything that was sent: the router's stream does not wait for windows."""
    while True:
        request = pb.GetDriftReportRequest(scope=scope, **more)
        report = (await analysis(monitor).GetDriftReport(request)).drift_report
        if enough(report):
            return report
        await asyncio.sleep(0.05)


def refused(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, list[str]]:
    reason, fields = "", []
    for packed in rpc_status.from_call(error).details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if packed.Unpack(info):
            reason = info.reason
        if packed.Unpack(request):
            fields = [violation.field for violation in request.field_violations]
    return error.code(), reason, fields


def value_of(report: analysis_pb2.DriftReport, feature: str, metric: Any) -> float:
    (found,) = [one for one in report.features if one.name == feature]
    (statistic,) = [one for one in found.statistics if one.metric == metric]
    return statistic.value.estimate


@pytest.mark.rpc(DRIFT, "happy")
async def test_drift_is_what_the_same_data_gives_directly(watched: Monitor) -> None:
    now = draw_traffic(1, hour_times(2000, 0))
    # Larger amounts, none of them outside of what the baseline has seen.
    now.amount[:] = np.clip(now.amount * 1.6, TRAINING.amount.min(), TRAINING.amount.max())
    await record(watched, requests(now, rows=300))
    report = await drift_when(watched, lambda found: found.prediction_count == 2000, scope_of())
    edges = np.array(fraud_profiles(TRAINING)[0][0].numeric.bin_edges)
    before, after = (np.histogram(traffic.amount, edges)[0] for traffic in (TRAINING, now))
    assert after.min() > 0
    p, q = before / before.sum(), after / after.sum()
    psi = float(((q - p) * np.log(q / p)).sum())
    assert value_of(report, "amount", analysis_pb2.DRIFT_METRIC_PSI) == pytest.approx(psi, abs=1e-6)
    distance = float(jensenshannon(before, after, 2))
    assert value_of(report, "amount", analysis_pb2.DRIFT_METRIC_JENSEN_SHANNON) == pytest.approx(distance, abs=1e-6)
    # Whole numbers have a bin each, so nothing is lost by binning.
    wasserstein = stats.wasserstein_distance(TRAINING.items, now.items)
    assert value_of(report, "items", analysis_pb2.DRIFT_METRIC_WASSERSTEIN) == pytest.approx(wasserstein, abs=1e-6)
    table = [[traffic.country.count(one) for one in ("NO", "SE", "DK")] for traffic in (TRAINING, now)]
    cramers_v = np.sqrt(stats.chi2_contingency(table, correction=False).statistic / np.sum(table))
    assert value_of(report, "country", analysis_pb2.DRIFT_METRIC_CHI_SQUARE) == pytest.approx(cramers_v, abs=1e-6)
    # The busy hour of a week like the baseline's may have such amounts: nobody knows yet.
    assert all(feature.few_past_windows and not feature.drifted for feature in report.features)
    outputs = {feature.name for feature in report.features if feature.is_output}
    assert outputs == {"probability/fine", "probability/fraud"}
    assert report.baseline_digest == watched.registry.versions[NAME].digest


async def test_a_version_is_compared_with_another_or_with_its_own_past(watched: Monitor) -> None:
    await record(watched, requests(draw_traffic(2, hour_times(800, 1))))
    await record(watched, requests(draw_traffic(3, hour_times(800, 0), shift=40.0), version="2", variant="b"))
    reference = scope_of(end_s=hour_times(1, 1)[0])
    report = await drift_when(
        watched,
        lambda found: found.prediction_count == 800,
        scope_of("models/fraud/versions/2"),
        reference=reference,
        features=["amount"],
    )
    (amount,) = report.features
    assert amount.drifted
    assert report.reference.model_version == NAME
    assert not report.baseline_digest


async def test_slices_and_variants_are_parts_of_everything(watched: Monitor) -> None:
    policy = monitoring_policy_pb2.MonitoringPolicy(
        name="monitoringPolicies/fraud",
        slices=[
            monitoring_policy_pb2.Slice(name="small", feature="amount", maximum=60),
            monitoring_policy_pb2.Slice(
                name="nordic", feature="country", values=[FeatureValue(string_value=one) for one in ("NO", "SE")]
            ),
            monitoring_policy_pb2.Slice(name="members", feature="member", values=[FeatureValue(bool_value=True)]),
        ],
    )
    await watched.policies.UpdateMonitoringPolicy(policy_pb.UpdateMonitoringPolicyRequest(monitoring_policy=policy))
    first, second = draw_traffic(4, hour_times(500, 0)), draw_traffic(5, hour_times(300, 0))
    await record(watched, requests(first), requests(second, variant="b"))
    await drift_when(watched, lambda found: found.prediction_count == 800, scope_of())

    async def count(**more: Any) -> int:
        request = pb.GetDriftReportRequest(scope=scope_of(**more))
        return (await analysis(watched).GetDriftReport(request)).drift_report.prediction_count

    assert await count(variant="b") == 300
    assert await count(variant="nobody") == 0
    both = np.concatenate([first.amount, second.amount])
    assert await count(slice="small") == np.count_nonzero(both < 60)
    assert await count(slice="nordic", variant="main") == 500 - first.country.count("DK")
    assert await count(slice="members", variant="b") == second.member.sum()


@pytest.mark.rpc(DATA_QUALITY, "happy")
async def test_data_quality_names_what_is_wrong(watched: Monitor) -> None:
    await record(watched, requests(draw_traffic(6, hour_times(500, 1))))
    traffic = draw_traffic(7, hour_times(400, 0))
    traffic.amount[:40] = np.nan
    traffic.amount[40:60] = 5_000.0
    countries = ("US",) * 50 + traffic.country[50:]
    odd = Traffic(**{**{name: getattr(traffic, name) for name in Traffic.__dataclass_fields__}, "country": countries})
    await record(watched, requests(odd))
    await drift_when(watched, lambda found: found.prediction_count == 400, scope_of())
    request = pb.GetDataQualityReportRequest(scope=scope_of())
    report = (await analysis(watched).GetDataQualityReport(request)).data_quality_report
    found = {(finding.feature, finding.check): finding for finding in report.findings}
    assert set(found) == {
        ("amount", analysis_pb2.DATA_QUALITY_CHECK_NULLS),
        ("amount", analysis_pb2.DATA_QUALITY_CHECK_RANGE),
        ("country", analysis_pb2.DATA_QUALITY_CHECK_RANGE),
        ("country", analysis_pb2.DATA_QUALITY_CHECK_NEW_CATEGORY),
    }
    nulls = found["amount", analysis_pb2.DATA_QUALITY_CHECK_NULLS]
    assert (nulls.count, nulls.share) == (40, 0.1)
    outside = found["amount", analysis_pb2.DATA_QUALITY_CHECK_RANGE]
    assert (outside.count, outside.expected, list(outside.examples)) == (20, "0 to 1000", ["5000"])
    assert list(found["country", analysis_pb2.DATA_QUALITY_CHECK_NEW_CATEGORY].examples) == ["US"]
    assert (report.feature_count, report.HasField("expected_count")) == (4, False)


@pytest.mark.rpc(FAIRNESS, "happy")
async def test_fairness_compares_the_groups_of_the_policy(watched: Monitor) -> None:
    groups = [
        monitoring_policy_pb2.FairnessGroup(feature="country", reference_value=FeatureValue(string_value="SE")),
        monitoring_policy_pb2.FairnessGroup(feature="member", minimum_count=10_000),
    ]
    policy = monitoring_policy_pb2.MonitoringPolicy(name="monitoringPolicies/fraud", fairness_groups=groups)
    await watched.policies.UpdateMonitoringPolicy(policy_pb.UpdateMonitoringPolicyRequest(monitoring_policy=policy))
    traffic = draw_traffic(8, hour_times(900, 0))
    await record(watched, requests(traffic))
    await drift_when(watched, lambda found: found.prediction_count == 900, scope_of())
    answer = await analysis(watched).GetFairnessReport(pb.GetFairnessReportRequest(scope=scope_of()))
    shown = {(group.feature, group.group): group for group in answer.fairness_report.groups}
    countries = np.array(traffic.country)
    rates = {one: float((traffic.chance[countries == one] >= 0.5).mean()) for one in ("NO", "SE", "DK")}
    assert shown["country", "SE"].is_reference
    for one, rate in rates.items():
        assert shown["country", one].positive_rate.estimate == pytest.approx(rate)
    gap = shown["country", "DK"].gaps["demographic_parity"]
    assert gap.estimate == pytest.approx(rates["DK"] - rates["SE"])
    assert not shown["member", "true"].judged


@pytest.mark.rpc(QUALITY, "happy")
async def test_a_scope_without_predictions_has_counts_of_0(watched: Monitor) -> None:
    scope = scope_of(start_s=time.time() - 30 * HOUR_S, end_s=time.time() - 28 * HOUR_S)
    drift = (await analysis(watched).GetDriftReport(pb.GetDriftReportRequest(scope=scope))).drift_report
    assert (drift.prediction_count, len(drift.features)) == (0, 0)
    answer = await analysis(watched).GetQualityReport(pb.GetQualityReportRequest(scope=scope))
    quality = answer.quality_report
    assert (quality.prediction_count, quality.labelled_count, quality.pending_count) == (0, 0, 0)
    # Widened to whole windows.
    assert quality.scope.start_time.seconds % 3600 == 0
    assert quality.scope.end_time.seconds - quality.scope.start_time.seconds == 3 * 3600


@pytest.mark.rpc(DRIFT, "error")
@pytest.mark.rpc(DATA_QUALITY, "error")
@pytest.mark.rpc(QUALITY, "error")
@pytest.mark.rpc(FAIRNESS, "error")
async def test_questions_that_cannot_be_answered_say_why(watched: Monitor) -> None:
    stub = analysis(watched)
    now = time.time()
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    precondition = grpc.StatusCode.FAILED_PRECONDITION
    reversed_scope = scope_of(start_s=now - 60, end_s=now - 120)
    for call, code, reason, fields in (
        (
            stub.GetDriftReport(pb.GetDriftReportRequest(scope=scope_of("models/fraud", slice="a/b"))),
            invalid,
            "INVALID_FIELD",
            ["scope.model_version", "scope.slice"],
        ),
        (
            stub.GetDriftReport(pb.GetDriftReportRequest(scope=scope_of("models/bare/versions/1"))),
            precondition,
            "NO_BASELINE",
            [],
        ),
        (
            stub.GetDriftReport(pb.GetDriftReportRequest(scope=scope_of(), features=["amount", "colour"])),
            invalid,
            "INVALID_FIELD",
            ["features[1]"],
        ),
        (
            stub.GetDataQualityReport(pb.GetDataQualityReportRequest(scope=reversed_scope)),
            invalid,
            "INVALID_WINDOW",
            ["scope.end_time"],
        ),
        (
            stub.GetQualityReport(pb.GetQualityReportRequest(scope=scope_of(), metrics=["vibes"])),
            invalid,
            "UNKNOWN_METRIC",
            ["metrics[0]"],
        ),
        (
            stub.GetQualityReport(pb.GetQualityReportRequest(scope=scope_of(), include_estimates=True)),
            precondition,
            "NOT_CALIBRATED",
            [],
        ),
        (
            stub.GetFairnessReport(pb.GetFairnessReportRequest(scope=scope_of("models/fraud/versions/9"))),
            missing,
            "RESOURCE_NOT_FOUND",
            [],
        ),
        (
            stub.GetFairnessReport(pb.GetFairnessReportRequest(scope=scope_of(slice="nobody"))),
            invalid,
            "INVALID_FIELD",
            ["scope.slice"],
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert refused(caught.value) == (code, reason, fields)


async def test_the_last_window_of_a_version_is_exposed_to_prometheus(tmp_path: Path) -> None:
    often = {"monitor_window_interval_s": 0.05, "monitor_standing_interval_s": 0.05}
    async with running_monitor(tmp_path, FakeRegistry([trained_version()]), **often) as monitor:
        await record(monitor, requests(draw_traffic(9, hour_times(500, 0), shift=2000.0)))
        who = 'environment="production",model="fraud",version="1"'
        labels = 'environment="production",feature="amount",model="fraud",version="1"'
        while f"interlock_monitor_feature_drifted{{{labels}}} 1.0" not in _metrics(monitor):
            await asyncio.sleep(0.05)
        assert f"interlock_monitor_window_predictions{{{who}}} 500.0" in _metrics(monitor)
        assert f"interlock_monitor_unlabelled_predictions{{{who}}} 500.0" in _metrics(monitor)


def _metrics(monitor: Monitor) -> str:
    return re.sub(
        r"\{(.*)\}",
        lambda found: "{" + ",".join(sorted(found[1].split(","))) + "}",
        generate_latest(monitor.serving.runtime.registry).decode(),
    )
