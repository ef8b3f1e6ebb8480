"""Aggregate views in a point-in-time join: DuckDB sorts out which events count, `window_join` does the windows."""

from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.adapters import join_sql as sql
from services.features.adapters.arrow_values import arrow_type
from services.features.domain.aggregates import window_us
from services.features.domain.definitions import Aggregate, AggregateFunction
from services.features.domain.point_in_time import (
    AggregateView,
    Clock,
    JoinPlan,
    event_time_column,
)
from services.features.domain.window_join import (
    Events,
    Rows,
    count_in_window,
    extreme_in_window,
    newest_event_us,
    newest_in_window,
    sum_in_window,
)

# Entities are joined in portions, so that what numpy holds at a time is bounded.
_ROWS_A_PORTION: Final = 4_000_000
_WRAP: Final = 2.0**64


def join_aggregates(db: duckdb.DuckDBPyConnection, view: AggregateView, table: str, plan: JoinPlan) -> None:
    """Make `table` with the aggregates of each row, from the tables `rows` and `history`."""
    mine = sql.key_columns(view.keys)
    db.execute(f"CREATE TABLE counted AS {sql.events(view.keys, view.allowed_lateness_us)}")
    db.execute(
        f"CREATE TABLE codes AS SELECT row_number() OVER () - 1 AS code, * FROM (SELECT DISTINCT {mine} FROM counted)"
    )
    [(total,)] = db.sql("SELECT (SELECT count(*) FROM counted) + (SELECT count(*) FROM rows)").fetchall()
    portions = 1 + total // _ROWS_A_PORTION
    for portion in range(portions):
        joined = _join_portion(db, view, plan, f"coalesce(code, 0) % {portions} = {portion}")
        db.register("portion", joined)
        db.execute(
            f"{'INSERT INTO' if portion else 'CREATE TABLE'} {table} {'' if portion else 'AS'} SELECT * FROM portion"
        )
        db.unregister("portion")
    db.execute("DROP TABLE counted")
    db.execute("DROP TABLE codes")


def _join_portion(db: duckdb.DuckDBPyConnection, view: AggregateView, plan: JoinPlan, where: str) -> pa.Table:
    mine = sql.key_columns(view.keys)
    fields = "".join(f", {sql.quote(sql.value_column(field.name))}" for field in view.fields)
    # Of events of one moment the digest of the id decides which is newer, as it does online.
    digest = "('0x' || left(sha256(event_id), 16))::UBIGINT" if _orders(view) else "0::UBIGINT"
    columns = f"code, event_us, known_us, {digest} AS digest{fields}"
    counted = db.sql(f"SELECT {columns} FROM counted JOIN codes USING ({mine}) WHERE {where}").to_arrow_table()
    asked = db.sql(
        f"SELECT row, t, coalesce(code, -1) AS code FROM rows LEFT JOIN codes USING ({mine}) WHERE {where}"
    ).to_arrow_table()
    windows = _Windows(counted, asked, both_clocks=plan.clock is Clock.BOTH)
    newest_us = windows.newest_event_us(max(map(window_us, view.aggregates)))
    result: dict[str, Any] = {"row": asked.column("row")}
    for feature, aggregate in zip(view.features, view.aggregates, strict=True):
        values = windows.aggregate(aggregate, arrow_type(feature.type, is_list=feature.is_list))
        if feature.max_age_us is not None:
            old = (newest_us > 0) & (windows.rows.time_us - newest_us > feature.max_age_us)
            values = pc.if_else(pa.array(old), pa.scalar(None, values.type), values)
        result[feature.output] = values
    result[event_time_column(view.view)] = pa.array(newest_us, mask=newest_us == 0)
    return pa.table(result)


