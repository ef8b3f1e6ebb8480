"""Values that several unit tests start from."""

import struct
from datetime import UTC, datetime

from services.registry.domain.golden import GoldenRow, Tensor
from services.registry.domain.signature import (
    DataType,
    FeatureSpec,
    FeatureType,
    PredictionSpec,
    Signature,
    Task,
    TensorSpec,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

X = TensorSpec("x", DataType.FP32, (-1, 2))
TEXT = TensorSpec("t", DataType.BYTES, (-1, 1))
Y = TensorSpec("y", DataType.FP32, (-1, 2))

AMOUNT = FeatureSpec(name="amount", type=FeatureType.DOUBLE, tensor="x", column=0)
AGE = FeatureSpec(name="age", type=FeatureType.INT64, tensor="x", column=1)
CITY = FeatureSpec(name="city", type=FeatureType.STRING, tensor="t", column=0)
PREDICTION = PredictionSpec(Task.CLASSIFICATION, "y", ("no", "yes"), 0.3)

SOUND = Signature(inputs=(X, TEXT), outputs=(Y,), features=(AMOUNT, AGE, CITY), prediction=PREDICTION)


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


GOLDEN = GoldenRow(
    inputs=(
        Tensor("x", DataType.FP32, (1, 2), struct.pack("<2f", 1.5, 30)),
        Tensor("t", DataType.BYTES, (1, 1), texts(b"Berlin")),
    ),
    outputs=(Tensor("y", DataType.FP32, (1, 2), struct.pack("<2f", 0.4, 0.6)),),
    absolute_tolerance=1e-5,
)
