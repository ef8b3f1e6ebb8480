"""What a version takes and gives, as plain values; `signature_check` says what is sound."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Final

ANY_SIZE: Final = -1
REQUEST_SOURCE: Final = "request"

Scalar = float | int | str | bool


class Kind(Enum):
    """What the elements of a tensor are."""

    BOOL = "truth values"
    WHOLE = "whole numbers"
    FLOAT = "numbers"
    TEXT = "texts"


class DataType(Enum):
    """An element type by its name in the Open Inference Protocol."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"
    BF16 = "BF16"

    @property
    def kind(self) -> Kind:
        """What an element is."""
        return _KINDS.get(self, Kind.WHOLE)

    @property
    def size_bytes(self) -> int:
        """Bytes of an element; 0 for BYTES, whose elements have any length."""
        return 0 if self is DataType.BYTES else _SIZES_BYTES[self]

    def limits(self) -> tuple[float, float]:
        """Smallest and largest finite number that an element can be."""
        if self.kind is Kind.FLOAT:
            return -_FLOAT_LIMITS[self], _FLOAT_LIMITS[self]
        bits = 8 * self.size_bytes
        return (0, 2**bits - 1) if self.value.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


_KINDS: Final = {
    DataType.BOOL: Kind.BOOL,
    DataType.FP16: Kind.FLOAT,
    DataType.FP32: Kind.FLOAT,
    DataType.FP64: Kind.FLOAT,
    DataType.BF16: Kind.FLOAT,
    DataType.BYTES: Kind.TEXT,
}
_SIZES_BYTES: Final = {
    **dict.fromkeys((DataType.BOOL, DataType.UINT8, DataType.INT8), 1),
    **dict.fromkeys((DataType.UINT16, DataType.INT16, DataType.FP16, DataType.BF16), 2),
    **dict.fromkeys((DataType.UINT32, DataType.INT32, DataType.FP32), 4),
    **dict.fromkeys((DataType.UINT64, DataType.INT64, DataType.FP64), 8),
}
_FLOAT_LIMITS: Final = {
    DataType.FP16: 65504.0,
    DataType.FP32: 3.4028234663852886e38,
    DataType.FP64: 1.7976931348623157e308,
    DataType.BF16: 3.3895313892515355e38,
}


class FeatureType(Enum):
    """The type that callers must send."""

    DOUBLE = "DOUBLE"
    INT64 = "INT64"
    STRING = "STRING"
    BOOL = "BOOL"

    @property
    def numeric(self) -> bool:
        """Whether minimum and maximum mean something."""
        return self in (FeatureType.DOUBLE, FeatureType.INT64)


class Task(Enum):
    """Kind of prediction."""

    CLASSIFICATION = "CLASSIFICATION"
    REGRESSION = "REGRESSION"


class ViolationPolicy(Enum):
    """What happens to an illegal value."""

    REFUSE = "REFUSE"
    FLAG = "FLAG"
    CLIP = "CLIP"


class MissingPolicy(Enum):
    """What happens when a value is missing."""

    REFUSE = "REFUSE"
    DEFAULT = "DEFAULT"
    FALLBACK = "FALLBACK"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a model takes or gives; ANY_SIZE stands for any size, the batch dimension comes first.

    `data_type` is None where the contract's value is missing or unknown.
    """

    name: str
    data_type: DataType | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """One named input, bound to a column of an input tensor. None stands for an enum value that is not legal."""

    name: str
    type: FeatureType | None
    tensor: str
    column: int = 0
    source: str = REQUEST_SOURCE
    nullable: bool = False
    default: Scalar | None = None
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[Scalar | None, ...] = ()
    violation_policy: ViolationPolicy | None = ViolationPolicy.REFUSE
    missing_policy: MissingPolicy | None = MissingPolicy.REFUSE
    max_age: timedelta | None = None
    description: str = ""
    illegal_default: bool = False
    """A default value was given that is no single value: null, a list, or nothing at all."""

    @property
    def fetched(self) -> bool:
        """Whether the value comes from the features service and not with the request."""
        return self.source != REQUEST_SOURCE


@dataclass(frozen=True, slots=True)
class PredictionSpec:
    """How a prediction is read from the outputs."""

    task: Task | None
    tensor: str
    labels: tuple[str, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """What a version takes and gives, on both levels."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    features: tuple[FeatureSpec, ...] = field(default=())
    prediction: PredictionSpec | None = None


def element_count(shape: Sequence[int]) -> int:
    """Return the product of the sizes, exactly, however large."""
    return math.prod(shape)
