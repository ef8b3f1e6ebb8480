"""Prediction events between the contract and the domain; reading a batch checks it."""

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1 import prediction_event_pb2 as event_pb
from interlock.types.v1 import tensor_pb2

from services.common.errors import INVALID_FIELD, InvalidArgument, Violation, echo
from services.common.names import id_violation
from services.monitor.domain.decode import BYTES, DTYPES
from services.monitor.domain.prediction_counts import Outcomes, VariantKey
from services.monitor.domain.raw_batch import RawBatch, RawTensor

INVALID_BATCH: Final = "INVALID_BATCH"
ID_BYTES: Final = 16
ROUTER_ID_LIMIT_BYTES: Final = 128
_REDACTED_LIMIT: Final = 1_000
_NO_BUCKET: Final = 10_000
_UINT32_LIMIT: Final = 1 << 32
_STATUS_LIMIT: Final = 16
_WEIGHT_LIMIT: Final = 1e9
_DIMENSIONS_LIMIT: Final = 8
_COUNT_LIMITS: Final = {"inputs": 1_000, "outputs": 1_000, "feature_event_times": 10_000, "entity_keys": 1_000}
_ROWS_LIMIT: Final = 10_000
_COLUMNS: Final = (
    "has_tensors",
    "statuses",
    "buckets",
    "principals",
    "degraded",
    "cached",
    "latencies_us",
    "sampling_weights",
)


# Names of data types by number, as the domain has them.
_DATA_TYPES: Final = {number: name.removeprefix("DATA_TYPE_") for name, number in tensor_pb2.DataType.items()}


def batch_from_proto(request: pb.RecordPredictionsRequest) -> RawBatch | None:
    """Return the batch of a message, None when it only tells of drops; raises InvalidArgument listing all that is wrong."""
    wrong = list(_stamp_violations(request))
    if not request.HasField("batch"):
        _refuse_if(wrong)
        return None
    batch = request.batch
    wrong += _name_violations(batch)
    wrong += _column_violations(batch)
    _refuse_if(wrong)
    return _raw_batch(batch)


def _raw_batch(batch: event_pb.PredictionBatch) -> RawBatch:
    count = len(batch.statuses)
    buckets = _array(batch.buckets, np.int64)
    buckets[buckets == _NO_BUCKET] = -1
    return RawBatch(
        key=VariantKey(batch.model, batch.version, batch.variant),
        environment=batch.environment,
        epoch=batch.epoch,
        ids=np.frombuffer(batch.prediction_ids, dtype=np.uint8).reshape(count, ID_BYTES),
        has_tensors=_array(batch.has_tensors, np.bool_),
        statuses=_array(batch.statuses, np.int64),
        buckets=buckets,
        principals=_array(batch.principals, np.int64),
        principal_names=tuple(batch.principal_names),
        degraded=_array(batch.degraded, np.bool_),
        cached=_array(batch.cached, np.bool_),
        latencies_us=_array(batch.latencies_us, np.int64),
        weights=_array(batch.sampling_weights, np.float64),
        inputs=tuple(map(_tensor, batch.inputs)),
        outputs=tuple(map(_tensor, batch.outputs)),
        entity_keys={column.entity: tuple(column.keys) for column in batch.entity_keys},
        feature_event_times_us={
            column.feature: _array(column.event_times_us, np.int64) for column in batch.feature_event_times
        },
        feature_read_times_us=(
            _array(batch.feature_read_times_us, np.int64)
            if batch.feature_read_times_us
            else np.zeros(count, dtype=np.int64)
        ),
        redacted=frozenset(batch.redacted_features),
        missing={column.feature: _array(column.reasons, np.int64) for column in batch.missing_features},
    )


