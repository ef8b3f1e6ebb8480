"""What a version takes and gives, as plain values: tensors for the hop, features for Predict."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from services.common.tensor_limits import UNNAMED_COLUMNS_LIMIT
from services.router.domain.tensor import DATA_TYPES, Kind

REQUEST_SOURCE: Final = "request"


class FeatureType(Enum):
    """The type that callers must send."""

    DOUBLE = "number"
    INT64 = "whole number"
    STRING = "text"
    BOOL = "truth value"


class MissingPolicy(Enum):
    """What happens when no value is there."""

    REFUSE = "refuse"
    DEFAULT = "default"
    FALLBACK = "fallback"


class ViolationPolicy(Enum):
    """What happens to a value outside the limits."""

    REFUSE = "refuse"
    FLAG = "flag"
    CLIP = "clip"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model: name, OIP element type, shape with -1 for any size, batch first."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    row_bytes: int = field(init=False, compare=False)
    """Bytes of one row where every row has as many and any bytes will do; else 0."""

    def __post_init__(self) -> None:
        data_type = DATA_TYPES.get(self.data_type)
        judged = data_type is None or data_type.kind in (Kind.BOOL, Kind.BYTES) or min(self.shape[1:], default=1) < 1
        row_bytes = 0 if judged or data_type is None else math.prod(self.shape[1:]) * data_type.size_bytes
        object.__setattr__(self, "row_bytes", row_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """One named input, bound to a column of a tensor.

    `default` stands in for a missing value where `missing` says so, and for null in a tensor without NaN. A `source`
    other than "request" is "<view>.<feature>" of the features service; a fetched value older than `max_age_s` seconds
    counts as missing.
    """

    name: str
    type: FeatureType
    tensor: str
    column: int
    source: str = REQUEST_SOURCE
    nullable: bool = False
    default: object = None
    missing: MissingPolicy = MissingPolicy.REFUSE
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[object, ...] = ()
    policy: ViolationPolicy = ViolationPolicy.REFUSE
    max_age_s: float | None = None

    @property
    def fetched(self) -> bool:
        """Whether the value comes from the features service and not with the request."""
        return self.source != REQUEST_SOURCE


@dataclass(frozen=True, slots=True)
class PredictionSpec:
    """How a prediction is read from an output tensor; no labels mean a regression."""

    tensor: str
    labels: tuple[str, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """The two levels of a version's signature; without features it is served by the Open Inference Protocol only."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[FeatureSpec, ...] = ()
    prediction: PredictionSpec | None = None
    unlogged: frozenset[str] = field(init=False, compare=False)
    """Inputs of which the monitor's log has no columns, such as images: prediction events are without them."""

    def __post_init__(self) -> None:
        named = {feature.tensor for feature in self.features}
        unlogged = {
            spec.name
            for spec in self.inputs
            if len(spec.shape) > 2
            or (named and spec.name not in named)
            or (not named and len(spec.shape) == 2 and spec.shape[1] > UNNAMED_COLUMNS_LIMIT)
        }
        object.__setattr__(self, "unlogged", frozenset(unlogged))
