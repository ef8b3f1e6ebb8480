"""Prediction events as columns: what waits for the monitor is kept in the form in which it leaves.

A prediction's own objects are let go at once. Thousands of them that wait would make every request take memory that no cache
holds, and the collector look at each of them: that cost more than all of the code here.
"""

from collections.abc import Sequence
from typing import Final

from interlock.monitor.v1 import prediction_event_pb2
from interlock.types.v1 import tensor_pb2

from services.router.domain.enrichment import FeatureRead, Missing, MissingReason
from services.router.domain.ports import PredictionEvent

Form = tuple[object, ...]

_ROW_BYTES: Final = 128
_TENSOR_BYTES: Final = 64
_READ_BYTES: Final = 256
_PREFIX: Final = "DATA_TYPE_"
_NONE: Final = prediction_event_pb2.MISSING_REASON_UNSPECIFIED
_REASONS: Final = {
    MissingReason.ABSENT: prediction_event_pb2.MISSING_REASON_ABSENT,
    MissingReason.STALE: prediction_event_pb2.MISSING_REASON_STALE,
    MissingReason.UNAVAILABLE: prediction_event_pb2.MISSING_REASON_UNAVAILABLE,
}
_WIRE_TYPE: Final = {name.removeprefix(_PREFIX): number for name, number in tensor_pb2.DataType.items()}


def form_of(event: PredictionEvent) -> tuple[Form, tuple[bytes, ...], int]:
    """Return what events must have in common to share columns, the tensors' bytes, and about how much memory it all takes."""
    choice = event.choice
    version = choice.target.version
    size_bytes = _ROW_BYTES * len(event.ids)
    entities = None
    if event.reads:
        # Callers name the entities: a batch must not get a column for each name of each of them.
        entities = frozenset([name for read in event.reads for name in read.entities])
        size_bytes += sum([_read_bytes(read) for read in event.reads])
    form: list[object] = [version.model, version.id, choice.variant, choice.epoch, event.fixed, entities]
    data: list[bytes] = []
    for tensor in (*event.inputs, *event.outputs):
        form += (tensor.name, tensor.shape[1:])
        data.append(tensor.data)
        size_bytes += _TENSOR_BYTES + len(tensor.data)
    return tuple(form), tuple(data), size_bytes


def _read_bytes(read: FeatureRead) -> int:
    times = 0 if read.fetched is None else 32 * len(read.fetched.event_times_us)
    return _READ_BYTES + times + sum([len(key) for key in read.entities.values()])


class EventColumns:
    """The predictions of events of one form, column by column."""

    __slots__ = (
        "_choice",
        "_data",
        "_entity_keys",
        "_event_times_us",
        "_fixed",
        "_heads",
        "_inputs",
        "_missing",
        "_read_times_us",
        "_rows",
        "size_bytes",
    )

    def __init__(self, first: PredictionEvent) -> None:
        """Make the columns for events of the form of `first`, which is not taken yet."""
        tensors = (*first.inputs, *first.outputs)
        self.size_bytes = 0
        self._choice = first.choice
        self._fixed = first.fixed
        self._inputs = len(first.inputs)
        self._heads = [(tensor.name, _WIRE_TYPE[tensor.data_type], tensor.shape[1:]) for tensor in tensors]
        self._data: list[tuple[bytes, ...]] = []
        self._rows: list[tuple[bytes, int, bool, int, str, int]] = []
        self._read_times_us: list[int] = []
        self._entity_keys: dict[str, list[str]] = {name: [] for read in first.reads for name in read.entities}
        self._event_times_us: list[tuple[int, ...]] = []
        self._missing: dict[int, Missing] = {}

    def __len__(self) -> int:
        """Return the number of predictions."""
        return len(self._rows)

    def add(self, event: PredictionEvent, data: tuple[bytes, ...], size_bytes: int) -> None:
        """Take the predictions of an event of the same form; it may be forgotten then."""
        if event.missing:
            self._missing |= {len(self._rows) + row: missing for row, missing in event.missing.items()}
        if event.reads:
            self._add_reads(event.reads)
        status, principal, latency_us = event.status, event.principal, event.latency_us
        buckets, degraded = event.buckets, event.degraded
        for row, prediction_id in enumerate(event.ids):
            self._rows.append((prediction_id.bytes, buckets[row], degraded[row], status, principal, latency_us))
        self._data.append(data)
        self.size_bytes += size_bytes

    def _add_reads(self, reads: Sequence[FeatureRead]) -> None:
        for name, keys in self._entity_keys.items():
            keys += [read.entities.get(name, "") for read in reads]
        for read in reads:
            self._read_times_us.append(0 if read.fetched is None else read.fetched.read_time_us)
            self._event_times_us.append(() if read.fetched is None else read.fetched.event_times_us)

    def to_batch(self, environment: str) -> prediction_event_pb2.PredictionBatch:
        """Return the message; called once."""
        count, version, redacted = len(self), self._choice.target.version, self._choice.rules.redacted
        ids, buckets, degraded, statuses, principals, latencies_us = zip(*self._rows, strict=True)
        names = sorted(set(principals))
        index = {name: position for position, name in enumerate(names)}
        tensors = [
            tensor_pb2.Tensor(name=name, data_type=data_type, shape=(count, *shape), data=b"".join(pieces))
            for (name, data_type, shape), pieces in zip(self._heads, zip(*self._data, strict=True), strict=True)
        ]
        batch = prediction_event_pb2.PredictionBatch(
            model=version.model,
            version="" if self._fixed else version.id,
            variant=self._choice.variant,
            environment=environment,
            epoch=self._choice.epoch,
            prediction_ids=b"".join(ids),
            inputs=tensors[: self._inputs],
            outputs=tensors[self._inputs :],
            principal_names=names,
            redacted_features=sorted(redacted),
            has_tensors=[bool(tensors)] * count,
            statuses=statuses,
            buckets=buckets,
            principals=[index[name] for name in principals],
            degraded=degraded,
            cached=[False] * count,
            latencies_us=latencies_us,
            sampling_weights=[1.0] * count,
            feature_read_times_us=self._read_times_us or [0] * count,
        )
        # Of redacted names there are no columns.
        for entity in sorted(self._entity_keys.keys() - redacted):
            batch.entity_keys.add(entity=entity, keys=self._entity_keys[entity])
        if self._event_times_us:
            self._add_event_times(batch)
        self._add_missing(batch)
        return batch

    def _add_event_times(self, batch: prediction_event_pb2.PredictionBatch) -> None:
        plan = self._choice.target.version.plan
        for position, feature in enumerate(() if plan is None else plan.fetched):
            if feature.spec.name in self._choice.rules.redacted:
                continue
            times = [row[position] if row else 0 for row in self._event_times_us]
            batch.feature_event_times.add(feature=feature.spec.name, event_times_us=times)

    def _add_missing(self, batch: prediction_event_pb2.PredictionBatch) -> None:
        """Add a column for each feature that some row lacked."""
        columns: dict[str, list[prediction_event_pb2.MissingReason.ValueType]] = {}
        for row, missing in self._missing.items():
            for name, reason in missing.items():
                columns.setdefault(name, [_NONE] * len(self))[row] = _REASONS[reason]
        for name in sorted(columns.keys() - self._choice.rules.redacted):
            batch.missing_features.add(feature=name, reasons=columns[name])