def _array(column: Any, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.fromiter(column, dtype=kind, count=len(column))


def _tensor(tensor: tensor_pb2.Tensor) -> RawTensor:
    return RawTensor(tensor.name, _DATA_TYPES[tensor.data_type], tuple(tensor.shape), tensor.data)


def sequence_refusal(description: str) -> InvalidArgument:
    """Return the refusal of a batch whose number does not follow."""
    wrong = Violation("sequence", description)
    return InvalidArgument(f"sequence: {description}", reason=INVALID_BATCH, violations=[wrong])


def model_filter_from_proto(request: pb.GetPredictionCountsRequest) -> str:
    """Return the model to count, empty for all."""
    wrong = id_violation(request.model, "model") if request.model else None
    if wrong is not None:
        raise InvalidArgument(f"model: {wrong.description}", reason=INVALID_FIELD, violations=[wrong])
    return request.model


def counts_to_proto(
    counts: Iterable[tuple[VariantKey, Outcomes]], dropped_count: int
) -> pb.GetPredictionCountsResponse:
    """Return the answer with the counts in the order given."""
    return pb.GetPredictionCountsResponse(
        counts=[
            pb.PredictionCount(
                model=key.model,
                version=key.version,
                variant=key.variant,
                ok_count=outcomes.ok_count,
                error_count=outcomes.error_count,
            )
            for key, outcomes in counts
        ],
        dropped_count=dropped_count,
    )


def _refuse_if(wrong: list[Violation]) -> None:
    if wrong:
        text = f"{len(wrong)} thing(s) are wrong with the batch; first {wrong[0].field}: {wrong[0].description}"
        raise InvalidArgument(text, reason=INVALID_BATCH, violations=wrong)


def _stamp_violations(request: pb.RecordPredictionsRequest) -> Iterator[Violation]:
    size = len(request.router_id.encode())
    if not 1 <= size <= ROUTER_ID_LIMIT_BYTES:
        yield Violation("router_id", f"want 1 to {ROUTER_ID_LIMIT_BYTES} bytes, got {size}")
    if request.dropped_count >= _UINT32_LIMIT:
        yield Violation("dropped_count", f"want less than {_UINT32_LIMIT}, got {request.dropped_count}")


def _name_violations(batch: event_pb.PredictionBatch) -> Iterator[Violation]:
    for field in ("model", "version", "variant", "environment"):
        value = getattr(batch, field)
        # A prediction that failed before a version was chosen has none.
        wrong = id_violation(value, f"batch.{field}") if value or field in ("model", "environment") else None
        if wrong is not None:
            yield wrong


def _column_violations(batch: event_pb.PredictionBatch) -> Iterator[Violation]:
    if len(batch.prediction_ids) % ID_BYTES:
        wanted = f"want a multiple of {ID_BYTES} bytes, got {len(batch.prediction_ids)}"
        yield Violation("batch.prediction_ids", wanted)
        return
    if len(batch.redacted_features) > _REDACTED_LIMIT:
        yield Violation(
            "batch.redacted_features", f"want at most {_REDACTED_LIMIT}, got {len(batch.redacted_features)}"
        )
    count = len(batch.prediction_ids) // ID_BYTES
    if count > _ROWS_LIMIT:
        yield Violation("batch.prediction_ids", f"want at most {_ROWS_LIMIT} predictions, got {count}")
        return
    # Before any of them is touched: an empty message takes two bytes on the wire and a hundred here.
    too_many = [
        Violation(f"batch.{name}", f"want at most {limit}, got {len(getattr(batch, name))}")
        for name, limit in _COUNT_LIMITS.items()
        if len(getattr(batch, name)) > limit
    ]
    if too_many:
        yield from too_many
        return
    yield from _length_violations(batch, count)
    yield from _range_violations(batch)
    yield from _tensor_violations(batch)


def _length_violations(batch: event_pb.PredictionBatch, count: int) -> Iterator[Violation]:
    lengths = {f"batch.{name}": len(getattr(batch, name)) for name in _COLUMNS}
    for times in batch.feature_event_times:
        lengths[f"batch.feature_event_times[{echo(times.feature)}]"] = len(times.event_times_us)
    for missing in batch.missing_features:
        lengths[f"batch.missing_features[{echo(missing.feature)}]"] = len(missing.reasons)
    for column in batch.entity_keys:
        lengths[f"batch.entity_keys[{echo(column.entity)}]"] = len(column.keys)
    if batch.feature_read_times_us:
        lengths["batch.feature_read_times_us"] = len(batch.feature_read_times_us)
    for field, length in lengths.items():
        if length != count:
            yield Violation(field, f"want {count} entries, one for each prediction id, got {length}")


def _range_violations(batch: event_pb.PredictionBatch) -> Iterator[Violation]:
    principals = len(batch.principal_names)
    for name, column, limit in (
        ("principals", batch.principals, principals - 1),
        ("buckets", batch.buckets, _NO_BUCKET),
        ("statuses", batch.statuses, _STATUS_LIMIT),
    ):
        if column and max(column) > limit:
            yield Violation(f"batch.{name}", f"want at most {limit}, got {max(column)}")
    weights = _array(batch.sampling_weights, np.float64)
    if not np.all((weights > 0) & (weights <= _WEIGHT_LIMIT)):
        yield Violation("batch.sampling_weights", f"want numbers above 0, at most {_WEIGHT_LIMIT:,.0f}, got others")


def _tensor_violations(batch: event_pb.PredictionBatch) -> Iterator[Violation]:
    rows = sum(batch.has_tensors)
    for side in ("inputs", "outputs"):
        for tensor in getattr(batch, side):
            wrong = _tensor_wrong(tensor, rows)
            if wrong:
                yield Violation(f"batch.{side}[{echo(tensor.name)}]", wrong)


def _tensor_wrong(tensor: tensor_pb2.Tensor, rows: int) -> str:
    if not 1 <= len(tensor.shape) <= _DIMENSIONS_LIMIT:
        return f"want 1 to {_DIMENSIONS_LIMIT} dimensions, got {len(tensor.shape)}"
    if tensor.shape[0] != rows:
        return f"want {rows} rows, one for each prediction that has tensors, got {tensor.shape[0]}"
    if min(tensor.shape, default=0) < 0:
        return f"want sizes of at least 0, got {min(tensor.shape)}"
    name = _DATA_TYPES.get(tensor.data_type, "")
    if name == BYTES:
        return ""
    if name not in DTYPES:
        return f"want a data type of the contract, got {tensor.data_type}"
    want = prod(tensor.shape) * np.dtype(DTYPES[name]).itemsize
    return "" if len(tensor.data) == want else f"want {want} bytes, got {len(tensor.data)}"
