"""Scopes and reports of analyses between the contract and the domain."""

from typing import Final

from interlock.monitor.v1 import analysis_pb2 as pb
from interlock.monitor.v1 import analysis_service_pb2 as service_pb
from interlock.types.v1.interval_pb2 import Interval as IntervalMessage

from services.common.errors import Violation
from services.common.names import VERSION, id_violation
from services.common.refusals import InvalidRequest
from services.monitor.convert.time import time_from_proto, time_to_proto
from services.monitor.domain.analyses import QualityRequest
from services.monitor.domain.data_quality import DataQualityCheck, DataQualityFinding
from services.monitor.domain.drift import DriftStatistic, FeatureDrift
from services.monitor.domain.drift_metric import DriftMetric
from services.monitor.domain.fairness import GroupFairness
from services.monitor.domain.interval import Interval
from services.monitor.domain.quality import CalibrationBin, EstimateBasis, QualityMetric
from services.monitor.domain.report import DataQualityReport, DriftReport, FairnessReport, QualityReport
from services.monitor.domain.scope import DEFAULT_ENVIRONMENT, Scope, ScopeRequest
from services.monitor.domain.version_info import VersionInfo

_METRICS: Final = {
    DriftMetric.PSI: pb.DRIFT_METRIC_PSI,
    DriftMetric.JENSEN_SHANNON: pb.DRIFT_METRIC_JENSEN_SHANNON,
    DriftMetric.WASSERSTEIN: pb.DRIFT_METRIC_WASSERSTEIN,
    DriftMetric.KOLMOGOROV_SMIRNOV: pb.DRIFT_METRIC_KOLMOGOROV_SMIRNOV,
    DriftMetric.CHI_SQUARE: pb.DRIFT_METRIC_CHI_SQUARE,
}
_BASES: Final = {
    None: pb.ESTIMATE_BASIS_UNSPECIFIED,
    EstimateBasis.LABELS: pb.ESTIMATE_BASIS_LABELS,
    EstimateBasis.DRIFTED_INPUTS: pb.ESTIMATE_BASIS_DRIFTED_INPUTS,
    EstimateBasis.NO_BASELINE: pb.ESTIMATE_BASIS_NO_BASELINE,
}
_CHECKS: Final = {
    DataQualityCheck.NULLS: pb.DATA_QUALITY_CHECK_NULLS,
    DataQualityCheck.TYPE: pb.DATA_QUALITY_CHECK_TYPE,
    DataQualityCheck.RANGE: pb.DATA_QUALITY_CHECK_RANGE,
    DataQualityCheck.NEW_CATEGORY: pb.DATA_QUALITY_CHECK_NEW_CATEGORY,
    DataQualityCheck.VOLUME: pb.DATA_QUALITY_CHECK_VOLUME,
    DataQualityCheck.FRESHNESS: pb.DATA_QUALITY_CHECK_FRESHNESS,
}


def scope_from_proto(message: pb.AnalysisScope, path: str = "scope") -> ScopeRequest:
    """Return what is to be looked at; raises InvalidArgument listing all that is wrong."""
    wrong = [
        VERSION.violation(message.model_version, f"{path}.model_version"),
        *(
            id_violation(value, f"{path}.{field}")
            for field, value in (
                ("environment", message.environment),
                ("slice", message.slice),
                ("variant", message.variant),
            )
            if value
        ),
    ]
    times = {}
    for field in ("start_time", "end_time"):
        times[field] = time_from_proto(getattr(message, field)) if message.HasField(field) else None
        if message.HasField(field) and times[field] is None:
            wrong.append(Violation(f"{path}.{field}", "want a time of the years 1 to 9999, got none"))
    found = [violation for violation in wrong if violation is not None]
    if found:
        raise InvalidRequest(found)
    model, version = VERSION.parse(message.model_version)
    return ScopeRequest(
        model=model,
        version=version,
        environment=message.environment or DEFAULT_ENVIRONMENT,
        start_us=times["start_time"],
        end_us=times["end_time"],
        slice_name=message.slice,
        variant=message.variant,
        path=path,
    )


def quality_request(request: service_pb.GetQualityReportRequest) -> QualityRequest:
    """Return what is asked about quality."""
    return QualityRequest(scope_from_proto(request.scope), tuple(request.metrics), request.include_estimates)


def scope_to_proto(scope: Scope) -> pb.AnalysisScope:
    """Return a scope as it was looked at."""
    return pb.AnalysisScope(
        model_version=scope.info.name,
        environment=scope.environment,
        start_time=time_to_proto(scope.start_us),
        end_time=time_to_proto(scope.end_us),
        slice=scope.slice_name,
        variant=scope.variant,
    )


