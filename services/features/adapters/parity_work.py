"""Online vectors against the same vectors computed offline, as of the time at which they were read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.adapters.arrow_values import arrow_type
from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.join_engine import JoinEngine, open_engine
from services.features.adapters.offline_task import LoggedFeature, ParityTask, TaskResult
from services.features.adapters.on_demand_join import OnDemandColumns
from services.features.adapters.parity_plan import READ_TIME_COLUMN
from services.features.adapters.parity_vectors import Bools, Vectors, kept_vectors, logged_vectors
from services.features.domain.definitions import FeatureType
from services.features.domain.job import MOST_EXAMPLES, FeatureParity
from services.features.domain.point_in_time import OnDemandView

_SAMPLE_ROWS: Final = 500
# A shift is suspected when it explains at least half of the differences, and enough of them to be no accident.
_LEAST_SHARE: Final = 0.5
_LEAST_ROWS: Final = 5

Places = npt.NDArray[np.int64]
Columns = Mapping[str, pa.Array]


def compare(task: ParityTask, limits: EngineLimits, log: Iterator[pa.RecordBatch], reader: BatchReader) -> TaskResult:
    """Return one comparison for each feature, the worst first."""
    vectors = logged_vectors(task, log, reader) if task.vectors is None else kept_vectors(task, task.vectors, reader)
    comparison = _Comparison(task, limits, reader, vectors)
    found = [asdict(comparison.parity(feature)) for feature in task.features]
    found.sort(key=lambda parity: -int(parity["different_count"]))
    return TaskResult(len(vectors), parities=found)


class _Comparison:
    """Vectors and what the offline side makes of them."""

    def __init__(self, task: ParityTask, limits: EngineLimits, reader: BatchReader, vectors: Vectors) -> None:
        self._task = task
        self._limits = limits
        self._reader = reader
        self._vectors = vectors
        self._views = {feature.output: view for view in task.plan.views for feature in view.features}
        self._online = {each.name: self._logged(each) for each in task.features}
        everything = np.arange(len(vectors))
        self._offline = self._join(vectors.rows) | self._compute(everything)
        self._incomparable = {each.name: dict(self._reasons(each)) for each in task.features}
        self._different = {each.name: self._differing(each) for each in task.features}
        self._shifts = self._suspected_shifts()

    def parity(self, feature: LoggedFeature) -> FeatureParity:
        """Return how online and offline values of a feature compare."""
        online, offline = self._online[feature.name], self._offline[feature.output]
        different, reasons = self._different[feature.name], self._incomparable[feature.name]
        missing_online, missing_offline = self._missing_online(feature), _bools(offline.is_null())
        compared = np.full(len(self._vectors), fill_value=True)
        for which in reasons.values():
            compared &= ~which
        return FeatureParity(
            feature=feature.source,
            compared_count=int(compared.sum()),
            different_count=int(different.sum()),
            online_only_count=int((different & missing_offline & ~missing_online).sum()),
            offline_only_count=int((different & missing_online & ~missing_offline).sum()),
            largest_difference=_largest(*_chosen(np.flatnonzero(different), online, _taken(offline, feature))),
            suspected_shift_us=self._shifts.get(feature.name, 0),
            example_prediction_ids=self._vectors.id_texts(np.flatnonzero(different)[:MOST_EXAMPLES]),
            incomparable_counts={reason: int(which.sum()) for reason, which in reasons.items()},
        )

    def _logged(self, feature: LoggedFeature) -> pa.Array:
        kind = arrow_type(feature.type, is_list=feature.is_list)
        return self._vectors.values.get(feature.name, pa.nulls(len(self._vectors), kind))

    def _reasons(self, feature: LoggedFeature) -> Iterator[tuple[str, Bools]]:
        """Yield why values cannot be compared, each with the rows of which it is the first reason."""
        vectors, view = self._vectors, self._views[feature.output]
        no_row, every_row = (np.full(len(vectors), fill_value=value) for value in (False, True))

        def redacted(name: str) -> Bools:
            return vectors.redacted.get(name, no_row)

        found = [("VALUE_REDACTED", redacted(feature.name))]
        if isinstance(view, OnDemandView):
            for name in OnDemandColumns(view).needed(feature.output):
                found.append((f"INPUT_REDACTED({name})", redacted(name)))
                found.append((f"INPUT_NOT_LOGGED({name})", no_row if name in vectors.values else every_row))
        else:
            found += [(f"KEY_REDACTED({key.entity})", redacted(key.entity)) for key in view.keys]
        found.append(("VALUE_NOT_LOGGED", no_row if feature.name in vectors.values else every_row))
        told = no_row
        for reason, which in found:
            if (fresh := which & ~told).any():
                yield reason, fresh
                told = told | fresh

    def _differing(self, feature: LoggedFeature) -> Bools:
        online, offline = self._online[feature.name], self._offline[feature.output]
        different = ~_agrees(online, offline, feature, self._task)
        for which in self._incomparable[feature.name].values():
            different &= ~which
        view = self._views[feature.output]
        if isinstance(view, OnDemandView) and different.any():
            places = np.flatnonzero(different)
            different[places[self._is_rounding(feature, view, places)]] = False
        return different

    def _missing_online(self, feature: LoggedFeature) -> Bools:
        online = self._online[feature.name]
        missing = _bools(online.is_null())
        if feature.fallback is not None and feature.name in self._vectors.unread:
            # The default where nothing was read is no value of the online store.
            default = _bools(pc.equal(online, pa.scalar(feature.fallback, online.type)).fill_null(False))
            missing = missing | (self._vectors.unread[feature.name] & default)
        return missing

    def _join(self, rows: pa.Table) -> dict[str, pa.Array]:
        """Return what the history says of rows, by output."""
        views = tuple(view for view in self._task.plan.views if not isinstance(view, OnDemandView))
        planned = [feature for view in views for feature in view.features]
        if not planned:
            return {}
        outputs: dict[str, list[pa.Array]] = {each.output: [] for each in planned}
        with open_engine(self._limits) as db:
            reader = BatchReader(self._reader.connections, self._reader.roots)
            plan = replace(self._task.plan, views=views)
            engine = JoinEngine(db, plan, self._task.histories, reader, from_text=True)
            engine.load_rows(iter(rows.to_batches()))
            for piece in engine.join(iter(rows.to_batches()), lambda _done: None):
                for output, parts in outputs.items():
                    parts.append(piece.column(output))
        kinds = {each.output: arrow_type(each.type, is_list=each.is_list) for each in planned}
        return {name: pa.concat_arrays(parts) if parts else pa.nulls(0, kinds[name]) for name, parts in outputs.items()}

    def _compute(self, places: Places, nudge: tuple[str, float] | None = None) -> dict[str, pa.Array]:
        """Return what the expressions make of the logged request values of some rows, by output.

        `nudge` names one value and the share by which it is taken to be larger than logged.
        """
        views = [view for view in self._task.plan.views if isinstance(view, OnDemandView)]
        found: dict[str, pa.Array] = {}
        for view in views:
            columns = {each.name: self._input(each.name, each.type, places) for each in view.inputs}
            if nudge is not None and nudge[0] in columns:
                columns[nudge[0]] = _nudged(columns[nudge[0]], nudge[1])
            found |= OnDemandColumns(view).compute(pa.RecordBatch.from_pydict(columns), from_text=True)
        return found

    def _input(self, name: str, kind: FeatureType | None, places: Places) -> pa.Array:
        logged = self._vectors.values.get(name)
        if logged is None:
            return pa.nulls(len(places), arrow_type(kind or FeatureType.DOUBLE))
        return logged.take(pa.array(places))

    def _is_rounding(self, feature: LoggedFeature, view: OnDemandView, places: Places) -> Bools:
        """Return where a difference is no larger than what the tensors' types have rounded away of request values.

        The expression is evaluated at both ends of each value's range: to first order the differences add up.
        """
        online = self._online[feature.name].take(pa.array(places))
        base = self._offline[feature.output].take(pa.array(places))
        agrees = np.zeros(len(places), np.bool_)
        room = np.zeros(len(places))
        precisions = self._task.input_precisions
        for name in OnDemandColumns(view).needed(feature.output):
            if precision := precisions.get(name, 0.0):
                ends = [self._compute(places, (name, sign * precision))[feature.output] for sign in (-1, 1)]
                for end in ends:
                    agrees |= _agrees(online, end, feature, self._task)
                room += np.maximum(*(_gaps(base, end) for end in ends))
        gaps = _gaps(online, _taken(base, feature))
        return agrees | (np.isfinite(gaps) & (gaps <= room))

    def _suspected_shifts(self) -> dict[str, int]:
        """Return for each feature the shift of the offline clock that makes most of its differences go away.

        Some of the differing rows are joined again, once for every shift, all in one join. What is computed on demand
        has no clock.
        """
        shifts = self._task.shifts_us
        samples = {
            each.name: np.flatnonzero(self._different[each.name])[:_SAMPLE_ROWS]
            for each in self._task.features
            if not isinstance(self._views[each.output], OnDemandView)
        }
        samples = {name: rows for name, rows in samples.items() if len(rows) >= _LEAST_ROWS}
        if not samples or not shifts:
            return {}
        chosen = np.unique(np.concatenate(list(samples.values())))
        again = self._join(self._moved(chosen, shifts))
        suspected = {}
        for feature in self._task.features:
            if feature.name in samples:
                mine = np.searchsorted(chosen, samples[feature.name])
                online = self._online[feature.name].take(pa.array(samples[feature.name]))
                values = again[feature.output]
                explained = [
                    int(_agrees(online, values.take(pa.array(mine + number * len(chosen))), feature, self._task).sum())
                    for number in range(len(shifts))
                ]
                best = _best_shift(shifts, explained)
                if explained[best] >= max(_LEAST_ROWS, _LEAST_SHARE * len(mine)):
                    suspected[feature.name] = shifts[best]
        return suspected

    def _moved(self, chosen: Places, shifts: Sequence[int]) -> pa.Table:
        """Return some rows once for each shift, with their time moved by it."""
        rows = self._vectors.rows.take(pa.array(chosen))
        time_us = rows.column(READ_TIME_COLUMN).cast(pa.int64()).to_numpy()
        moved = [pa.array(time_us + shift).cast(pa.timestamp("us", "UTC")) for shift in shifts]
        return pa.concat_tables([rows.set_column(0, READ_TIME_COLUMN, times) for times in moved])


def _taken(offline: pa.Array, feature: LoggedFeature) -> pa.Array:
    """Return what a model takes of a value: inside the limits to which it is clipped, and of the type it wants."""
    values = offline.cast(arrow_type(feature.type, is_list=feature.is_list))
    if feature.minimum is not None:
        values = _bounded(pc.max_element_wise, values, np.ceil, feature.minimum)
    if feature.maximum is not None:
        values = _bounded(pc.min_element_wise, values, np.floor, feature.maximum)
    return values


def _bounded(choose: Any, values: pa.Array, whole: Any, limit: float) -> pa.Array:
    bound = pa.scalar(int(whole(limit)) if pa.types.is_integer(values.type) else limit, values.type)
    return choose(values, bound, skip_nulls=False)


def _agrees(online: pa.Array, offline: pa.Array, feature: LoggedFeature, task: ParityTask) -> Bools:
    """Return where a model got what the offline side gives, or the stand-in where that gives nothing."""
    tolerance = max(task.relative_tolerance, feature.precision)
    agrees = _same(online, _taken(offline, feature), tolerance)
    if feature.fallback is not None:
        stand_in = pa.repeat(pa.scalar(feature.fallback, online.type), len(online))
        agrees |= _bools(offline.is_null()) & _same(online, stand_in, tolerance)
    return agrees


def _same(online: pa.Array, offline: pa.Array, tolerance: float) -> Bools:
    both_null = _bools(pc.and_(online.is_null(), offline.is_null()))
    if pa.types.is_list(online.type):
        return both_null | _same_lists(online, offline, tolerance)
    if _is_number(online.type):
        left, right = online.cast(pa.float64()), offline.cast(pa.float64())
        gap = pc.abs(pc.subtract(left, right))
        bound = pc.multiply(tolerance, pc.max_element_wise(pc.abs(left), pc.abs(right)))
        equal = pc.less_equal(gap, bound)
    else:
        equal = pc.equal(online, offline)
    return both_null | _bools(equal.fill_null(False))


def _same_lists(online: pa.Array, offline: pa.Array, tolerance: float) -> Bools:
    same = _as_long(online, offline)
    places = np.flatnonzero(same)
    left, right = _chosen(places, online, offline)
    elements = _same(pc.list_flatten(left), pc.list_flatten(right), tolerance)
    owners = pc.list_parent_indices(left).to_numpy()
    same[places[owners[~elements]]] = False
    return same


def _largest(online: pa.Array, offline: pa.Array) -> float:
    """Return the largest difference of numbers; of lists that of their elements, where they are as long."""
    if pa.types.is_list(online.type):
        left, right = _chosen(np.flatnonzero(_as_long(online, offline)), online, offline)
        return _largest(pc.list_flatten(left), pc.list_flatten(right))
    gaps = _gaps(online, offline)
    return float(np.nanmax(gaps)) if np.isfinite(gaps).any() else 0.0


def _gaps(online: pa.Array, offline: pa.Array) -> npt.NDArray[np.float64]:
    """Return how far numbers lie apart; NaN where one is missing or no number."""
    if not _is_number(online.type):
        return np.full(len(online), np.nan)
    left, right = (column.cast(pa.float64()).to_numpy(zero_copy_only=False) for column in (online, offline))
    gaps: npt.NDArray[np.float64] = np.abs(left - right)
    return gaps


def _as_long(online: pa.Array, offline: pa.Array) -> Bools:
    return _bools(pc.equal(pc.list_value_length(online), pc.list_value_length(offline)).fill_null(False))


def _chosen(places: Places, *columns: pa.Array) -> list[pa.Array]:
    return [column.take(pa.array(places)) for column in columns]


def _nudged(column: pa.Array, share: float) -> pa.Array:
    """Return numbers larger by that share of them; whole ones that the rounding type can hold as they are."""
    if not _is_number(column.type):
        return column
    numbers = column.cast(pa.float64())
    size, whole = pc.abs(numbers), pc.equal(numbers, pc.trunc(numbers))
    is_exact = pc.and_(whole, pc.less(size, 1 / abs(share)))
    moved = pc.add(numbers, pc.if_else(is_exact, 0.0, pc.multiply(size, share)))
    return pc.trunc(moved).cast(column.type) if pa.types.is_integer(column.type) else moved


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _best_shift(shifts_us: Sequence[int], explained: Sequence[int]) -> int:
    """Return the place of the shift that explains most, the smallest of equals."""
    return max(range(len(shifts_us)), key=lambda place: (explained[place], -abs(shifts_us[place])))


def _bools(column: pa.Array) -> Bools:
    return np.array(column.to_numpy(zero_copy_only=False), np.bool_)
