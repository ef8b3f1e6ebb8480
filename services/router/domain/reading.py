"""Reading predictions from the output tensors of a version."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.router.domain.failure import InvalidModelOutput
from services.router.domain.feature import UnsupportedSignature
from services.router.domain.rejection import Reject
from services.router.domain.signature import PredictionSpec, TensorSpec
from services.router.domain.tensor import DATA_TYPES, Kind, Tensor, check_raw

# A softmax in single precision may end this far outside of 0 to 1.
_PROBABILITY_SLACK: Final = 1e-3


# Made for each row; a frozen one costs twice the time.
@dataclass(slots=True)
class Reading:
    """What one row's outputs mean; label, confidence and probabilities belong to a classification only."""

    prediction: int | float
    label: str | None = None
    confidence: float | None = None
    probabilities: tuple[float, ...] = ()


class PredictionReader:
    """Reads the prediction of each row as the signature says."""

    def __init__(self, spec: PredictionSpec, outputs: Sequence[TensorSpec]) -> None:
        output = next((output for output in outputs if output.name == spec.tensor), None)
        if output is None or DATA_TYPES[output.data_type].kind not in (Kind.FLOAT, Kind.WHOLE):
            raise UnsupportedSignature(f"prediction: want an output of numbers, got {spec.tensor}")
        self._spec = spec
        self.output = output.name
        self._data_type = DATA_TYPES[output.data_type]
        self._columns = len(spec.labels) or 1

    def read(self, outputs: Sequence[Tensor], rows: int) -> list[Reading]:
        """Return one reading per row; raises InvalidModelOutput when the tensor is not what the signature says."""
        tensor = next((output for output in outputs if output.name == self.output), None)
        if tensor is None or tensor.data_type != self._data_type.name:
            raise InvalidModelOutput(f"output {self.output} is missing or has another type")
        if tensor.shape not in self._shapes(rows):
            raise InvalidModelOutput(f"output {self.output} has another shape than its signature says")
        values = self._values(tensor, rows * self._columns)
        if not self._spec.labels:
            return [Reading(value) for value in values]
        width = self._columns
        return [self._classify(values[row * width : (row + 1) * width]) for row in range(rows)]

    def fixed(self, value: float) -> Reading | None:
        """Return a fixed class index or number as a reading, without a confidence; None when it is no class here."""
        if not self._spec.labels:
            return Reading(value)
        if not value.is_integer() or not 0 <= value < len(self._spec.labels):
            return None
        return Reading(int(value), self._spec.labels[int(value)])

    def _shapes(self, rows: int) -> tuple[tuple[int, ...], ...]:
        if self._spec.labels:
            return ((rows, self._columns),)
        return ((rows,), (rows, 1))

    def _values(self, tensor: Tensor, count: int) -> tuple[float, ...]:
        try:
            check_raw(self._data_type, count, tensor.data)
        except Reject as reject:
            raise InvalidModelOutput(f"output {self.output}: {reject}") from None
        values = unpack_numbers(self._data_type.code, count, tensor.data)
        if not all(map(math.isfinite, values)):
            raise InvalidModelOutput(f"output {self.output} holds a number that is not finite")
        return values

    def _classify(self, probabilities: tuple[float, ...]) -> Reading:
        lowest, highest = min(probabilities), max(probabilities)
        if lowest < -_PROBABILITY_SLACK or highest > 1 + _PROBABILITY_SLACK:
            raise InvalidModelOutput(f"output {self.output} holds a probability outside of 0 to 1")
        inside = probabilities
        if lowest < 0.0 or highest > 1.0:
            inside = tuple([min(max(probability, 0.0), 1.0) for probability in probabilities])
        winner = self._winner(inside)
        return Reading(winner, self._spec.labels[winner], inside[winner], inside)

    def _winner(self, probabilities: tuple[float, ...]) -> int:
        if self._spec.threshold is not None and len(probabilities) == 2:
            return int(probabilities[1] >= self._spec.threshold)
        return probabilities.index(max(probabilities))


def unpack_numbers(code: str, count: int, data: bytes) -> tuple[float, ...]:
    """Return `count` numbers of raw data; an empty struct code means BF16."""
    if code:
        return struct.unpack(f"<{count}{code}", data)
    widened = b"".join(b"\x00\x00" + data[start : start + 2] for start in range(0, 2 * count, 2))
    return struct.unpack(f"<{count}f", widened)
