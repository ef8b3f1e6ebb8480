"""Prediction events as columnar batches of the contract."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from interlock.monitor.v1 import prediction_event_pb2
from interlock.types.v1 import tensor_pb2

from services.router.domain.enrichment import FeatureRead, MissingReason
from services.router.domain.ports import PredictionEvent
from services.router.domain.tensor import Tensor

BATCH_ROWS_LIMIT: Final = 2048
_PREFIX: Final = "DATA_TYPE_"
_NONE: Final = prediction_event_pb2.MISSING_REASON_UNSPECIFIED
_REASONS: Final = {
    MissingReason.ABSENT: prediction_event_pb2.MISSING_REASON_ABSENT,
    MissingReason.STALE: prediction_event_pb2.MISSING_REASON_STALE,
    MissingReason.UNAVAILABLE: prediction_event_pb2.MISSING_REASON_UNAVAILABLE,
}
_WIRE_TYPE: Final = {name.removeprefix(_PREFIX): number for name, number in tensor_pb2.DataType.items()}


def event_bytes(event: PredictionEvent) -> int:
    """Return about how much memory an event holds."""
    size_bytes = 256 * len(event.ids)
    for tensor in (*event.inputs, *event.outputs):
        size_bytes += len(tensor.data)
    return size_bytes + sum([_read_bytes(read) for read in event.reads]) if event.reads else size_bytes


def to_batches(
    events: Iterable[PredictionEvent], environment: str, limit_bytes: int
) -> Iterator[prediction_event_pb2.PredictionBatch]:
    """Yield batches: one version, variant, epoch and tensor form each, of bounded rows and bytes."""
    groups: dict[tuple[object, ...], list[PredictionEvent]] = {}
    for event in events:
        groups.setdefault(_key(event), []).append(event)
    for group in groups.values():
        for part in _cut(group, limit_bytes):
            yield _batch(part, environment)


def _read_bytes(read: FeatureRead) -> int:
    values = 0 if read.fetched is None else 128 * len(read.fetched.values)
    return 256 + values + sum(128 + len(name) + len(key) for name, key in read.entities.items())


def _key(event: PredictionEvent) -> tuple[object, ...]:
    version = event.choice.target.version
    forms = tuple([(tensor.name, tensor.shape[1:]) for tensor in (*event.inputs, *event.outputs)])
    # Callers name the entities: a batch must not get a column for each name of each of them.
    entities = frozenset([name for read in event.reads for name in read.entities]) if event.reads else None
    return (version.model, version.id, event.choice.variant, event.choice.epoch, event.fixed, forms, entities)


def _cut(group: Sequence[PredictionEvent], limit_bytes: int) -> Iterator[list[PredictionEvent]]:
    part: list[PredictionEvent] = []
    rows = size_bytes = 0
    for event in group:
        more_bytes = event_bytes(event)
        if part and (rows + len(event.ids) > BATCH_ROWS_LIMIT or size_bytes + more_bytes > limit_bytes):
            yield part
            part, rows, size_bytes = [], 0, 0
        part.append(event)
        rows += len(event.ids)
        size_bytes += more_bytes
    if part:
        yield part


def _batch(events: Sequence[PredictionEvent], environment: str) -> prediction_event_pb2.PredictionBatch:
    first = events[0]
    names = sorted({event.principal for event in events})
    index = {name: position for position, name in enumerate(names)}
    rows = sum([len(event.ids) for event in events])
    batch = prediction_event_pb2.PredictionBatch(
        model=first.choice.target.version.model,
        version="" if first.fixed else first.choice.target.version.id,
        variant=first.choice.variant,
        environment=environment,
        epoch=first.choice.epoch,
        prediction_ids=b"".join([found.bytes for event in events for found in event.ids]),
        inputs=_joined([event.inputs for event in events]),
        outputs=_joined([event.outputs for event in events]),
        principal_names=names,
        redacted_features=sorted(first.choice.rules.redacted),
        has_tensors=[bool(event.inputs) for event in events for _ in event.ids],
        statuses=[event.status for event in events for _ in event.ids],
        buckets=[bucket for event in events for bucket in event.buckets],
        principals=[index[event.principal] for event in events for _ in event.ids],
        degraded=[degraded for event in events for degraded in event.degraded],
        cached=[False] * rows,
        latencies_us=[event.latency_us for event in events for _ in event.ids],
        sampling_weights=[1.0] * rows,
        feature_read_times_us=[
            0 if read is None or read.fetched is None else read.fetched.read_time_us
            for event in events
            for read in event.reads or [None] * len(event.ids)
        ],
    )
    _add_reads(batch, events)
    _add_missing(batch, events)
    return batch


def _add_reads(batch: prediction_event_pb2.PredictionBatch, events: Sequence[PredictionEvent]) -> None:
    """Add the columns of entity keys and event times, without those of redacted names."""
    if not any(event.reads for event in events):
        return
    choice = events[0].choice
    reads = [read for event in events for read in (event.reads or [None] * len(event.ids))]
    for entity in sorted(
        {name for read in reads if read is not None for name in read.entities} - choice.rules.redacted
    ):
        keys = ["" if read is None else read.entities.get(entity, "") for read in reads]
        batch.entity_keys.add(entity=entity, keys=keys)
    plan = choice.target.version.plan
    for index, feature in enumerate(() if plan is None else plan.fetched):
        if feature.spec.name in choice.rules.redacted:
            continue
        times = [0 if read is None or read.fetched is None else read.fetched.event_times_us[index] for read in reads]
        batch.feature_event_times.add(feature=feature.spec.name, event_times_us=times)


def _add_missing(batch: prediction_event_pb2.PredictionBatch, events: Sequence[PredictionEvent]) -> None:
    """Add a column for each feature that some row lacked, without redacted ones."""
    if not any(event.missing for event in events):
        return
    columns: dict[str, list[prediction_event_pb2.MissingReason.ValueType]] = {}
    count, first = sum(len(event.ids) for event in events), 0
    for event in events:
        for row, missing in event.missing.items():
            for name, reason in missing.items():
                columns.setdefault(name, [_NONE] * count)[first + row] = _REASONS[reason]
        first += len(event.ids)
    for name in sorted(columns.keys() - events[0].choice.rules.redacted):
        batch.missing_features.add(feature=name, reasons=columns[name])


def _joined(blocks: Sequence[tuple[Tensor, ...]]) -> list[tensor_pb2.Tensor]:
    """Return the tensors of all blocks joined by rows; the blocks agree in everything but their rows."""
    return [
        tensor_pb2.Tensor(
            name=pieces[0].name,
            data_type=_WIRE_TYPE[pieces[0].data_type],
            shape=(sum([piece.shape[0] for piece in pieces]), *pieces[0].shape[1:]),
            data=b"".join([piece.data for piece in pieces]),
        )
        for pieces in zip(*blocks, strict=True)
    ]
