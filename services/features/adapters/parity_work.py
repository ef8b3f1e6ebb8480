"""Logged online vectors against the same vectors computed offline, as of the time at which they were read.

The log is a table with `prediction_id`, `feature_read_time`, the maps `entities` and `feature_event_times`, and the values
that models took, `features`: a struct with a field for each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.adapters.arrow_values import arrow_type, times_of, values_of
from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.join_engine import JoinEngine, open_engine
from services.features.adapters.offline_task import LoggedFeature, ParityTask, TaskResult
from services.features.domain.job import MOST_EXAMPLES, FeatureParity

_TIME_COLUMN: Final = "feature_read_time"
_SAMPLE_ROWS: Final = 500
# A shift is suspected when it explains at least half of the differences, and enough of them to be no accident.
_LEAST_SHARE: Final = 0.5
_LEAST_ROWS: Final = 5

Bools = npt.NDArray[np.bool_]
Columns = Mapping[str, pa.Array]


def compare(
    task: ParityTask, limits: EngineLimits, pieces: Iterator[pa.RecordBatch], reader: BatchReader
) -> TaskResult:
    """Return one comparison for each feature, the worst first."""
    log = pa.Table.from_batches(list(pieces)).combine_chunks()
    read = log.column(_TIME_COLUMN).is_valid()
    unread = len(log) - (pc.sum(read).as_py() or 0)
    if unread:
        reader.skipped["NO_FEATURE_READ_TIME"] += unread
    comparison = _Comparison(task, limits, reader, log.filter(read))
    found = [asdict(comparison.parity(feature)) for feature in task.features]
    found.sort(key=lambda parity: -int(parity["different_count"]))
    return TaskResult(len(comparison.log), parities=found)


class _Comparison:
    """A log and what the offline side makes of it."""

    def __init__(self, task: ParityTask, limits: EngineLimits, reader: BatchReader, log: pa.Table) -> None:
        self.log = log
        self._task = task
        self._limits = limits
        self._reader = reader
        self._online = {each.name: _logged(log, each) for each in task.features}
        self._offline = self._recompute(_rows(log, task))
        self._different = {
            each.name: ~_same(self._online[each.name], _filled(self._offline, each), task) for each in task.features
        }
        self._shifts = self._suspected_shifts()

    def parity(self, feature: LoggedFeature) -> FeatureParity:
        """Return how online and offline values of a feature compare."""
        online, offline = self._online[feature.name], self._offline[feature.output]
        different = self._different[feature.name]
        missing_online, missing_offline = self._missing_online(feature), _bools(offline.is_null())
        examples = self.log.column("prediction_id").take(pa.array(np.flatnonzero(different)[:MOST_EXAMPLES]))
        return FeatureParity(
            feature=feature.source,
            compared_count=len(self.log),
            different_count=int(different.sum()),
            online_only_count=int((different & missing_offline & ~missing_online).sum()),
            offline_only_count=int((different & missing_online & ~missing_offline).sum()),
            largest_difference=_largest(online, offline),
            suspected_shift_us=self._shifts.get(feature.name, 0),
            example_prediction_ids=[_id(each) for each in examples.to_pylist()],
        )

    def _missing_online(self, feature: LoggedFeature) -> Bools:
        online = self._online[feature.name]
        missing = _bools(online.is_null())
        if feature.fallback is not None:
            # The default where nothing was read is no value of the online store.
            event_times = pc.map_lookup(
                _whole(self.log.column("feature_event_times")), pa.scalar(feature.name), "first"
            )
            default = pc.equal(online, pa.scalar(feature.fallback, online.type)).fill_null(False)
            missing = missing | _bools(pc.and_(event_times.is_null(), default))
        return missing

    def _recompute(self, rows: pa.Table) -> dict[str, pa.Array]:
        outputs: dict[str, list[pa.Array]] = {each.output: [] for each in self._task.features}
        with open_engine(self._limits) as db:
            reader = BatchReader(self._reader.connections)
            engine = JoinEngine(db, self._task.plan, self._task.histories, reader, from_text=True)
            engine.load_rows(iter(rows.to_batches()))
            for piece in engine.join(iter(rows.to_batches()), lambda _done: None):
                for output, parts in outputs.items():
                    parts.append(piece.column(output))
        kinds = {each.output: arrow_type(each.type) for each in self._task.features}
        return {name: pa.concat_arrays(parts) if parts else pa.nulls(0, kinds[name]) for name, parts in outputs.items()}

    def _suspected_shifts(self) -> dict[str, int]:
        """Return for each feature the shift of the offline clock that makes most of its differences go away.

        Some of the differing rows are joined again, once for every shift, all in one join.
        """
        shifts = self._task.shifts_us
        samples = {name: np.flatnonzero(which)[:_SAMPLE_ROWS] for name, which in self._different.items()}
        samples = {name: rows for name, rows in samples.items() if len(rows) >= _LEAST_ROWS}
        if not samples or not shifts:
            return {}
        chosen = np.unique(np.concatenate(list(samples.values())))
        rows = _rows(self.log.take(pa.array(chosen)), self._task)
        time_us = rows.column(_TIME_COLUMN).cast(pa.int64()).to_numpy()
        moved = [pa.array(time_us + shift).cast(pa.timestamp("us", "UTC")) for shift in shifts]
        again = self._recompute(pa.concat_tables([rows.set_column(0, _TIME_COLUMN, times) for times in moved]))
        suspected = {}
        for feature in self._task.features:
            if feature.name in samples:
                mine = np.searchsorted(chosen, samples[feature.name])
                wanted = self._online[feature.name].take(pa.array(samples[feature.name]))
                values = _filled(again, feature)
                explained = [
                    int(_same(wanted, values.take(pa.array(mine + number * len(chosen))), self._task).sum())
                    for number in range(len(shifts))
                ]
                best = _best_shift(shifts, explained)
                if explained[best] >= max(_LEAST_ROWS, _LEAST_SHARE * len(mine)):
                    suspected[feature.name] = shifts[best]
        return suspected


def _rows(log: pa.Table, task: ParityTask) -> pa.Table:
    """Return the rows to join to: the time, and a column for each entity's key."""
    time_us, _ = times_of(_whole(log.column(_TIME_COLUMN)), "UTC")
    entities = _whole(log.column("entities"))
    columns = {_TIME_COLUMN: time_us.cast(pa.timestamp("us", "UTC"))}
    for key in task.plan.keys:
        columns[key.column] = pc.map_lookup(entities, pa.scalar(key.entity), "first")
    return pa.table(columns)


