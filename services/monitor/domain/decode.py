"""From the bytes of a batch to columns that have the names and the meaning of the version's signature."""

from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.common.tensor_limits import UNNAMED_COLUMNS_LIMIT
from services.monitor.domain.columns import Bytes, FeatureColumn, Floats, Ints, Numbers, PredictionColumns
from services.monitor.domain.raw_batch import RawBatch, RawTensor
from services.monitor.domain.version_info import FeatureKind, Task, VersionInfo

BYTES: Final = "BYTES"
_BF16: Final = "BF16"
DTYPES: Final[Mapping[str, npt.DTypeLike]] = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    _BF16: "<u2",
}
_LENGTH: Final = Struct("<I")
_REASONS: Final = (None, "ABSENT", "STALE", "UNAVAILABLE")
"""By number of the contract's MissingReason."""


class MalformedTensor(Exception):
    """The bytes of a tensor do not hold what its type and shape say."""


def columns_of(batch: RawBatch, info: VersionInfo | None, receive_time_us: int = 0) -> PredictionColumns:
    """Return the columns of a batch; raises MalformedTensor."""
    rows = np.flatnonzero(batch.has_tensors)
    predicted, probabilities = _prediction(batch, info)
    return PredictionColumns(
        model=batch.key.model,
        version=batch.key.version,
        variant=batch.key.variant,
        environment=batch.environment,
        epoch=batch.epoch,
        info=info,
        ids=batch.ids,
        prediction_time_us=times_of_ids(batch.ids),
        statuses=batch.statuses,
        buckets=batch.buckets,
        principals=pa.DictionaryArray.from_arrays(
            pa.array(batch.principals, pa.int32()), pa.array(batch.principal_names, pa.string())
        ),
        degraded=batch.degraded,
        cached=batch.cached,
        latencies_us=batch.latencies_us,
        weights=batch.weights,
        rows=rows,
        # What no version answered has inputs of nobody's signature: a fixed prediction, for one.
        features=dict(_features(batch, info)) if batch.key.version else {},
        outputs={tensor.name: numbers_of(tensor) for tensor in batch.outputs if tensor.data_type != BYTES},
        predicted=predicted,
        probabilities=probabilities,
        entity_keys={name: _texts_or_null(keys) for name, keys in batch.entity_keys.items()},
        feature_event_times_us=batch.feature_event_times_us,
        feature_read_times_us=batch.feature_read_times_us,
        redacted=batch.redacted,
        missing={name: _reasons(codes) for name, codes in batch.missing.items()},
        receive_time_us=receive_time_us,
    )


def times_of_ids(ids: Bytes) -> Ints:
    """Return the times inside of UUIDv7s, (count, 16), in microseconds since 1970; the ids have milliseconds."""
    padded = np.zeros((len(ids), 8), dtype=np.uint8)
    padded[:, 2:] = ids[:, :6]
    return padded.view(">u8").ravel().astype(np.int64) * 1000


def numbers_of(tensor: RawTensor) -> Numbers:
    """Return the elements of a tensor of numbers in its shape."""
    found: Numbers = np.frombuffer(tensor.data, dtype=DTYPES[tensor.data_type]).reshape(tensor.shape)
    if tensor.data_type == _BF16:
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


def texts_of(tensor: RawTensor) -> list[bytes]:
    """Return the elements of a BYTES tensor, row by row; raises MalformedTensor."""
    data, unpack, size = tensor.data, _LENGTH.unpack_from, len(tensor.data)
    texts: list[bytes] = []
    position = 0
    try:
        while position < size:
            start = position + 4
            position = start + unpack(data, position)[0]
            texts.append(data[start:position])
    except Exception as error:
        raise MalformedTensor(f"tensor {tensor.name}: a length is cut off") from error
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if position != size or len(texts) != count:
        raise MalformedTensor(f"tensor {tensor.name}: want {count} texts in {size} bytes, got {len(texts)}")
    return texts


def predict(probabilities: Floats, threshold: float | None) -> Floats:
    """Return the class index of each row, as the router reads it, NaN where a probability is; (count, labels) to (count,)."""
    if threshold is not None and probabilities.shape[1] == 2:
        winners: Floats = (probabilities[:, 1] >= threshold).astype(np.float64)
    else:
        winners = probabilities.argmax(axis=1).astype(np.float64)
    winners[np.isnan(probabilities).any(axis=1)] = np.nan
    return winners


