"""Reading predictions: class, threshold, regression, and refusal of what no signature allows."""

import math
import struct

import pytest

from services.router.domain.failure import InvalidModelOutput
from services.router.domain.reading import PredictionReader, Reading
from services.router.domain.signature import PredictionSpec, TensorSpec
from services.router.domain.tensor import Tensor

LABELS = ("a", "b", "c")


def read(spec: PredictionSpec, values: list[float], shape: tuple[int, ...], data_type: str = "FP32") -> list[Reading]:
    code = {"FP32": "f", "FP64": "d", "INT64": "q", "FP16": "e"}.get(data_type, "")
    if code:
        data = struct.pack(f"<{len(values)}{code}", *values)
    else:
        data = b"".join(struct.pack("<f", value)[2:] for value in values)
    reader = PredictionReader(spec, [TensorSpec("y", data_type, (-1, *shape[1:]))])
    return reader.read([Tensor("y", data_type, shape, data)], shape[0])


def test_the_most_probable_class_wins_and_the_first_on_a_tie() -> None:
    first, second = read(PredictionSpec("y", LABELS), [0.25, 0.5, 0.25, 0.375, 0.25, 0.375], (2, 3))
    assert (first.prediction, first.label, first.confidence) == (1, "b", 0.5)
    assert (second.prediction, second.label) == (0, "a")
    assert first.probabilities == (0.25, 0.5, 0.25)


@pytest.mark.parametrize(("probability", "winner"), [(0.25, 1), (0.2490, 0), (0.9, 1)])
def test_a_threshold_decides_between_two(probability: float, winner: int) -> None:
    (found,) = read(PredictionSpec("y", ("no", "yes"), 0.25), [1 - probability, probability], (1, 2), "FP64")
    assert found.prediction == winner


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("data_type", ["FP32", "FP64", "FP16", "BF16", "INT64"])
def test_a_regression_is_the_number(shape: tuple[int, ...], data_type: str) -> None:
    found = read(PredictionSpec("y"), [2, -3], shape, data_type)
    assert [reading.prediction for reading in found] == [2, -3]
    assert found[0].label is None
    assert found[0].confidence is None


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([math.nan, 0.5, 0.5], (1, 3)),
        ([math.inf, 0, 0], (1, 3)),
        ([1.5, -0.5, 0], (1, 3)),
        ([0.5, 0.5], (1, 2)),
        ([0.5, 0.5, 0, 0], (1, 4)),
    ],
)
def test_what_the_signature_does_not_allow_is_unusable(values: list[float], shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidModelOutput):
        read(PredictionSpec("y", LABELS), values, shape)


def test_a_missing_short_or_other_output_is_unusable() -> None:
    reader = PredictionReader(PredictionSpec("y"), [TensorSpec("y", "FP32", (-1, 1))])
    for tensors in ([], [Tensor("z", "FP32", (1, 1), b"1234")], [Tensor("y", "FP64", (1, 1), bytes(8))]):
        with pytest.raises(InvalidModelOutput):
            reader.read(tensors, 1)
    with pytest.raises(InvalidModelOutput):
        reader.read([Tensor("y", "FP32", (1, 1), b"123")], 1)
    with pytest.raises(InvalidModelOutput):
        reader.read([Tensor("y", "FP32", (2, 1), bytes(8))], 1)


def test_rounding_beyond_one_is_forgiven_and_not_passed_on() -> None:
    (found,) = read(PredictionSpec("y", ("no", "yes")), [-1e-7, 1.0000001], (1, 2))
    assert (found.confidence, found.probabilities) == (1.0, (0.0, 1.0))