def _logged(log: pa.Table, feature: LoggedFeature) -> pa.Array:
    """Return the values that models took; null for a feature that the log does not have, being redacted for example."""
    kind = log.schema.field("features").type
    if not pa.types.is_struct(kind) or kind.get_field_index(feature.name) < 0:
        return pa.nulls(len(log), arrow_type(feature.type))
    column = pc.struct_field(_whole(log.column("features")), [kind.get_field_index(feature.name)])
    values, _ = values_of(column, feature.type, is_list=False, from_text=True)
    return values


def _filled(offline: Columns, feature: LoggedFeature) -> pa.Array:
    """Return what a model takes: where there is no value, what the signature has for that."""
    values = offline[feature.output]
    if feature.fallback is None:
        return values
    return pc.fill_null(values, pa.scalar(feature.fallback, values.type))


def _same(online: pa.Array, offline: pa.Array, task: ParityTask) -> Bools:
    both_null = pc.and_(online.is_null(), offline.is_null())
    if pa.types.is_floating(online.type) or pa.types.is_integer(online.type):
        left, right = online.cast(pa.float64()), offline.cast(pa.float64())
        gap = pc.abs(pc.subtract(left, right))
        bound = pc.multiply(task.relative_tolerance, pc.max_element_wise(pc.abs(left), pc.abs(right)))
        equal = pc.less_equal(gap, bound)
    else:
        equal = pc.equal(online, offline)
    return _bools(pc.or_(both_null, equal.fill_null(False)))


def _largest(online: pa.Array, offline: pa.Array) -> float:
    if not (pa.types.is_floating(online.type) or pa.types.is_integer(online.type)):
        return 0.0
    gap = pc.max(pc.abs(pc.subtract(online.cast(pa.float64()), offline.cast(pa.float64())))).as_py()
    return float(gap or 0.0)


def _best_shift(shifts_us: Sequence[int], explained: Sequence[int]) -> int:
    """Return the place of the shift that explains most, the smallest of equals."""
    return max(range(len(shifts_us)), key=lambda place: (explained[place], -abs(shifts_us[place])))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def _bools(column: pa.Array) -> Bools:
    found: Bools = np.asarray(column.to_numpy(zero_copy_only=False), np.bool_)
    return found


def _id(value: Any) -> str:
    return str(UUID(bytes=value)) if isinstance(value, bytes) else str(value)
