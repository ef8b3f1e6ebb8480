"""Point-in-time joins on DuckDB: keys and times of the rows go in, one table of values for each view comes out.

Runs in a process of its own (`offline_worker`): it blocks, and it may need more memory than there is.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import fsspec
import numpy as np
import pyarrow as pa

from services.features.adapters import join_sql as sql
from services.features.adapters.aggregate_join import join_aggregates
from services.features.adapters.arrow_values import WrongColumn, check_zone, keys_of, times_of
from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.on_demand_join import OnDemandColumns
from services.features.domain.failure import InvalidRequest, SourceUnreadable
from services.features.domain.point_in_time import (
    AggregateView,
    Clock,
    HistoryFiles,
    JoinPlan,
    OnDemandView,
    PlannedFeature,
    ValueView,
    event_time_column,
)
from services.common.errors import Violation

_ROWS_A_PIECE: Final = 65_536
_EPOCH: Final = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class EngineLimits:
    """What DuckDB may use; `temp_dir` is where it goes when the memory is full."""

    temp_dir: str
    memory_mib: int = 2048
    temp_mib: int = 65_536
    threads: int = 1


@contextlib.contextmanager
def open_engine(limits: EngineLimits) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database in memory that loads nothing from the network."""
    config = {
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
        yield connection
    finally:
        connection.close()


class JoinEngine:
    """One join: `load_rows` once, then `join`."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        plan: JoinPlan,
        histories: Mapping[str, HistoryFiles],
        reader: BatchReader,
    ) -> None:
        self._db = connection
        self._plan = plan
        self._histories = histories
        self._reader = reader
        self.row_count = 0
        self.present_counts = dict.fromkeys(plan.outputs, 0)

    def load_rows(self, pieces: Iterator[pa.RecordBatch]) -> None:
        """Take keys and times of the rows; raises InvalidRequest naming the first column or row that is wrong."""
        columns = "".join(
            f", {sql.quote(sql.key_column(key.entity))} {sql.type_of(key.type)}" for key in self._plan.keys
        )
        self._db.execute(f"CREATE TABLE rows (row BIGINT, t BIGINT{columns})")
        for piece in pieces:
            keys_and_time = self._row_columns(piece)
            self._db.register("piece", keys_and_time)
            self._db.execute("INSERT INTO rows SELECT * FROM piece")
            self._db.unregister("piece")
            self.row_count += len(piece)

    def join(self, pieces: Iterator[pa.RecordBatch], on_progress: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
        """Yield the rows, given a second time, with the columns of the features; `on_progress` gets the rows done."""
        tables = [table for index, view in enumerate(self._plan.views) if (table := self._join_view(index, view))]
        joined = self._results(tables)
        on_demand = [OnDemandColumns(view) for view in self._plan.views if isinstance(view, OnDemandView)]
        done = 0
        for piece in pieces:
            columns = dict(zip(piece.schema.names, piece.columns, strict=True))
            for start in range(0, max(len(piece), 1), _ROWS_A_PIECE):
                part = piece.slice(start, _ROWS_A_PIECE)
                columns = dict(zip(part.schema.names, part.columns, strict=True))
                columns |= joined.take(len(part))
                for each in on_demand:
                    columns |= each.compute(part)
                done += len(part)
                yield self._in_order(part, columns)
                on_progress(done)

    def _row_columns(self, piece: pa.RecordBatch) -> pa.Table:
        numbers = pa.array(np.arange(self.row_count, self.row_count + len(piece)))
        time_us = self._checked(piece, self._plan.time_column, "time_column", self._to_time, nulls=False)
        columns = {"row": numbers, "t": time_us}
        for key in self._plan.keys:
            columns[sql.key_column(key.entity)] = self._checked(
                piece, key.column, f"entity_columns.{key.entity}", lambda column, key=key: keys_of(column, key.type)
            )
        return pa.table(columns)

    def _to_time(self, column: pa.Array) -> Any:
        if self._plan.time_zone:
            check_zone(self._plan.time_zone)
        return times_of(column, self._plan.time_zone)

    def _checked(
        self,
        piece: pa.RecordBatch,
        name: str,
        field: str,
        convert: Callable[[pa.Array], Any],
        *,
        nulls: bool = True,
    ) -> pa.Array:
        index = piece.schema.get_field_index(name)
        if index < 0:
            raise InvalidRequest(
                [Violation(field, f'want a column "{name}" in the rows, got {", ".join(piece.schema.names)[:200]}')]
            )
        try:
            column, wrong = convert(piece.column(index))
        except WrongColumn as error:
            raise InvalidRequest([Violation(field, f'column "{name}": {error}')]) from None
        if not nulls:
            wrong = wrong | column.is_null().to_numpy(zero_copy_only=False)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            got = str(piece.column(index)[row])[:64]
            raise InvalidRequest(
                [Violation(field, f'column "{name}", row {self.row_count + row}: want a value of its type, got {got}')]
            )
        return column

    def _join_view(self, index: int, view: Any) -> str:
        """Make the table with the results of a view and return its name; empty when it needs none."""
        if isinstance(view, OnDemandView):
            return ""
        self._db.execute("DROP TABLE IF EXISTS history")
        table = f"result_{index}"
        if isinstance(view, AggregateView):
            self._load_history(view, [(each.name, sql.type_of(each.type)) for each in view.fields if each.type])
            join_aggregates(self._db, view, table, self._plan)
        else:
            self._load_values(view)
            self._join_values(view, table)
        self._db.execute("DROP TABLE history")
        return table

    def _load_values(self, view: ValueView) -> None:
        values = [(each.name, sql.type_of(each.type, is_list=each.is_list)) for each in view.features]
        if view.source is None:
            self._load_history(view, values)
            return
        self._create_history(view, values)
        pieces = self._reader.read_values(view.source, view.keys, view.features, self._plan.assumed_delay_us)
        for piece in pieces:
            self._insert_needed(view, pa.Table.from_batches([piece]), "*")

    def _load_history(self, view: ValueView | AggregateView, values: Sequence[tuple[str, str]]) -> None:
        self._create_history(view, values)
        files = self._histories.get(view.view, HistoryFiles())
        groups = _files_by_columns(self._db, files.parts)
        for present, paths in groups.items():
            listed = ", ".join(map(sql.text, paths))
            chosen = sql.history_columns(view.keys, values, present)
            self._insert(view, f"SELECT {chosen} FROM read_parquet([{listed}], union_by_name = true)", paths[0])
        if files.tail:
            with pa.OSFile(files.tail) as file, pa.ipc.open_stream(file) as tail:
                table = tail.read_all()
            self._insert_needed(view, table, sql.history_columns(view.keys, values, set(table.schema.names)))

    def _create_history(self, view: ValueView | AggregateView, values: Sequence[tuple[str, str]]) -> None:
        self._db.execute(f"CREATE TABLE history ({sql.history_types(view.keys, values)})")

    def _insert_needed(self, view: ValueView | AggregateView, table: pa.Table, columns: str) -> None:
        self._db.register("incoming", table)
        self._insert(view, f"SELECT {columns} FROM incoming", view.view)
        self._db.unregister("incoming")

    def _insert(self, view: ValueView | AggregateView, query: str, source: str) -> None:
        try:
            self._db.execute(f"INSERT INTO history BY NAME {sql.only_needed(view.keys, query)}")
        except (
            duckdb.IOException,
            duckdb.InvalidInputException,
            duckdb.ConversionException,
            duckdb.BinderException,
        ) as error:
            raise SourceUnreadable(source, str(error).split("\n", 1)[0][:300]) from error

    def _join_values(self, view: ValueView, table: str) -> None:
        both = self._plan.clock is Clock.BOTH
        parts = []
        for number, (features, where) in enumerate(self._presence_classes(view)):
            self._db.execute(f"CREATE TABLE steps AS {sql.steps(view.keys, features, where, both_clocks=both)}")
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
        """Yield features that are set in the same rows, with the condition of that: all that every row sets, then each."""
        counts = ", ".join(f"count(*) FILTER (NOT ({sql.is_set(feature)}))" for feature in view.features)
        [row] = self._db.sql(f"SELECT {counts} FROM history").fetchall()
        always = [feature for feature, unset in zip(view.features, row, strict=True) if not unset]
        if always:
            yield always, "true"
        for feature in view.features:
            if feature not in always:
                yield [feature], sql.is_set(feature)

    def _results(self, tables: Sequence[str]) -> "_Results":
        if not tables:
            return _Results(None)
        joined = tables[0] + "".join(f" JOIN {table} USING (row)" for table in tables[1:])
        reader = self._db.sql(f"SELECT * FROM {joined} ORDER BY row").to_arrow_reader(_ROWS_A_PIECE)
        return _Results(reader)

    def _in_order(self, part: pa.RecordBatch, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """Return the row's own columns, the features in the order asked, and the event times if wanted."""
        names = [*part.schema.names, *self._plan.outputs]
        for output in self._plan.outputs:
            self.present_counts[output] += len(part) - columns[output].null_count
        if self._plan.include_event_times:
            names += [event_time_column(view.view) for view in self._plan.views if not isinstance(view, OnDemandView)]
        arrays = [
            columns[name].cast(_EPOCH)
            if name not in part.schema.names and name not in self.present_counts
            else columns[name]
            for name in names
        ]
        return pa.RecordBatch.from_arrays(arrays, names=names)


class _Results:
    """Joined values, handed out in pieces as long as the rows that they belong to."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._rest: pa.Table | None = None

    def take(self, count: int) -> dict[str, pa.Array]:
        """Return the values of the next rows, by column."""
        if self._reader is None:
            return {}
        rest = self._rest if self._rest is not None else self._reader.schema.empty_table()
        while len(rest) < count:
            rest = pa.concat_tables([rest, pa.Table.from_batches([self._reader.read_next_batch()])])
        head, self._rest = rest.slice(0, count), rest.slice(count)
        return {name: _whole(head.column(name)) for name in head.schema.names if name != "row"}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def _files_by_columns(db: duckdb.DuckDBPyConnection, uris: Sequence[str]) -> dict[frozenset[str], list[str]]:
    """Return the files by the columns that they have: a view may have got features after some were written."""
    groups: dict[frozenset[str], list[str]] = {}
    paths = [_readable(db, uri) for uri in uris]
    if not paths:
        return groups
    listed = ", ".join(map(sql.text, paths))
    try:
        found = db.sql(
            f"SELECT file_name, list(DISTINCT name) FROM parquet_schema([{listed}]) GROUP BY file_name"
        ).fetchall()
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise SourceUnreadable(
            paths[0] if len(paths) == 1 else "history", str(error).split("\n", 1)[0][:300]
        ) from error
    for path, names in found:
        groups.setdefault(frozenset(names), []).append(path)
    return groups


def _readable(db: duckdb.DuckDBPyConnection, uri: str) -> str:
    """Return what DuckDB calls a file: a path here, else the URI, read through fsspec."""
    protocol, _, rest = uri.partition("://")
    if not rest:
        return uri
    if protocol == "file":
        return rest
    if not db.filesystem_is_registered(protocol):
        db.register_filesystem(fsspec.filesystem(protocol))
    return uri


def write_stream(path: Path, pieces: Iterator[pa.RecordBatch]) -> int:
    """Write rows as an Arrow stream and return how many; the schema is that of the first piece."""
    count = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(pa.OSFile(str(path), "wb"))
        writer = None
        for piece in pieces:
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_stream(file, piece.schema))
            writer.write_batch(piece)
            count += len(piece)
    return count
