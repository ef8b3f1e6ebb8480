"""The DuckDB database of one query over the log, which can reach nothing but what it is handed.

A module of its own: DuckDB is imported by the first query, not by the start of the monitor.
"""

import asyncio
import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

import duckdb
import pyarrow as pa

from services.monitor.adapters.label_reader import FEEDBACK_SCHEMA
from services.monitor.adapters.log_reader import Snapshot
from services.monitor.domain.failure import InvalidQuery, MaybeDamaged, QueryTooLarge
from services.monitor.domain.log_question import Chunk, LogQuestion
from services.monitor.domain.log_table import FEATURE_PREFIX, FIXED_FIELDS
from services.monitor.domain.query_rule import VIEW, Refused, check_query

_T = TypeVar("_T")
_ROWS: Final = "prediction_rows"
_FEEDBACK: Final = "feedback_rows"
_BATCH_ROWS: Final = 8192
_CHUNK_BYTES: Final = 1024 * 1024
_MESSAGE_CHARS: Final = 600
_POLL_S: Final = 0.05
_THREADS: Final = 2
# What only the asker can mend. Anything else may come of a damaged file.
_ASKERS_FAULTS: Final = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.NotImplementedException,
    duckdb.SyntaxException,
)
_RENAMED: Final = {"latency_us", "entities", "feature_event_times"}
_LABELS: Final = f"""
    LEFT JOIN (
        SELECT prediction_id,
               any_value(value) FILTER (metric = '') AS label,
               any_value(name) FILTER (metric = '') AS label_name,
               any_value(event_time) FILTER (metric = '') AS label_time,
               map_from_entries(list((metric, value)) FILTER (metric <> '')) AS rewards
        FROM {_FEEDBACK} GROUP BY prediction_id
    ) AS feedback USING (prediction_id)"""  # noqa: S608 - our own names
_LABEL_COLUMNS: Final = (
    "label",
    "label_name",
    "epoch(label_time - prediction_time) AS label_delay_s",
    "coalesce(rewards, MAP {}::MAP(VARCHAR, DOUBLE)) AS rewards",
)
_NO_LABEL_COLUMNS: Final = (
    "NULL::DOUBLE AS label",
    "NULL::VARCHAR AS label_name",
    "NULL::DOUBLE AS label_delay_s",
    "MAP {}::MAP(VARCHAR, DOUBLE) AS rewards",
)


