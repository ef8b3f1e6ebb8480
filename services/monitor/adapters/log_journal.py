"""Keeps on the disk what the log has only in memory until its next file: the journal, for a start after a crash.

A record is a table with the name of the file that will hold it, so whether it still counts is told by that file.
"""

import asyncio
import errno
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import structlog

from services.common.tasks import spawn
from services.common.write_log import Segment, WriteLog
from services.monitor.adapters.log_files import Partition

_T = TypeVar("_T")
_LOG: Final = structlog.get_logger(part="prediction-log")
_ABOUT: Final = b"interlock.part"
# Half the bytes cost less than what compressing them does.
_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_LIMIT_ROWS: Final = 2_000_000


@dataclass(slots=True)
class TailPart:
    """Predictions of one model, hour and version that are in no file yet."""

    partition: Partition
    version: str
    name: str
    """Name of the file that will hold them: who sees that file must not count them twice."""
    tables: list[pa.Table] = field(default_factory=list)
    row_count: int = 0
    closed: bool = False
    """It is being written, so nothing is added."""

    def add(self, table: pa.Table) -> None:
        """Add predictions."""
        self.tables.append(table)
        self.row_count += table.num_rows


_Record = tuple[TailPart, int, pa.Table]


class LogJournal:
    """What is added at the same moment is synced together. What cannot be written is not tried again: a file will have it."""

    def __init__(self, folder: Path) -> None:
        self._log = WriteLog(folder, lambda: time.time_ns() // 1000)
        self._waiting: list[_Record] = []
        self._waiting_rows = 0
        self._writing: asyncio.Task[None] | None = None
        # Done when the last group that was begun is written.
        self._last: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-journal")
        self.failure: Exception | None = None
        """Why something that is in memory is not on the disk."""

    async def open(self) -> list[TailPart]:
        """Return what an earlier process left; the files of some of it may be there all the same."""
        return await self._in_thread(self._read)

    async def close(self) -> None:
        """Finish what waits; what is not forgotten is found by the next start."""
        await self.settle()
        await self._in_thread(self._log.close)
        self._thread.shutdown()

    def add(self, part: TailPart, index: int) -> None:
        """Write a table of a part down soon; one that comes again counts once."""
        if self._waiting_rows > _LIMIT_ROWS:
            # Memory is bounded by the tail, and must not be kept from here when the disk hangs.
            self.failure = OSError(errno.EAGAIN, "the disk is too slow")
            return
        if not self._waiting:
            self._last = asyncio.get_running_loop().create_future()
        table = part.tables[index]
        self._waiting.append((part, index, table))
        self._waiting_rows += table.num_rows
        if self._writing is None or self._writing.done():
            self._writing = spawn(self._write(), "log-journal")

    async def settle(self) -> None:
        """Return once everything added so far is on the disk, or `failure` says why not."""
        if self._last is not None:
            await asyncio.wait((self._last,))

    async def seal(self) -> Sequence[Segment]:
        """Return what can be forgotten once everything that is in memory now is in files."""
        await self._in_thread(self._log.seal)
        return list(self._log.sealed)

    async def forget(self, segments: Sequence[Segment], failure: Exception | None) -> None:
        """Forget what is in files, and a failure that had been met when they were begun."""
        if self.failure is failure:
            self.failure = None
        try:
            await self._in_thread(self._drop, segments)
        except OSError as error:
            # The next start tells by the names of their files that they are over.
            _LOG.warning("journal_not_forgotten", error=str(error))

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting, self._waiting_rows = self._waiting, [], 0
            written = self._last
            assert written is not None, "begun with the group"
            try:
                await self._in_thread(self._append, group)
            except (OSError, pa.ArrowException) as error:
                self.failure = error
                _LOG.error("journal_not_written", error=str(error))
            finally:
                written.set_result(None)

    def _append(self, group: Sequence[_Record]) -> None:
        self._log.append([_packed(*record) for record in group])

    def _drop(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            self._log.drop(segment)

    def _read(self) -> list[TailPart]:
        self._log.adopt()
        parts: dict[str, TailPart] = {}
        found: dict[tuple[str, int], pa.Table] = {}
        for segment in self._log.sealed:
            for part, index, table in _unpacked(segment):
                parts.setdefault(part.name, part)
                found[part.name, index] = table
        for (name, _), table in sorted(found.items(), key=itemgetter(0)):
            parts[name].add(table)
        return list(parts.values())

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _packed(part: TailPart, index: int, table: pa.Table) -> bytes:
    about = {
        "model": part.partition.model,
        "hour": part.partition.hour,
        "version": part.version,
        "name": part.name,
        "index": index,
    }
    sink = pa.BufferOutputStream()
    schema = table.schema.with_metadata({_ABOUT: json.dumps(about)})
    with pa.ipc.new_stream(sink, schema, options=_OPTIONS) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _unpacked(segment: Segment) -> Iterator[_Record]:
    for record in segment.records():
        try:
            table = pa.ipc.open_stream(record).read_all()
            about = json.loads(table.schema.metadata[_ABOUT])
            # Nothing is added to what another process began.
            part = TailPart(Partition(about["model"], about["hour"]), about["version"], about["name"], closed=True)
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            _LOG.error("journal_record_unreadable", segment=segment.path.name, error=str(error))
            continue
        yield part, about["index"], table.replace_schema_metadata(None)
