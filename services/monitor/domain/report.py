"""What analyses say."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.monitor.domain.data_quality import DataQualityFinding
from services.monitor.domain.drift import FeatureDrift
from services.monitor.domain.fairness import GroupFairness
from services.monitor.domain.interval import Interval
from services.monitor.domain.quality import CalibrationBin, QualityMetric
from services.monitor.domain.scope import Scope


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Drift of a version against its baseline, or against another scope."""

    scope: Scope
    prediction_count: int
    features: Sequence[FeatureDrift]
    """The largest drift first."""
    reference: Scope | None = None
    """None: the baseline."""


@dataclass(frozen=True, slots=True)
class DataQualityReport:
    """Data quality of a version's inputs."""

    scope: Scope
    prediction_count: int
    expected_count: float | None
    findings: Sequence[DataQualityFinding]
    """The worst first."""
    feature_count: int


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Quality of a version's predictions."""

    scope: Scope
    prediction_count: int
    labelled_count: int
    pending_count: int
    metrics: Sequence[QualityMetric]
    calibration: Sequence[CalibrationBin]


@dataclass(frozen=True, slots=True)
class FeatureFairness:
    """How the groups of one feature fare."""

    feature: str
    groups: Sequence[GroupFairness]


@dataclass(frozen=True, slots=True)
class FairnessReport:
    """Fairness of a version."""

    scope: Scope
    features: Sequence[FeatureFairness]


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """How many predictions there were, and how they went."""

    scope: Scope
    prediction_count: int
    error_rate: Interval
    """Share of failed predictions."""
    latency_ms: tuple[float, float, float]
    """Median, 95th and 99th percentile; NaN without predictions."""
    prediction_rate: float
    """Predictions a second."""
    degraded_share: float