def numbers_predicted(values: Numbers) -> Floats | None:
    """Return what a regression has predicted, NaN for what is no number; None when it is more than one for each row."""
    if values.size != len(values):
        return None
    found = values.astype(np.float64).reshape(-1)
    found[~np.isfinite(found)] = np.nan
    return found


def _features(batch: RawBatch, info: VersionInfo | None) -> Iterator[tuple[str, FeatureColumn]]:
    tensors = {tensor.name: _Columns(tensor) for tensor in batch.inputs}
    if info is None or not info.features:
        for tensor in tensors.values():
            yield from tensor.unnamed()
        return
    for feature in info.features:
        found = tensors.get(feature.tensor)
        if found is not None and feature.column < found.width:
            column = found.column(feature.column)
            if feature.name in batch.redacted:
                column = blank(column)
            yield feature.name, _truths(column) if feature.kind is FeatureKind.BOOL else column


def blank(column: FeatureColumn) -> FeatureColumn:
    """Return a column of missing values: the zeros and empty texts that a router sends instead mean nothing."""
    if isinstance(column, np.ndarray):
        return np.full(len(column), np.nan)
    return pa.nulls(len(column), pa.string()).dictionary_encode()


def _truths(column: FeatureColumn) -> FeatureColumn:
    """Return whole numbers as truth values; floating-point ones stay, for NaN is a missing one among them."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iu":
        return column != 0
    return column


class _Columns:
    """The columns of one input tensor; a BYTES tensor is split once for all of them."""

    def __init__(self, tensor: RawTensor) -> None:
        self._tensor = tensor
        shape = tensor.shape
        flat = len(shape) <= 2
        self.width = (shape[1] if len(shape) == 2 else 1) if flat else 0
        self._texts: list[bytes] | None = None
        self._numbers: npt.NDArray[Any] | None = None

    def column(self, index: int) -> FeatureColumn:
        """Return one column."""
        if self._tensor.data_type == BYTES:
            if self._texts is None:
                self._texts = texts_of(self._tensor)
            return _dictionary(self._texts[index :: self.width])
        if self._numbers is None:
            self._numbers = numbers_of(self._tensor).reshape(-1, self.width)
        return np.ascontiguousarray(self._numbers[:, index])

    def unnamed(self) -> Iterator[tuple[str, FeatureColumn]]:
        """Yield all columns under the name of the tensor, unless there are too many."""
        name = self._tensor.name
        if self.width == 1:
            yield name, self.column(0)
        elif self.width <= UNNAMED_COLUMNS_LIMIT:
            for index in range(self.width):
                yield f"{name}[{index}]", self.column(index)


def _dictionary(texts: list[bytes]) -> pa.DictionaryArray:
    try:
        return pa.array(texts, pa.string()).dictionary_encode()
    except pa.ArrowInvalid:
        # Not UTF-8: it is still told apart and shown, if not byte by byte.
        return pa.array([text.decode(errors="replace") for text in texts], pa.string()).dictionary_encode()


def _texts_or_null(keys: Sequence[str]) -> pa.Array:
    return pa.array([key or None for key in keys], pa.string())


def _reasons(codes: Ints) -> pa.Array:
    # A newer router may know reasons that this release does not.
    known = (codes >= 0) & (codes < len(_REASONS))
    return pa.array(_REASONS, pa.string()).take(pa.array(np.where(known, codes, 0)))


def _prediction(batch: RawBatch, info: VersionInfo | None) -> tuple[Floats | None, Floats | None]:
    if info is None or info.task is None:
        return None, None
    tensor = next((output for output in batch.outputs if output.name == info.prediction_tensor), None)
    if tensor is None or tensor.data_type == BYTES:
        return None, None
    values = numbers_of(tensor).astype(np.float64)
    if info.task is Task.REGRESSION:
        return numbers_predicted(values), None
    if values.ndim != 2 or values.shape[1] != len(info.labels):
        return None, None
    probabilities: Floats = np.clip(values, 0.0, 1.0)
    return predict(probabilities, info.threshold), probabilities
