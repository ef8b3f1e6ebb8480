"""Aggregate views in a point-in-time join: DuckDB sorts out which events count, `window_join` does the windows."""

from datetime import timedelta
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.adapters import join_sql as sql
from services.features.adapters.arrow_values import arrow_type
from services.features.domain.definitions import Aggregate, AggregateFunction
from services.features.domain.point_in_time import (
    AggregateView,
    Clock,
    JoinPlan,
    PlannedFeature,
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
    both = plan.clock is Clock.BOTH
    fields = "".join(f", {sql.quote(sql.value_column(field.name))}" for field in view.fields)
    # Of events of one moment the digest of the id decides which is newer, as it does online.
    digest = "('0x' || left(sha256(event_id), 16))::UBIGINT" if _orders(view) else "0::UBIGINT"
    counted = db.sql(
        f"SELECT code, event_us, known_us, {digest} AS digest{fields} FROM counted JOIN codes USING ({mine}) WHERE {where}"
    ).to_arrow_table()
    asked = db.sql(
        f"SELECT row, t, coalesce(code, -1) AS code FROM rows LEFT JOIN codes USING ({mine}) WHERE {where}"
    ).to_arrow_table()
    events = Events(
        *(_numbers(counted, name) for name in ("code", "event_us", "known_us")), counted.column("digest").to_numpy()
    )
    rows = Rows(_numbers(asked, "code"), _numbers(asked, "t"))
    newest_us = newest_event_us(events, rows, max(map(_window_us, view.aggregates)), both_clocks=both)
    columns: dict[str, Any] = {"row": asked.column("row")}
    for feature, aggregate in zip(view.features, view.aggregates, strict=True):
        values = _aggregate(counted, events, rows, feature, aggregate, both=both)
        if feature.max_age_us is not None:
            old = (newest_us > 0) & (rows.time_us - newest_us > feature.max_age_us)
            values = pc.if_else(pa.array(old), pa.scalar(None, values.type), values)
        columns[feature.output] = values
    columns[event_time_column(view.view)] = pa.array(newest_us, mask=newest_us == 0)
    return pa.table(columns)


def _aggregate(
    counted: pa.Table, events: Events, rows: Rows, feature: PlannedFeature, aggregate: Aggregate, *, both: bool
) -> pa.Array:
    window_us = _window_us(aggregate)
    kind = arrow_type(feature.type, is_list=feature.is_list)
    everything = np.ones(len(events.keys), np.bool_)
    if aggregate.function is AggregateFunction.COUNT and not aggregate.field:
        return pa.array(count_in_window(events, everything, rows, window_us, both_clocks=both)).cast(kind)
    field = counted.column(sql.value_column(aggregate.field)).combine_chunks()
    present = field.is_valid().to_numpy(zero_copy_only=False)
    if aggregate.function is AggregateFunction.LAST_N:
        lengths, found = newest_in_window(events, present, rows, window_us, aggregate.last_count, both_clocks=both)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), field.take(pa.array(found)), mask=pa.array(lengths == 0))
        return lists.cast(kind)
    counts = count_in_window(events, present, rows, window_us, both_clocks=both)
    if aggregate.function is AggregateFunction.COUNT:
        return pa.array(counts).cast(kind)
    if aggregate.function in (AggregateFunction.SUM, AggregateFunction.MEAN):
        values = _filled(field)
        total = sum_in_window(events, values, present, rows, window_us, both_clocks=both)
        mean = aggregate.function is AggregateFunction.MEAN
        return _total_or_mean(events, values, present, rows, window_us, total, counts, kind, mean=mean, both=both)
    return _extreme(field, events, present, rows, window_us, kind, aggregate.function, both=both)


def _total_or_mean(
    events: Events,
    values: npt.NDArray[Any],
    present: npt.NDArray[np.bool_],
    rows: Rows,
    window_us: int,
    total: npt.NDArray[Any],
    counts: npt.NDArray[np.int64],
    kind: pa.DataType,
    *,
    mean: bool,
    both: bool,
) -> pa.Array:
    nothing = np.zeros(len(total), np.bool_)
    if total.dtype == np.int64:
        # Whole numbers wrap around; what their sum is as a number says whether it did.
        size = sum_in_window(events, values.astype(np.float64), present, rows, window_us, both_clocks=both)
        nothing = np.abs(size) >= 2.0**63
    else:
        nothing = ~np.isfinite(total)
    if mean:
        nothing |= counts == 0
        total = total / np.maximum(counts, 1)
    return pa.array(total, mask=nothing).cast(kind)


def _extreme(
    field: pa.Array,
    events: Events,
    present: npt.NDArray[np.bool_],
    rows: Rows,
    window_us: int,
    kind: pa.DataType,
    function: AggregateFunction,
    *,
    both: bool,
) -> pa.Array:
    largest = function is AggregateFunction.MAXIMUM
    if not pa.types.is_string(field.type):
        values, there = extreme_in_window(
            events, _filled(field), present, rows, window_us, largest=largest, both_clocks=both
        )
        return pa.array(values + values.dtype.type(0), mask=~there).cast(kind)
    # Texts are compared by their places among all texts.
    distinct = np.unique(np.array(field.drop_null().to_pylist(), dtype=object))
    places = np.searchsorted(distinct, np.array(field.fill_null("").to_pylist(), dtype=object)).astype(np.int64)
    found, there = extreme_in_window(events, places, present, rows, window_us, largest=largest, both_clocks=both)
    return pa.array(distinct.tolist(), pa.string()).take(pa.array(found, mask=~there))


def _orders(view: AggregateView) -> bool:
    return any(each.function is AggregateFunction.LAST_N for each in view.aggregates)


def _window_us(aggregate: Aggregate) -> int:
    return aggregate.window // timedelta(microseconds=1)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = table.column(name).to_numpy().astype(np.int64, copy=False)
    return numbers


def _filled(field: pa.Array) -> npt.NDArray[Any]:
    """Return numbers, with 0 for null; truth values are 0 and 1."""
    if pa.types.is_floating(field.type):
        return field.fill_null(0.0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    return field.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
