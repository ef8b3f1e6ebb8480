"""What a child process does: joins, staging of batch sources, comparison of logged vectors with recomputed ones."""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from services.common.errors import Violation
from services.common.refusals import InvalidRequest
from services.common.storage_failure import NO_ROOM
from services.features.adapters import join_sql as sql
from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.history_table import HistoryTable
from services.features.adapters.join_engine import ROWS_A_PIECE, JoinEngine, open_engine
from services.features.adapters.offline_task import (
    OUTPUT_FILE,
    ROWS_FILE,
    STAGED_FILE,
    OfflineTask,
    ParityTask,
    StageTask,
    StreamJoinTask,
    TableJoinTask,
    TaskFile,
    TaskResult,
    write_progress,
    write_result,
)
from services.features.adapters.parity_work import compare
from services.features.adapters.rooted_files import open_files, without_links
from services.features.domain.definitions import FileFormat, FileLocation
from services.features.domain.failure import OutputUnusable, SourceUnreadable, WorkTooLarge
from services.features.domain.file_roots import FileRoots

_ROWS_A_PART: Final = 1_000_000
_PROGRESS_EVERY: Final = 200_000


def run_task(folder: Path, file: TaskFile, reader: BatchReader) -> None:
    """Do the work and write its result; raises what the caller has to hear."""
    try:
        result = _work(folder, file.task, file.limits, reader)
    except duckdb.OutOfMemoryException as error:
        raise WorkTooLarge(str(error).split("\n", 1)[0][:300]) from error
    result.skipped_counts = dict(reader.skipped)
    write_result(folder, result)


def is_disk_full(error: Exception) -> bool:
    """Return whether work ended because the disk of this machine has no room left for what it spills and writes."""
    if isinstance(error, duckdb.IOException):
        return os.strerror(errno.ENOSPC) in str(error)
    return isinstance(error, OSError) and error.errno in NO_ROOM


def _work(folder: Path, task: OfflineTask, limits: EngineLimits, reader: BatchReader) -> TaskResult:
    match task:
        case StreamJoinTask():
            return _join_stream(folder, task, limits, reader)
        case TableJoinTask():
            return _join_table(folder, task, limits, reader)
        case StageTask():
            return _stage(folder, task, limits, reader)
        case ParityTask():
            return compare(task, limits, _read_stream(folder / ROWS_FILE), reader)


def _join_stream(folder: Path, task: StreamJoinTask, limits: EngineLimits, reader: BatchReader) -> TaskResult:
    with open_engine(limits) as db:
        engine = JoinEngine(db, task.plan, task.histories, reader)
        rows = folder / ROWS_FILE
        engine.load_rows(_checked_stream(rows))
        with pa.OSFile(str(folder / OUTPUT_FILE), "wb") as file, contextlib.ExitStack() as stack:
            writer = None
            for piece in engine.join(_read_stream(rows), lambda _done: None):
                if writer is None:
                    writer = stack.enter_context(pa.ipc.new_stream(file, piece.schema))
                writer.write_batch(piece)
    if reader.skipped:
        # A stream has no status in which counts could stand.
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reader.skipped.items()))
        raise SourceUnreadable("batch source", f"rows that cannot be used ({counts}); a PointInTimeJoinJob skips them")
    return TaskResult(engine.row_count, present_counts=engine.present_counts)


def _join_table(folder: Path, task: TableJoinTask, limits: EngineLimits, reader: BatchReader) -> TaskResult:
    files, path = _empty_folder(task, reader.roots)
    staged = folder / ROWS_FILE
    total = _write_stream(staged, reader.read_pieces(task.rows))
    write_progress(folder, 0, total)
    with open_engine(limits) as db:
        engine = JoinEngine(db, task.plan, task.histories, reader, from_text=_is_text(task))
        engine.load_rows(_read_stream(staged))
        pieces = engine.join(_read_stream(staged), _reporter(folder, total))
        for number, part in enumerate(_parts(pieces)):
            _write_part(files, f"{path}/part-{task.job_id}-{number:05d}.parquet", part, task.output_uri)
    return TaskResult(total, present_counts=engine.present_counts)