class _Windows:
    """Events and rows of some entities, and what the rows see."""

    def __init__(self, counted: pa.Table, asked: pa.Table, *, both_clocks: bool) -> None:
        self._counted = counted
        self._both_clocks = both_clocks
        digests = counted.column("digest").to_numpy()
        event_us, known_us = _numbers(counted, "event_us"), _numbers(counted, "known_us")
        self.events = Events(_numbers(counted, "code"), event_us, known_us, digests)
        self.rows = Rows(_numbers(asked, "code"), _numbers(asked, "t"))

    def newest_event_us(self, length_us: int) -> npt.NDArray[np.int64]:
        """Return the time of the newest event that each row sees; 0 where there is none."""
        return newest_event_us(self.events, self.rows, length_us, both_clocks=self._both_clocks)

    def aggregate(self, aggregate: Aggregate, kind: pa.DataType) -> pa.Array:
        """Return the aggregate for each row; see `domain.aggregates` for its meaning."""
        view = _View(self.events, self.rows, window_us(aggregate), self._both_clocks)
        if aggregate.function is AggregateFunction.COUNT:
            return pa.array(view.count(np.ones(len(self.events.keys), np.bool_))).cast(kind)
        field = self._counted.column(sql.value_column(aggregate.field)).combine_chunks()
        match aggregate.function:
            case AggregateFunction.LAST_N:
                return view.newest(field, aggregate.last_count).cast(kind)
            case AggregateFunction.SUM:
                return view.total(field, mean=False).cast(kind)
            case AggregateFunction.MEAN:
                return view.total(field, mean=True).cast(kind)
        return view.extreme(field, largest=aggregate.function is AggregateFunction.MAXIMUM).cast(kind)


@dataclass(frozen=True)
class _View:
    """What rows see through a window of one length."""

    events: Events
    rows: Rows
    window_us: int
    both_clocks: bool

    def count(self, counts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return count_in_window(self.events, counts, self.rows, self.window_us, both_clocks=self.both_clocks)

    def newest(self, field: pa.Array, most: int) -> pa.Array:
        lengths, found = newest_in_window(
            self.events, _present(field), self.rows, self.window_us, most, both_clocks=self.both_clocks
        )
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, field.take(pa.array(found)), mask=pa.array(lengths == 0))

    def total(self, field: pa.Array, *, mean: bool) -> pa.Array:
        present, values = _present(field), _filled(field)
        total = self._sum(values, present)
        size = total
        if total.dtype == np.int64:
            # Whole numbers wrap around; what their sum is as a number says how often.
            size = self._sum(values.astype(np.float64), present)
            beyond = np.rint((size - total) / _WRAP) != 0
        else:
            beyond = ~np.isfinite(total)
        if not mean:
            return pa.array(total, mask=beyond)
        counts = self.count(present)
        means = np.where(beyond, size, total) / np.maximum(counts, 1)
        return pa.array(means, mask=(counts == 0) | ~np.isfinite(means))

    def extreme(self, field: pa.Array, *, largest: bool) -> pa.Array:
        if pa.types.is_string(field.type):
            # Texts are compared by their places among all texts.
            texts = np.array(field.fill_null("").to_pylist(), dtype=object)
            distinct = np.unique(texts)
            found, there = self._extreme(np.searchsorted(distinct, texts).astype(np.int64), _present(field), largest)
            return pa.array(distinct.tolist(), pa.string()).take(pa.array(found, mask=~there))
        found, there = self._extreme(_filled(field), _present(field), largest)
        return pa.array(found + found.dtype.type(0), mask=~there)

    def _sum(self, values: npt.NDArray[Any], counts: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        return sum_in_window(self.events, values, counts, self.rows, self.window_us, both_clocks=self.both_clocks)

    def _extreme(
        self, values: npt.NDArray[Any], counts: npt.NDArray[np.bool_], largest: bool
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        return extreme_in_window(
            self.events, values, counts, self.rows, self.window_us, largest=largest, both_clocks=self.both_clocks
        )


def _orders(view: AggregateView) -> bool:
    return any(each.function is AggregateFunction.LAST_N for each in view.aggregates)


def _present(field: pa.Array) -> npt.NDArray[np.bool_]:
    present: npt.NDArray[np.bool_] = field.is_valid().to_numpy(zero_copy_only=False)
    return present


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = table.column(name).to_numpy().astype(np.int64, copy=False)
    return numbers


def _filled(field: pa.Array) -> npt.NDArray[Any]:
    """Return numbers, with 0 for null; truth values are 0 and 1."""
    if pa.types.is_floating(field.type):
        return field.fill_null(0.0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    return field.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
