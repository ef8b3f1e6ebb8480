"""Prediction events between the contract and the domain; reading a batch checks it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1 import prediction_event_pb2 as event_pb

from services.common.errors import INVALID_FIELD, InvalidArgument, Violation, echo
from services.common.names import id_violation
from services.monitor.domain.prediction_counts import Outcomes, VariantKey

INVALID_BATCH: Final = "INVALID_BATCH"
ID_BYTES: Final = 16
ROUTER_ID_LIMIT_BYTES: Final = 128
_NO_BUCKET: Final = 10_000
_UINT32_LIMIT: Final = 1 << 32
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


@dataclass(frozen=True, slots=True)
class Batch:
    """What the counts need of a batch."""

    key: VariantKey
    ok_count: int
    error_count: int

    @property
    def prediction_count(self) -> int:
        """Predictions in the batch."""
        return self.ok_count + self.error_count


def batch_from_proto(request: pb.RecordPredictionsRequest) -> Batch | None:
    """Return the batch of a message, None when it only tells of drops; raises InvalidArgument listing all that is wrong."""
    wrong = list(_stamp_violations(request))
    if not request.HasField("batch"):
        _refuse_if(wrong)
        return None
    batch = request.batch
    wrong += _name_violations(batch)
    wrong += _column_violations(batch)
    _refuse_if(wrong)
    ok_count = sum(status == 0 for status in batch.statuses)
    return Batch(VariantKey(batch.model, batch.version, batch.variant), ok_count, len(batch.statuses) - ok_count)


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
    names = {"model": batch.model, "version": batch.version, "variant": batch.variant}
    for field, value in names.items():
        # A prediction that failed before a version was chosen has none.
        wrong = id_violation(value, f"batch.{field}") if value or field == "model" else None
        if wrong is not None:
            yield wrong


def _column_violations(batch: event_pb.PredictionBatch) -> Iterator[Violation]:
    if len(batch.prediction_ids) % ID_BYTES:
        wanted = f"want a multiple of {ID_BYTES} bytes, got {len(batch.prediction_ids)}"
        yield Violation("batch.prediction_ids", wanted)
        return
    count = len(batch.prediction_ids) // ID_BYTES
    yield from _length_violations(batch, count)
    yield from _range_violations(batch)
    yield from _tensor_violations(batch)


def _length_violations(batch: event_pb.PredictionBatch, count: int) -> Iterator[Violation]:
    lengths = {f"batch.{name}": len(getattr(batch, name)) for name in _COLUMNS}
    for times in batch.feature_event_times:
        lengths[f"batch.feature_event_times[{echo(times.feature)}]"] = len(times.event_times_us)
    for field, length in lengths.items():
        if length != count:
            yield Violation(field, f"want {count} entries, one for each prediction id, got {length}")


def _range_violations(batch: event_pb.PredictionBatch) -> Iterator[Violation]:
    principals = len(batch.principal_names)
    for name, column, limit in (
        ("principals", batch.principals, principals - 1),
        ("buckets", batch.buckets, _NO_BUCKET),
    ):
        if column and max(column) > limit:
            yield Violation(f"batch.{name}", f"want at most {limit}, got {max(column)}")


def _tensor_violations(batch: event_pb.PredictionBatch) -> Iterator[Violation]:
    rows = sum(batch.has_tensors)
    for side in ("inputs", "outputs"):
        for tensor in getattr(batch, side):
            found = tensor.shape[0] if tensor.shape else 0
            if found != rows:
                wanted = f"want {rows} rows, one for each prediction that has tensors, got {found}"
                yield Violation(f"batch.{side}[{echo(tensor.name)}]", wanted)
