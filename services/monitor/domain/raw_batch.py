"""A batch of predictions as it came: checked, its scalars in arrays, its tensors still bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.monitor.domain.columns import Bools, Bytes, Floats, Ints
from services.monitor.domain.prediction_counts import VariantKey

# What an array entry, its share of the names and Python around it come to, in bytes; the tensors come on top.
_ROW_BYTES = 128


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """One tensor: little-endian, row-major. The data has as many bytes as type and shape say, unless it is BYTES."""

    name: str
    data_type: str
    """Name of the contract's data type without its prefix, for example FP32."""
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class RawBatch:
    """Predictions of one version under one variant; fields as in `PredictionColumns`."""

    key: VariantKey
    environment: str
    epoch: int
    ids: Bytes
    has_tensors: Bools
    statuses: Ints
    buckets: Ints
    principals: Ints
    """Positions in principal_names."""
    principal_names: tuple[str, ...]
    degraded: Bools
    cached: Bools
    latencies_us: Ints
    weights: Floats
    inputs: tuple[RawTensor, ...]
    outputs: tuple[RawTensor, ...]
    entity_keys: Mapping[str, tuple[str, ...]]
    feature_event_times_us: Mapping[str, Ints]
    feature_read_times_us: Ints
    redacted: frozenset[str]
    missing: Mapping[str, Ints]
    """By feature, why there was no usable value, a MissingReason of the contract; 0 = there was, (count,) each."""

    @property
    def ok_count(self) -> int:
        """Predictions that were answered."""
        return self.prediction_count - self.error_count

    @property
    def error_count(self) -> int:
        """Predictions that failed."""
        return int((self.statuses != 0).sum())

    @property
    def prediction_count(self) -> int:
        """Predictions in the batch."""
        return len(self.statuses)

    @property
    def size_bytes(self) -> int:
        """About how much memory the batch holds."""
        tensors = sum(len(tensor.data) for tensor in (*self.inputs, *self.outputs))
        return tensors + self.prediction_count * _ROW_BYTES
