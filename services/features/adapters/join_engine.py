"""Point-in-time joins on DuckDB: keys and times of the rows go in, one table of values for each view comes out.

Runs in a process of its own (`services.features.worker`): it blocks, and it may need more memory than there is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from services.common.errors import Violation
from services.common.refusals import InvalidRequest
from services.features.adapters import join_sql as sql
from services.features.adapters.aggregate_join import join_aggregates
from services.features.adapters.arrow_values import WrongColumn, check_zone, keys_of, times_of
from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.history_table import HistoryTable
from services.features.adapters.on_demand_join import OnDemandColumns
from services.features.domain.failure import INVALID_ENTITY_KEY, INVALID_EVENT_TIME
from services.features.domain.point_in_time import (
    AggregateView,
    Clock,
    HistoryFiles,
    JoinPlan,
    OnDemandView,
    PlannedFeature,
    PlannedView,
    ValueView,
    event_time_column,
)

ROWS_A_PIECE: Final = 65_536
_TIME: Final = pa.timestamp("us", "UTC")


@contextmanager
def open_engine(limits: EngineLimits) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database in memory that loads nothing from the network."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "memory_limit": f"{limits.memory_mib}MiB",
        "max_temp_directory_size": f"{limits.temp_mib}MiB",
        "temp_directory": limits.temp_dir,
        "threads": str(limits.threads),
        "preserve_insertion_order": "false",
    }
    connection = duckdb.connect(":memory:", config=config)
    try:
        connection.execute("SET enable_progress_bar = false")
        yield connection
    finally:
        connection.close()


class JoinEngine:
    """One join: `load_rows` once, then `join`. Keys `from_text` may be whole numbers written as text."""

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        plan: JoinPlan,
        histories: Mapping[str, HistoryFiles],
        reader: BatchReader,
        *,
        from_text: bool = False,
    ) -> None:
        self._db = db
        self._plan = plan
        self._histories = histories
        self._reader = reader
        self._from_text = from_text
        self.row_count = 0
        self.present_counts = dict.fromkeys(plan.outputs, 0)

    def load_rows(self, pieces: Iterator[pa.RecordBatch]) -> None:
        """Take keys and times of the rows; raises InvalidRequest naming the first column or row that is wrong."""
        keys = "".join(f", {sql.quote(sql.key_column(key.entity))} {sql.type_of(key.type)}" for key in self._plan.keys)
        self._db.execute(f"CREATE TABLE rows (row BIGINT, t BIGINT{keys})")
        for piece in pieces:
            self._check_names(piece.schema.names)
            self._db.register("piece", self._row_columns(piece))
            self._db.execute("INSERT INTO rows SELECT * FROM piece")
            self._db.unregister("piece")
            self.row_count += len(piece)

    def join(self, pieces: Iterator[pa.RecordBatch], on_progress: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
        """Yield the rows, given a second time, with the columns of the features; `on_progress` gets the rows done."""
        made = [self._join_view(f"result_{index}", view) for index, view in enumerate(self._plan.views)]
        results = self._results([table for table in made if table])
        on_demand = [OnDemandColumns(view) for view in self._plan.views if isinstance(view, OnDemandView)]
        done = 0
        for piece in pieces:
            for start in range(0, max(len(piece), 1), ROWS_A_PIECE):
                part = piece.slice(start, ROWS_A_PIECE)
                columns = dict(zip(part.schema.names, part.columns, strict=True)) | results.take(len(part))
                for each in on_demand:
                    columns |= each.compute(part, from_text=self._from_text)
                done += len(part)
                yield self._in_order(part, columns)
                on_progress(done)

    def _check_names(self, names: Sequence[str]) -> None:
        taken = sorted(set(names) & set(self._plan.outputs))
        if taken:
            want = f'want rows without the columns of the result, got one called "{taken[0]}"'
            raise InvalidRequest([Violation("rows", want)])

    def _row_columns(self, piece: pa.RecordBatch) -> pa.Table:
        def to_time(column: pa.Array) -> Any:
            if self._plan.time_zone:
                check_zone(self._plan.time_zone)
            return times_of(column, self._plan.time_zone)

        columns = {
            "row": pa.array(np.arange(self.row_count, self.row_count + len(piece))),
            "t": self._checked(piece, self._plan.time_column, "time_column", to_time, INVALID_EVENT_TIME),
        }
        for key in self._plan.keys:

            def to_key(column: pa.Array, key: Any = key) -> Any:
                return keys_of(column, key.type, from_text=self._from_text)

            field = f"entity_columns[{key.entity}]"
            columns[sql.key_column(key.entity)] = self._checked(piece, key.column, field, to_key, INVALID_ENTITY_KEY)
        return pa.table(columns)

    def _checked(
        self, piece: pa.RecordBatch, name: str, field: str, convert: Callable[[pa.Array], Any], reason: str
    ) -> pa.Array:
        index = piece.schema.get_field_index(name)
        if index < 0:
            have = ", ".join(piece.schema.names)[:200]
            raise InvalidRequest([Violation(field, f'want a column "{name}" in the rows, got {have}')])
        try:
            column, wrong = convert(piece.column(index))
        except WrongColumn as error:
            raise InvalidRequest([Violation(field, f'column "{name}": {error}')], reason) from None
        if reason == INVALID_EVENT_TIME:
            wrong = wrong | column.is_null().to_numpy(zero_copy_only=False)
        if wrong.any():
            row = int(wrong.argmax())
            got = str(piece.column(index)[row])[:64]
            place = f'column "{name}", row {self.row_count + row}'
            raise InvalidRequest([Violation(field, f"{place}: want a value of its type, got {got}")], reason)
        return column

    def _join_view(self, table: str, view: PlannedView) -> str:
        """Make the table with the results of a view and return its name; empty when it needs none."""
        match view:
            case OnDemandView():
                return ""
            case AggregateView():
                self._load_history(HistoryTable(self._db, "history", view.keys, view.fields), view)
                join_aggregates(self._db, view, table, self._plan)
            case ValueView():
                history = HistoryTable(self._db, "history", view.keys, view.features)
                if view.source is None:
                    self._load_history(history, view)
                else:
                    delay_us = self._plan.assumed_delay_us
                    for piece in self._reader.read_values(view.source, view.keys, view.features, delay_us):
                        history.add(piece, lambda query: sql.only_needed(view.keys, query))
                self._join_values(view, table)
        self._db.execute("DROP TABLE history")
        return table

    def _load_history(self, history: HistoryTable, view: ValueView | AggregateView) -> None:
        history.load(self._histories.get(view.view, HistoryFiles()), lambda query: sql.only_needed(view.keys, query))

    def _join_values(self, view: ValueView, table: str) -> None:
        both_clocks = self._plan.clock is Clock.BOTH
        parts = []
        for number, (features, where) in enumerate(self._presence_classes(view)):
            self._db.execute(f"CREATE TABLE steps AS {sql.steps(view.keys, features, where, both_clocks=both_clocks)}")
            self._db.execute(f"CREATE TABLE part_{number} AS {sql.as_of(view.keys, features)}")
            self._db.execute("DROP TABLE steps")
            parts.append(f"part_{number}")
        newest = ", ".join(f"{part}.event_us" for part in parts)
        outputs = ", ".join(sql.quote(feature.output) for feature in view.features)
        times = f"greatest({newest}) AS {sql.quote(event_time_column(view.view))}"
        joined = parts[0] + "".join(f" JOIN {part} USING (row)" for part in parts[1:])
        self._db.execute(f"CREATE TABLE {table} AS SELECT row, {outputs}, {times} FROM {joined}")
        for part in parts:
            self._db.execute(f"DROP TABLE {part}")

    def _presence_classes(self, view: ValueView) -> Iterator[tuple[Sequence[PlannedFeature], str]]:
        """Yield features that the same rows set, with the condition of that: those set by all rows, then each other."""
        counts = ", ".join(f"count(*) FILTER (NOT ({sql.is_set(feature)}))" for feature in view.features)
        [unset_counts] = self._db.sql(f"SELECT {counts} FROM history").fetchall()
        always = [feature for feature, unset in zip(view.features, unset_counts, strict=True) if not unset]
        if always:
            yield always, "true"
        for feature in view.features:
            if feature not in always:
                yield [feature], sql.is_set(feature)

    def _results(self, tables: Sequence[str]) -> "_Results":
        if not tables:
            return _Results(None)
        joined = tables[0] + "".join(f" JOIN {table} USING (row)" for table in tables[1:])
        return _Results(self._db.sql(f"SELECT * FROM {joined} ORDER BY row").to_arrow_reader(ROWS_A_PIECE))

    def _in_order(self, part: pa.RecordBatch, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Return the row's own columns, the features in the order asked, and the event times if wanted."""
        found = {name: columns[name] for name in (*part.schema.names, *self._plan.outputs)}
        for output in self._plan.outputs:
            self.present_counts[output] += len(part) - columns[output].null_count
        if self._plan.include_event_times:
            for view in self._plan.views:
                if not isinstance(view, OnDemandView):
                    name = event_time_column(view.view)
                    found[name] = columns[name].cast(_TIME)
        return pa.RecordBatch.from_arrays(list(found.values()), names=list(found))


class _Results:
    """Joined values, handed out in pieces as long as the rows that they belong to."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._rest: pa.Table | None = None if reader is None else reader.schema.empty_table()

    def take(self, count: int) -> dict[str, pa.Array]:
        """Return the values of the next rows, by column."""
        if self._rest is None:
            return {}
        while len(self._rest) < count:
            self._rest = pa.concat_tables([self._rest, pa.Table.from_batches([self._reader.read_next_batch()])])
        head, self._rest = self._rest.slice(0, count), self._rest.slice(count)
        return {name: _whole(head.column(name)) for name in head.schema.names if name != "row"}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])