def _stage(folder: Path, task: StageTask, limits: EngineLimits, reader: BatchReader) -> TaskResult:
    with open_engine(limits) as db:
        between = f"event_us >= {task.start_us} AND event_us < {task.end_us}"

        def chosen(query: str) -> str:
            return f"SELECT * FROM ({query}) WHERE {between}"

        source = HistoryTable(db, "source", task.keys, task.features)
        for piece in reader.read_values(task.source, task.keys, task.features, 0):
            source.add(piece, chosen)
        has_known_at = bool(task.source.known_at_column)
        if not has_known_at:
            db.execute(f"UPDATE source SET known_us = {task.known_us}")
        HistoryTable(db, "history", task.keys, task.features).load(task.history, chosen)
        query = sql.staged(task.keys, task.features, both_clocks=has_known_at)
        pieces = db.sql(query).to_arrow_reader(ROWS_A_PIECE)
        count = 0
        with pq.ParquetWriter(str(folder / STAGED_FILE), pieces.schema) as writer:
            for piece in pieces:
                writer.write_batch(piece)
                count += len(piece)
    return TaskResult(count)


def _empty_folder(task: TableJoinTask, roots: FileRoots) -> tuple[Any, str]:
    """Open the folder of the result, without what an earlier attempt at this job left there."""
    try:
        files, path = open_files(task.output_uri, roots)
        path = without_links(files, path, roots)
        files.makedirs(path, exist_ok=True)
        files.invalidate_cache()
        for name in files.find(path):
            if not name.rpartition("/")[2].startswith(f"part-{task.job_id}-"):
                raise OutputUnusable(task.output_uri, f"want an empty folder, got one with {name.rpartition('/')[2]}")
            files.rm_file(name)
    except (OSError, ValueError, ImportError) as error:
        raise OutputUnusable(task.output_uri, str(error)[:200]) from error
    return files, path


def _write_part(files: Any, path: str, pieces: Iterator[pa.RecordBatch], uri: str) -> None:
    first = next(pieces)
    try:
        with files.open(path, "wb") as file, pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            for piece in itertools.chain([first], pieces):
                writer.write_batch(piece)
    except OSError as error:
        raise OutputUnusable(uri, str(error)[:200]) from error


def _parts(pieces: Iterator[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield runs of pieces that go into one file each."""
    for first in pieces:
        yield _run(first, pieces)


def _run(first: pa.RecordBatch, pieces: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    count = len(first)
    while count < _ROWS_A_PART and (piece := next(pieces, None)) is not None:
        yield piece
        count += len(piece)


def _is_text(task: TableJoinTask) -> bool:
    location = task.rows.location
    return not isinstance(location, FileLocation) or location.format is FileFormat.CSV


def _reporter(folder: Path, total: int) -> Callable[[int], None]:
    last = 0

    def report(done: int) -> None:
        nonlocal last
        if done - last >= _PROGRESS_EVERY or done == total:
            last = done
            write_progress(folder, done, total)

    return report


def _write_stream(path: Path, pieces: Iterator[pa.RecordBatch]) -> int:
    """Keep rows as an Arrow stream, all in the schema of the first piece, and return how many there are."""
    count, writer = 0, None
    with pa.OSFile(str(path), "wb") as file, contextlib.ExitStack() as stack:
        for piece in pieces:
            if writer is None:
                schema = piece.schema
                writer = stack.enter_context(pa.ipc.new_stream(file, schema))
            try:
                writer.write_table(pa.Table.from_batches([piece]).cast(schema))
            except (pa.ArrowInvalid, ValueError) as error:
                raise SourceUnreadable("rows", f"want the same columns everywhere; {str(error)[:200]}") from error
            count += len(piece)
        if writer is None:
            raise SourceUnreadable("rows", "want at least one row, got none")
    return count


def _read_stream(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a stream, at least one piece, so that an empty result has columns too."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        first = next(iter(stream), None)
        if first is None:
            first = pa.RecordBatch.from_pylist([], stream.schema)
        yield first
        yield from stream


def _checked_stream(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield rows that somebody sent, each piece checked before anything looks into it."""
    try:
        for piece in _read_stream(path):
            piece.validate(full=True)
            yield piece
    except (pa.ArrowException, OSError, ValueError) as error:
        why = str(error).split("\n", 1)[0][:200]
        raise InvalidRequest(
            [Violation("arrow_stream", f"want one Arrow IPC stream, got one that breaks: {why}")]
        ) from None