class QueryDatabase:
    """One database; its methods block, and `step` runs one of them. Its temporary files lie in the folder `spill`."""

    def __init__(self, spill: str, memory_bytes: int, timeout_s: float) -> None:
        self._spill = spill
        self._seconds_left = timeout_s
        self._timeout_s = timeout_s
        self._database: Any = duckdb.connect(
            ":memory:",
            config={
                "enable_external_access": "false",
                "python_enable_replacements": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "memory_limit": f"{memory_bytes}B",
                "temp_directory": spill,
                "max_temp_directory_size": f"{4 * memory_bytes}B",
                "threads": str(_THREADS),
            },
        )

    def close(self) -> None:
        """Forget everything."""
        self._database.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    async def step(self, work: Callable[[], _T]) -> _T:
        """Run work in a thread, for what is left of the time; raises QueryTooLarge. A cancellation ends the work."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        future = loop.run_in_executor(None, partial(_translated, work))
        try:
            async with asyncio.timeout(self._seconds_left):
                return await asyncio.shield(future)
        except TimeoutError:
            await self._interrupt(future)
            raise QueryTooLarge(f"the query took longer than {self._timeout_s:g} s; ask for less") from None
        except asyncio.CancelledError:
            await self._interrupt(future)
            raise
        finally:
            self._seconds_left = max(0.0, self._seconds_left - (loop.time() - started))

    async def _interrupt(self, future: "asyncio.Future[Any]") -> None:
        while not future.done():
            # It only meets what runs at this moment.
            self._database.interrupt()
            await asyncio.wait([future], timeout=_POLL_S)
        future.exception()

    def check(self, sql: str) -> bool:
        """Return whether a query needs labels; raises InvalidQuery."""
        try:
            tree = json.loads(self._database.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchone()[0])
            names = self._database.execute(
                "SELECT view_name FROM duckdb_views() UNION SELECT table_name FROM duckdb_tables()"
            )
            return check_query(tree, {_ROWS, _FEEDBACK, *(name for (name,) in names.fetchall())})
        except Refused as refused:
            raise InvalidQuery(_short(refused)) from None
        except RecursionError:
            raise InvalidQuery("want a query that is nested less deeply") from None

    def prepare_feedback(self) -> None:
        """Make the table that labels and rewards go to."""
        self._database.register("chunk", FEEDBACK_SCHEMA.empty_table())
        self._database.execute(f"CREATE TEMP TABLE {_FEEDBACK} AS FROM chunk")
        self._database.unregister("chunk")

    def add_feedback(self, table: pa.Table) -> None:
        """Add labels and rewards."""
        self._database.register("chunk", table)
        self._database.execute(f"INSERT INTO {_FEEDBACK} FROM chunk")
        self._database.unregister("chunk")

    def prepare(self, rows: Any, snapshot: Snapshot, question: LogQuestion, *, needs_labels: bool) -> None:
        """Make the view, over the rows of a snapshot that lie in the time of the question."""
        self._database.register(_ROWS, rows)
        columns = [field.name for field in FIXED_FIELDS if field.name not in _RENAMED]
        columns += ["latency_us / 1000 AS latency_ms", "entities", "feature_event_times", _features(snapshot.schema)]
        columns += _LABEL_COLUMNS if needs_labels else _NO_LABEL_COLUMNS
        limits = " AND ".join(
            f"prediction_time {sign} make_timestamp({limit}::BIGINT)"
            for sign, limit in ((">=", question.start_us), ("<", question.end_us))
        )
        joined = _LABELS if needs_labels else ""
        self._database.execute(
            f"CREATE OR REPLACE TEMP VIEW {VIEW} AS SELECT {', '.join(columns)} "  # noqa: S608 - names are quoted
            f"FROM {_ROWS}{joined} WHERE {limits}"
        )

    def chunks(self, sql: str, max_row_count: int) -> Iterator[Chunk]:
        """Yield the result."""
        answer = self._database.sql(sql).to_arrow_reader(_BATCH_ROWS)
        sink = io.BytesIO()
        rows_left = max_row_count
        truncated = False
        with pa.ipc.new_stream(sink, answer.schema) as writer:
            for batch in answer:
                truncated = batch.num_rows > rows_left
                writer.write_batch(batch.slice(0, rows_left) if truncated else batch)
                rows_left -= min(batch.num_rows, rows_left)
                if sink.tell() >= _CHUNK_BYTES:
                    yield from _cut(sink)
                if truncated:
                    break
        rest = list(_cut(sink))
        yield from rest[:-1]
        yield Chunk(rest[-1].content, truncated)


def _features(schema: pa.Schema) -> str:
    """Return the expression of the struct of features; of names that differ in case only the first is in it."""
    names: dict[str, str] = {}
    for name in schema.names:
        if name.startswith(FEATURE_PREFIX):
            names.setdefault(name.lower(), name)
    if not names:
        return 'NULL::STRUCT("none" BOOLEAN) AS features'
    fields = (f"{_quoted(name.removeprefix(FEATURE_PREFIX))} := {_quoted(name)}" for name in names.values())
    return f"struct_pack({', '.join(fields)}) AS features"


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _cut(sink: io.BytesIO) -> Iterator[Chunk]:
    """Yield what a sink holds, in pieces, and empty it."""
    content = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    for start in range(0, len(content), _CHUNK_BYTES):
        yield Chunk(content[start : start + _CHUNK_BYTES])


def _translated(work: Callable[[], _T]) -> _T:
    try:
        return work()
    except duckdb.OutOfMemoryException:
        raise QueryTooLarge("the query needs more memory than it may have; ask for less") from None
    except _ASKERS_FAULTS as error:
        raise InvalidQuery(_short(error)) from None
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise MaybeDamaged(_short(error)) from error


def _short(error: Exception) -> str:
    return str(error)[:_MESSAGE_CHARS]