def drift_to_proto(report: DriftReport) -> pb.DriftReport:
    """Return a report of drift."""
    message = pb.DriftReport(
        scope=scope_to_proto(report.scope),
        prediction_count=report.prediction_count,
        features=[_feature_to_proto(drift) for drift in report.features],
        baseline_digest="" if report.reference else report.scope.info.digest,
    )
    if report.reference is not None:
        message.reference.CopyFrom(scope_to_proto(report.reference))
    return message


def data_quality_to_proto(report: DataQualityReport) -> pb.DataQualityReport:
    """Return a report of data quality."""
    return pb.DataQualityReport(
        scope=scope_to_proto(report.scope),
        prediction_count=report.prediction_count,
        expected_count=report.expected_count,
        findings=[_finding_to_proto(finding) for finding in report.findings],
        feature_count=report.feature_count,
    )


def quality_to_proto(report: QualityReport) -> pb.QualityReport:
    """Return a report of quality."""
    return pb.QualityReport(
        scope=scope_to_proto(report.scope),
        prediction_count=report.prediction_count,
        labelled_count=report.labelled_count,
        pending_count=report.pending_count,
        metrics=[_metric_to_proto(metric, report.scope.info) for metric in report.metrics],
        calibration=[_bin_to_proto(found) for found in report.calibration],
    )


def fairness_to_proto(report: FairnessReport) -> pb.FairnessReport:
    """Return a report of fairness; the reference groups of all features come first."""
    groups = [(found.feature, group) for found in report.features for group in found.groups]
    ordered = sorted(groups, key=lambda pair: not pair[1].is_reference)
    return pb.FairnessReport(
        scope=scope_to_proto(report.scope), groups=[_group_to_proto(feature, group) for feature, group in ordered]
    )


def interval_to_proto(interval: Interval) -> IntervalMessage:
    """Return an estimate with its interval."""
    return IntervalMessage(
        estimate=interval.estimate,
        lower=interval.lower,
        upper=interval.upper,
        level=interval.level,
        sample_count=interval.sample_count,
    )


def _feature_to_proto(drift: FeatureDrift) -> pb.FeatureDrift:
    return pb.FeatureDrift(
        name=drift.name,
        is_output=drift.is_output,
        value_count=drift.value_count,
        missing_share=drift.missing_share,
        baseline_missing_share=drift.baseline_missing_share,
        statistics=[_statistic_to_proto(statistic) for statistic in drift.statistics],
        drifted=drift.is_drifted,
        few_past_windows=drift.has_few_past_windows,
    )


def _statistic_to_proto(statistic: DriftStatistic) -> pb.DriftStatistic:
    return pb.DriftStatistic(
        metric=_METRICS[statistic.metric],
        value=interval_to_proto(statistic.value),
        null_quantile_95=statistic.null_quantile_95,
        p_value=statistic.p_value,
        q_value=statistic.q_value,
        sketch_error=statistic.sketch_error,
    )


def _finding_to_proto(finding: DataQualityFinding) -> pb.DataQualityFinding:
    return pb.DataQualityFinding(
        feature=finding.feature,
        check=_CHECKS[finding.check],
        count=finding.count,
        share=finding.share,
        expected=finding.expected,
        examples=finding.examples,
    )


def _metric_to_proto(metric: QualityMetric, info: VersionInfo) -> pb.QualityMetric:
    return pb.QualityMetric(
        name=metric.name,
        value=interval_to_proto(metric.value),
        estimated=metric.is_estimated,
        baseline_value=info.metrics.get(metric.name),
        higher_is_better=metric.higher_is_better,
        checked_count=metric.checked_count,
        held_count=metric.held_count,
        coverage=interval_to_proto(metric.coverage) if metric.coverage else None,
        basis=_BASES[metric.basis],
        unsupported_inputs=metric.unsupported_inputs,
    )


def _bin_to_proto(found: CalibrationBin) -> pb.CalibrationBin:
    return pb.CalibrationBin(
        lower=found.lower,
        upper=found.upper,
        mean_probability=found.mean_probability,
        observed_rate=interval_to_proto(found.observed_rate),
    )


def _group_to_proto(feature: str, group: GroupFairness) -> pb.GroupFairness:
    return pb.GroupFairness(
        feature=feature,
        group=group.group,
        is_reference=group.is_reference,
        prediction_count=group.prediction_count,
        positive_rate=interval_to_proto(group.positive_rate),
        gaps={name: interval_to_proto(gap) for name, gap in group.gaps.items()},
        judged=group.is_judged,
    )
