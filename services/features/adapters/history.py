"""The history: a log that is synced before anybody is told, and Parquet parts that it becomes a little later.

A segment of the log becomes parts whose names come from the segment's id, so doing it again after a crash writes the
same files. Until all of its parts are there the segment is read and its parts are not; after that, the other way round.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from fsspec.implementations.local import LocalFileSystem

from services.common.tasks import spawn
from services.common.write_log import Segment, WriteLog, sync_folder
from services.features.adapters.history_rows import (
    Batch,
    group_by_part,
    pack_batch,
    tables_of,
    unpack_batch,
    view_of,
)
from services.features.adapters.metrics import HistoryMetrics
from services.features.domain.failure import HistoryUnavailable
from services.features.domain.ports import HistoryScan, Row, ViewWriter

_T = TypeVar("_T")
_LOG: Final = structlog.get_logger(part="history")
_TICK_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
# Redis syncs its own log every second; after a crash of it the newest rows come back from here.
_KEEP_DONE_S: Final = 120.0


class FeatureHistory:
    """See `ports.History`."""

    def __init__(
        self,
        uri: str,
        log_folder: Path,
        *,
        roll_bytes: int,
        roll_s: float,
        backlog_bytes: int,
        clock_us: Callable[[], int],
        metrics: HistoryMetrics,
    ) -> None:
        """Open the history at an fsspec URI; the log is local, whatever the URI is."""
        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._log = WriteLog(log_folder, clock_us)
        self._roll_bytes = roll_bytes
        self._roll_us = round(roll_s * 1e6)
        self._backlog_bytes = backlog_bytes
        self._clock_us = clock_us
        self._metrics = metrics
        # All of the log's files are written by this thread, so a group is synced while the next one gathers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._waiting: list[tuple[ViewWriter, Sequence[Row], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()
        self.behind = asyncio.Event()
        """Set while the online store may lack rows that the log holds; nothing is forgotten then."""
        self.behind.set()

    async def open(self) -> None:
        """Find what an earlier process left."""
        await self._in_thread(self._log.adopt)

    async def close(self) -> None:
        """Finish what waits; the log stays for the next start."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._in_thread(self._log.close)
        self._thread.shutdown()

    async def append(self, writer: ViewWriter, rows: Sequence[Row]) -> None:
        """See `ports.History`: what is appended at the same moment is synced together."""
        if self._log.own_bytes() > self._backlog_bytes:
            raise HistoryUnavailable("its log is full, because Parquet parts cannot be written")
        safe: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((writer, rows, safe))
        if self._writing is None or self._writing.done():
            self._writing = spawn(self._write_groups(), "history-write")
        await safe

    async def scan(self, view: str) -> HistoryScan:
        """See `ports.History`."""
        async with self._moving:
            return await asyncio.to_thread(self._scan, view)

    async def newest(self) -> AsyncIterator[Batch]:
        """Yield what the log still holds, parts or not, the oldest first: the online store may lack it."""
        async with self._moving:
            segments = await self._in_thread(lambda: [*self._log.done(), *self._log.unfinished()])
            for segment in segments:
                batches = map(unpack_batch, segment.records())
                while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                    yield batch

    async def run(self) -> None:
        """Make Parquet of the log, for as long as the service lives."""
        pause_s = _TICK_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = _TICK_S if await self._tick() else min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def roll(self) -> bool:
        """Make Parquet of everything that the log holds now; returns whether that worked."""
        await self._in_thread(self._log.seal)
        return await self._roll_sealed()

    async def _tick(self) -> bool:
        current = self._log.current
        if current is not None and self._clock_us() - current.created_us >= self._roll_us:
            await self._in_thread(self._log.seal)
        await self._in_thread(self._log.adopt)
        good = await self._roll_sealed()
        async with self._moving:
            if not self.behind.is_set():
                await self._in_thread(self._forget)
        self._measure()
        return good

    async def _roll_sealed(self) -> bool:
        """Return whether every sealed segment is Parquet now."""
        segments = list(self._log.sealed)
        done = [await self._roll_one(segment) for segment in segments]
        return all(done)

    async def _roll_one(self, segment: Segment) -> bool:
        try:
            await asyncio.to_thread(self._write_parts, segment)
            async with self._moving:
                await self._in_thread(self._log.finish, segment)
        except Exception as error:  # noqa: BLE001 - a store of any kind may fail in its own way; the log keeps all
            self._metrics.failures.labels("part").inc()
            _LOG.error("history_parts_failed", segment=segment.path.name, error=str(error)[:500])
            return False
        return True

    async def _write_groups(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            started = time.perf_counter()
            try:
                failures = await self._in_thread(self._write, [(writer, rows) for writer, rows, _ in group])
            except OSError as error:
                self._metrics.failures.labels("log").inc()
                _LOG.error("history_log_failed", error=str(error))
                failures = [HistoryUnavailable(error.strerror or "the disk fails") for _ in group]
            self._metrics.sync_seconds.observe(time.perf_counter() - started)
            for (_, _, safe), failure in zip(group, failures, strict=True):
                if safe.done():
                    continue
                if failure is None:
                    safe.set_result(None)
                else:
                    safe.set_exception(failure)

    def _write(self, group: Sequence[tuple[ViewWriter, Sequence[Row]]]) -> list[Exception | None]:
        """Append what can be packed; returns why not for what cannot, which harms nobody else's rows."""
        records: list[bytes] = []
        failures: list[Exception | None] = []
        for writer, rows in group:
            try:
                records.append(pack_batch(writer, rows))
                failures.append(None)
            except (ValueError, TypeError) as error:
                failures.append(error)
        self._log.append(records)
        current = self._log.current
        if current is not None and current.safe_bytes >= self._roll_bytes:
            self._log.seal()
        return failures

    def _write_parts(self, segment: Segment) -> None:
        groups = group_by_part(map(unpack_batch, segment.records()))
        for number, ((view, day, shape), rows) in enumerate(groups.items()):
            name = f"part-{segment.id}-{number}.parquet"
            for table in tables_of([Batch(view, 0, shape, rows)]):
                self._put(f"{self._root}/{view}/{day}", name, table)

    def _put(self, folder: str, name: str, table: pa.Table) -> None:
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        if not self._local:
            self._fs.pipe_file(f"{folder}/{name}", buffer.getvalue())
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        half = Path(folder) / f".{name}.tmp"
        try:
            with half.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            half.replace(Path(folder) / name)
        except OSError:
            half.unlink(missing_ok=True)
            raise
        _sync_folders(Path(folder))

    def _scan(self, view: str) -> HistoryScan:
        # First the segments, then the parts: what becomes Parquet in between is read from its segment.
        unfinished = self._log.unfinished()
        hidden = {segment.id for segment in unfinished}
        found = self._fs.glob(f"{self._root}/{view}/*/part-*.parquet")
        parts = [path for path in sorted(found) if Path(path).name.split("-")[1] not in hidden]
        uris = parts if self._local else [self._fs.unstrip_protocol(path) for path in parts]
        tables = tables_of(_batches(unfinished, view))
        tail = pa.concat_tables(tables, promote_options="default") if tables else None
        return HistoryScan(uris, tail)

    def _forget(self) -> None:
        for segment in self._log.done():
            if time.time() - segment.path.stat().st_mtime > _KEEP_DONE_S:
                segment.path.unlink(missing_ok=True)

    def _measure(self) -> None:
        unfinished = [*self._log.sealed, *filter(None, [self._log.current])]
        self._metrics.log_bytes.set(self._log.own_bytes())
        oldest_us = min((segment.created_us for segment in unfinished), default=self._clock_us())
        self._metrics.oldest_seconds.set((self._clock_us() - oldest_us) / 1e6)
        self._metrics.waiting_rows.set(sum(len(rows) for _, rows, _ in self._waiting))

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _batches(segments: Sequence[Segment], view: str) -> Iterator[Batch]:
    for segment in segments:
        yield from (unpack_batch(record) for record in segment.records() if view_of(record) == view)


def _sync_folders(folder: Path) -> None:
    # A day's and a view's folder may be new.
    for each in (folder, folder.parent, folder.parent.parent):
        sync_folder(each)
