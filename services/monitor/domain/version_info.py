"""What the monitor knows of a version: the part of its signature that gives columns their meaning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from services.monitor.domain.profile import FeatureProfile

Scalar = float | int | str | bool


class FeatureKind(StrEnum):
    """Type of a feature."""

    DOUBLE = "double"
    INT64 = "int64"
    STRING = "string"
    BOOL = "bool"


class Task(StrEnum):
    """Kind of a prediction."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """One named input and the column of the tensor that holds it."""

    name: str
    kind: FeatureKind
    tensor: str
    column: int
    source: str = "request"
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[Scalar, ...] = ()
    max_age_us: int | None = None
    """How old a fetched value may be, microseconds; None = any age."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Reference profile of a version: what its features and outputs looked like in training."""

    row_count: int = 0
    description: str = ""
    features: Mapping[str, FeatureProfile] = field(default_factory=dict)
    """By name of the feature."""
    outputs: Mapping[str, FeatureProfile] = field(default_factory=dict)
    """By "prediction" or "probability/<label>"."""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version. Without a `task` it is served by the Open Inference Protocol only and has no features."""

    model: str
    version: str
    digest: str
    features: tuple[FeatureInfo, ...] = ()
    task: Task | None = None
    prediction_tensor: str = ""
    """Output tensor that holds the probabilities, or the number."""
    labels: tuple[str, ...] = ()
    """Class names in the order of that tensor's columns."""
    threshold: float | None = None
    """Of two labels: the probability of the second from which on it is the prediction."""
    baseline: Baseline | None = None
    """None when the version was registered without."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures of training and validation by name, as the lineage has them."""

    @property
    def name(self) -> str:
        """Resource name."""
        return f"models/{self.model}/versions/{self.version}"

    def feature(self, name: str) -> FeatureInfo | None:
        """Return a feature by its name, or None."""
        return next((found for found in self.features if found.name == name), None)
