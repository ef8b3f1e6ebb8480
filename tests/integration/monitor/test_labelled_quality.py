"""Labels, from the call that brings them to the figures they give, beside the same figures computed directly."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from interlock.monitor.v1 import analysis_pb2, feedback_service_pb2, feedback_service_pb2_grpc, monitoring_policy_pb2
from interlock.monitor.v1 import analysis_service_pb2 as pb
from interlock.monitor.v1 import monitoring_policy_service_pb2 as policy_pb
from interlock.types.v1.feature_value_pb2 import FeatureValue
from scipy import stats

from tests.fakes.monitor_registry import FakeRegistry
from tests.fakes.monitor_traffic import Traffic, draw_traffic, hour_times, requests
from tests.integration.monitor.conftest import Monitor, running_monitor
from tests.integration.monitor.test_analysis import analysis, record, refused, scope_of, trained_version

OFTEN = {
    "monitor_window_interval_s": 0.05,
    "monitor_log_flush_interval_s": 0.05,
    "monitor_label_join_interval_s": 0.05,
}


async def _label(
    monitor: Monitor, traffic: Traffic, chosen: Sequence[int], labels: Sequence[int], age_s: float
) -> None:
    feedback = []
    for index, label in zip(chosen, labels, strict=True):
        one = feedback_service_pb2.Feedback(prediction_id=str(uuid.UUID(bytes=traffic.ids[index])))
        one.label.CopyFrom(FeatureValue(int64_value=int(label)))
        one.event_time.FromMicroseconds(int((time.time() - age_s) * 1e6))
        feedback.append(one)
    stub = feedback_service_pb2_grpc.FeedbackServiceStub(monitor.channel)
    for start in range(0, len(feedback), 1000):
        await stub.SendFeedback(feedback_service_pb2.SendFeedbackRequest(feedback=feedback[start : start + 1000]))


async def _quality(monitor: Monitor, labelled: int, **more: Any) -> analysis_pb2.QualityReport:
    """Ask until so many labels are there."""
    times = (hour_times(1, 1)[0], hour_times(1, 0)[0] + 1)
    request = pb.GetQualityReportRequest(scope=scope_of(start_s=times[0], end_s=times[1]), **more)
    while True:
        report = (await analysis(monitor).GetQualityReport(request)).quality_report
        if report.labelled_count >= labelled:
            assert report.labelled_count == labelled
            return report
        await asyncio.sleep(0.05)


def _figures(report: analysis_pb2.QualityReport, *, estimated: bool = False) -> dict[str, float]:
    return {metric.name: metric.value.estimate for metric in report.metrics if metric.estimated is estimated}


def _expected(chance: np.ndarray, label: np.ndarray) -> dict[str, float]:
    predicted = chance >= 0.5
    positive, negative = chance[label == 1], chance[label == 0]
    return {
        "auc": float(stats.mannwhitneyu(positive, negative).statistic / (positive.size * negative.size)),
        "log_loss": float(-np.log(np.where(label == 1, chance, 1 - chance)).mean()),
        "brier": float(((chance - label) ** 2).mean()),
        "accuracy": float((predicted == label).mean()),
        "precision": float(label[predicted].mean()),
        "recall": float(predicted[label == 1].mean()),
    }


@pytest.mark.timeout(90)
async def test_quality_is_what_the_same_labels_give_directly_also_when_some_are_replaced(tmp_path: Path) -> None:
    policy = monitoring_policy_pb2.MonitoringPolicy(
        name="monitoringPolicies/fraud", fairness_groups=[monitoring_policy_pb2.FairnessGroup(feature="country")]
    )
    registry = FakeRegistry([trained_version(metrics={"auc": 0.9})])
    async with running_monitor(tmp_path, registry, **OFTEN) as monitor:
        await monitor.policies.UpdateMonitoringPolicy(policy_pb.UpdateMonitoringPolicyRequest(monitoring_policy=policy))
        before, now = draw_traffic(1, hour_times(1500, 1)), draw_traffic(2, hour_times(900, 0))
        await record(monitor, requests(before), requests(now, variant="b"))
        # First wrong, then right: what counts is what came last.
        wrong = 1 - before.label[:200]
        await _label(monitor, before, range(200), wrong.tolist(), age_s=20)
        await _quality(monitor, 200)
        await _label(monitor, before, range(1500), before.label.tolist(), age_s=10)
        await _label(monitor, now, range(300), now.label[:300].tolist(), age_s=10)
        report = await _quality(monitor, 1800)
        chance = np.concatenate([before.chance, now.chance[:300]])
        label = np.concatenate([before.label, now.label[:300]])
        expected = _expected(chance, label)
        for _ in range(100):
            # Replaced labels are taken out by the same batches that bring the right ones, in any order.
            if _figures(report)["accuracy"] == pytest.approx(expected["accuracy"]):
                break
            report = await _quality(monitor, 1800)
        found = _figures(report)
        # Fine bins cost the AUC a little, and the interval says how much; everything else is exact.
        assert found.pop("auc") == pytest.approx(expected.pop("auc"), abs=1e-3)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert (report.prediction_count, report.pending_count) == (2400, 600)
        assert {metric.name: metric.baseline_value for metric in report.metrics}["auc"] == pytest.approx(0.9)
        assert sum(found.observed_rate.sample_count for found in report.calibration) == 1800
        await _check_fairness(monitor, before, now)
        await _check_estimates(monitor, before, now)
    async with running_monitor(tmp_path, registry, **OFTEN) as monitor:
        assert _figures(await _quality(monitor, 1800)) == pytest.approx(_figures(report))


async def _check_fairness(monitor: Monitor, before: Traffic, now: Traffic) -> None:
    scope = scope_of(start_s=hour_times(1, 1)[0], end_s=hour_times(1, 0)[0] + 1)
    answer = await analysis(monitor).GetFairnessReport(pb.GetFairnessReportRequest(scope=scope))
    gaps = {group.group: group.gaps for group in answer.fairness_report.groups}
    country = np.concatenate([before.country, now.country[:300]])
    chance = np.concatenate([before.chance, now.chance[:300]])
    label = np.concatenate([before.label, now.label[:300]])
    rates = {one: (chance[(country == one) & (label == 1)] >= 0.5).mean() for one in ("NO", "SE")}
    assert gaps["SE"]["equal_opportunity"].estimate == pytest.approx(rates["SE"] - rates["NO"], abs=1e-9)


async def _check_estimates(monitor: Monitor, before: Traffic, now: Traffic) -> None:
    """What is estimated without labels covers what all labels would have shown: the chances are calibrated."""
    report = await _quality(monitor, 1800, include_estimates=True)
    expected = _expected(np.concatenate([before.chance, now.chance]), np.concatenate([before.label, now.label]))
    estimates = {metric.name: metric.value for metric in report.metrics if metric.estimated}
    stated = {(metric.basis, metric.value.level) for metric in report.metrics if metric.estimated}
    assert stated == {(analysis_pb2.ESTIMATE_BASIS_LABELS, 0.95)}, "no input has drifted"
    assert estimates["auc"].lower < expected["auc"] < estimates["auc"].upper
    assert estimates["accuracy"].lower < expected["accuracy"] < estimates["accuracy"].upper


async def test_confidences_that_do_not_mean_what_they_say_give_no_estimate(tmp_path: Path) -> None:
    async with running_monitor(tmp_path, FakeRegistry([trained_version()]), **OFTEN) as monitor:
        traffic = draw_traffic(3, hour_times(600, 0))
        await record(monitor, requests(traffic))
        # Whatever the model says, it is fraud half of the time.
        await _label(monitor, traffic, range(600), [index % 2 for index in range(600)], age_s=10)
        await _quality(monitor, 600)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _quality(monitor, 600, include_estimates=True)
        assert refused(caught.value)[1] == "NOT_CALIBRATED"
