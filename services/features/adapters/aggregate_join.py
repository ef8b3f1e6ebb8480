"""Aggregate views in a point-in-time join: DuckDB sorts out which events count, `window_join` does the windows."""

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
from services.features.domain.window_join import Events, Rows, WindowJoin

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
    digest = ", sha256(event_id)" if _orders(view) else ""
    counted = db.sql(
        f"SELECT code, event_us, known_us{fields} FROM counted JOIN codes USING ({mine}) WHERE {where} "
        f"ORDER BY code, event_us, known_us{digest}"
    ).to_arrow_table()
    asked = db.sql(
        f"SELECT row, t, coalesce(code, -1) AS code FROM rows LEFT JOIN codes USING ({mine}) WHERE {where}"
    ).to_arrow_table()
    events = Events(*(_numbers(counted, name) for name in ("code", "event_us", "known_us")))
    time_us = _numbers(asked, "t")
    windows = WindowJoin(events, Rows(_numbers(asked, "code"), time_us), both_clocks=plan.clock is Clock.BOTH)
    newest_us = windows.newest_event_us(max(map(window_us, view.aggregates)))
    result: dict[str, Any] = {"row": asked.column("row")}
    for feature, aggregate in zip(view.features, view.aggregates, strict=True):
        values = _aggregate(windows, counted, aggregate).cast(arrow_type(feature.type, is_list=feature.is_list))
        if feature.max_age_us is not None:
            old = (newest_us > 0) & (time_us - newest_us > feature.max_age_us)
            values = pc.if_else(pa.array(old), pa.scalar(None, values.type), values)
        result[feature.output] = values
    result[event_time_column(view.view)] = pa.array(newest_us, mask=newest_us == 0)
    return pa.table(result)


def _aggregate(windows: WindowJoin, counted: pa.Table, aggregate: Aggregate) -> pa.Array:
    """Return an aggregate for each row; see `domain.aggregates` for its meaning."""
    length_us = window_us(aggregate)
    if aggregate.function is AggregateFunction.COUNT:
        return pa.array(windows.count(np.ones(len(counted), np.bool_), length_us))
    field = counted.column(sql.value_column(aggregate.field)).combine_chunks()
    present = field.is_valid().to_numpy(zero_copy_only=False)
    if aggregate.function is AggregateFunction.LAST_N:
        lengths, found = windows.newest(present, length_us, aggregate.last_count)
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, field.take(pa.array(found)), mask=pa.array(lengths == 0))
    if aggregate.function in (AggregateFunction.SUM, AggregateFunction.MEAN):
        mean = aggregate.function is AggregateFunction.MEAN
        return _total(windows, _filled(field), present, length_us, mean=mean)
    largest = aggregate.function is AggregateFunction.MAXIMUM
    if pa.types.is_string(field.type):
        # Texts are compared by their places among all texts.
        texts = np.array(field.fill_null("").to_pylist(), dtype=object)
        distinct, places = np.unique(texts, return_inverse=True)
        best, there = windows.extreme(places.astype(np.int64), present, length_us, largest=largest)
        return pa.array(distinct.tolist(), pa.string()).take(pa.array(best, mask=~there))
    best, there = windows.extreme(_filled(field), present, length_us, largest=largest)
    return pa.array(best + best.dtype.type(0), mask=~there)


def _total(
    windows: WindowJoin, values: npt.NDArray[Any], present: npt.NDArray[np.bool_], length_us: int, *, mean: bool
) -> pa.Array:
    size = total = windows.total(values, present, length_us)
    if total.dtype == np.int64:
        # Whole numbers wrap around; what their sum is as a number says how often.
        size = windows.total(values.astype(np.float64), present, length_us)
        beyond = np.rint((size - total) / _WRAP) != 0
    else:
        beyond = ~np.isfinite(total)
    if not mean:
        return pa.array(total, mask=beyond)
    counts = windows.count(present, length_us)
    means = np.where(beyond, size, total) / np.maximum(counts, 1)
    return pa.array(means, mask=(counts == 0) | ~np.isfinite(means))


def _orders(view: AggregateView) -> bool:
    return any(each.function is AggregateFunction.LAST_N for each in view.aggregates)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = table.column(name).to_numpy().astype(np.int64, copy=False)
    return numbers


def _filled(field: pa.Array) -> npt.NDArray[Any]:
    """Return numbers, with 0 for null; truth values are 0 and 1."""
    if pa.types.is_floating(field.type):
        return field.fill_null(0.0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    return field.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
