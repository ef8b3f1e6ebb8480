"""Queries over the log, in a database of their own that lives as long as the query and can reach nothing else.

DuckDB itself opens no file and no connection (`enable_external_access` is off from the start and cannot be put on
again): what it reads is an Arrow data set that is handed to it.
"""

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from services.common.storage_failure import StorageFull
from services.monitor.adapters.label_reader import LabelReader
from services.monitor.adapters.log_reader import LogReader
from services.monitor.domain.failure import InvalidQuery, LogUnavailable, MaybeDamaged, QueryTooLarge
from services.monitor.domain.log_question import Chunk, LogQuestion
from services.monitor.domain.log_table import first_id

if TYPE_CHECKING:
    from services.monitor.adapters.query_database import QueryDatabase


class LogQuery:
    """Answers queries, a few at a time, each with memory and a folder of its own."""

    def __init__(
        self, reader: LogReader, labels: LabelReader, *, folder: Path, memory_bytes: int, timeout_s: float, limit: int
    ) -> None:
        self._reader = reader
        self._labels = labels
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._free = limit
        # What a process that was killed has left.
        shutil.rmtree(folder, ignore_errors=True)

    async def ask(self, question: LogQuestion) -> AsyncGenerator[Chunk, None]:
        """Yield the answer as it is asked for; raises InvalidQuery, QueryTooLarge, LogUnavailable.

        Closing the generator ends the query.
        """
        if self._free < 1:
            raise QueryTooLarge("as many queries as may run are running; try again in a moment")
        self._free -= 1
        try:
            async with self._opened() as running:
                chunks = await self._begin(running, question)
                while (chunk := await running.step(lambda: next(chunks, None))) is not None:
                    yield chunk
        except MaybeDamaged as error:
            if not await asyncio.to_thread(self._reader.check_all):
                raise InvalidQuery(str(error)) from error
            raise LogUnavailable from error
        finally:
            self._free += 1

    async def _begin(self, running: "QueryDatabase", question: LogQuestion) -> Iterator[Chunk]:
        """Return the chunks of the answer, the first of which is made already, so that damage was met."""
        needs_labels = await running.step(lambda: running.check(question.sql))
        if needs_labels:
            await running.step(running.prepare_feedback)
            limits = first_id(question.start_us), first_id(question.end_us)
            async for table in self._labels.of_time(*limits):
                await running.step(partial(running.add_feedback, table))
        begin = partial(self._first, running, question, needs_labels=needs_labels)
        try:
            return await running.step(begin)
        except MaybeDamaged as error:
            if not await asyncio.to_thread(self._reader.check_all):
                raise InvalidQuery(str(error)) from error
        return await running.step(begin)

    def _first(self, running: "QueryDatabase", question: LogQuestion, *, needs_labels: bool) -> Iterator[Chunk]:
        models = [question.model] if question.model else None
        snapshot = self._reader.snapshot(models, question.start_us, question.end_us)
        running.prepare(self._reader.dataset(snapshot), snapshot, question, needs_labels=needs_labels)
        chunks = running.chunks(question.sql, question.max_row_count)
        return _chained(next(chunks), chunks)

    @asynccontextmanager
    async def _opened(self) -> "AsyncIterator[QueryDatabase]":
        opening = asyncio.get_running_loop().run_in_executor(None, self._open)
        try:
            # Of a caller that goes away meanwhile, what was opened is closed too.
            yield await asyncio.shield(opening)
        finally:
            await asyncio.wait([opening])
            await asyncio.shield(asyncio.to_thread(opening.result().close))

    def _open(self) -> "QueryDatabase":
        from services.monitor.adapters.query_database import QueryDatabase  # noqa: PLC0415 - DuckDB, for who asks

        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return QueryDatabase(mkdtemp(dir=self._folder, prefix="query-"), self._memory_bytes, self._timeout_s)
        except OSError as error:
            raise StorageFull("monitor") from error


def _chained(first: Chunk, rest: Iterator[Chunk]) -> Iterator[Chunk]:
    yield first
    yield from rest
