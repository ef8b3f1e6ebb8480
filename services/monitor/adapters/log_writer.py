"""Writes predictions into the log: gathered for seconds, then a file for each model, hour and version.

Meanwhile they are in memory, where they can be read, and in the journal, from which the next start has them after a crash.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import structlog

from services.common.storage_failure import NO_ROOM, StorageFull
from services.common.tasks import to_the_end
from services.monitor.adapters.log_files import HOUR_US, LogFiles, Partition, names_held
from services.monitor.adapters.log_journal import LogJournal, TailPart
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.columns import PredictionColumns
from services.monitor.domain.failure import LogNotWritten
from services.monitor.domain.log_table import sample, table_of
from services.monitor.domain.ports import LogPolicies

_LOG: Final = structlog.get_logger(part="prediction-log")
PART: Final = "log"
_DISK_FULL: Final = "disk_full"
_FACTOR_OF_LIMIT: Final = 4
_ALL: Final = 10_000
_SEGMENTS_LIMIT: Final = 20


class LogWriter:
    """A `PredictionSink`. What cannot be written is kept, up to `4 * flush_rows`; beyond that it is dropped, counted."""

    def __init__(
        self,
        files: LogFiles,
        journal: LogJournal,
        policies: LogPolicies,
        drops: Drops,
        *,
        flush_rows: int,
        flush_interval_s: float,
        clock_tolerance_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._journal = journal
        self._policies = policies
        self._drops = drops
        self._flush_rows = flush_rows
        self._flush_interval_s = flush_interval_s
        self._tolerance_us = int(clock_tolerance_s * 1e6)
        self._clock = clock
        self._parts: list[TailPart] = []
        self._full = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._failure = "slow"
        self.row_count = 0
        """Predictions in memory."""

    async def open(self) -> None:
        """Take up what an earlier process has left in the journal; what cannot be written yet is in the tail."""
        left = await self._journal.open()
        partitions = sorted({part.partition for part in left})
        written = await asyncio.to_thread(self._names_in, partitions)
        self._parts = [part for part in left if part.name not in written]
        self.row_count = sum(part.row_count for part in self._parts)
        if self._parts:
            _LOG.info("log_restored", predictions=self.row_count)
        await self.flush()

    async def close(self) -> None:
        """Write everything; what cannot be is for the next start."""
        await self.flush()
        await self._journal.close()

    async def take(self, columns: PredictionColumns) -> None:
        """Keep the predictions that belong into the log."""
        policy = self._policies.of_model(columns.model)
        now_us = int(self._clock() * 1e6)
        times = columns.prediction_time_us
        oldest_us = now_us - int(policy.log_retention_s * 1e6)
        fits = (times > oldest_us) & (times <= now_us + self._tolerance_us)
        self._drops.add(PART, "out_of_range", int(columns.count - fits.sum()))
        if policy.log_basis_points < _ALL:
            fits &= sample(columns.ids, policy.log_basis_points)
        chosen = np.flatnonzero(fits)
        if not len(chosen):
            return
        if self.row_count + len(chosen) > _FACTOR_OF_LIMIT * self._flush_rows:
            self._drops.add(PART, self._failure, len(chosen))
            return
        factor = _ALL / policy.log_basis_points if policy.log_basis_points < _ALL else 1.0
        hours = times[chosen] // HOUR_US
        for hour in np.unique(hours):
            table = table_of(columns, chosen[hours == hour], factor)
            self._keep(Partition(columns.model, int(hour)), columns.version, table)
        if self.row_count >= self._flush_rows:
            self._full.set()

    def tail(self, models: frozenset[str] | None, first_hour: int, last_hour: int) -> Iterator[TailPart]:
        """Yield what is in no file, of some models or all. Take it before listing files, or a file in between is missed."""
        for part in list(self._parts):
            partition = part.partition
            if first_hour <= partition.hour <= last_hour and (models is None or partition.model in models):
                yield TailPart(partition, part.version, part.name, list(part.tables), part.row_count)

    async def run(self) -> None:
        """Write every few seconds, or as soon as there is enough, for good."""
        while True:
            try:
                async with asyncio.timeout(self._flush_interval_s):
                    await self._full.wait()
            except TimeoutError:
                pass
            self._full.clear()
            # A flush that is cut goes on in its thread, and the next one would write the same file beside it.
            if not await to_the_end(self.flush()):
                await asyncio.sleep(self._flush_interval_s)

    async def safe(self) -> None:
        """Return once everything taken so far is on the disk; raises StorageFull, or LogNotWritten."""
        await self._journal.settle()
        if self._journal.failure is not None and not await to_the_end(self.flush()):
            raise StorageFull("monitor") if self._failure == _DISK_FULL else LogNotWritten

    async def flush(self) -> bool:
        """Write everything that is in memory; returns whether it worked. What fails stays for the next time."""
        async with self._flushing:
            worked, failure = True, self._journal.failure
            segments = await self._journal.seal()
            for part in list(self._parts):
                part.closed = True
                worked = await self._write(part) and worked
            if worked:
                self._failure = "slow"
            if worked or (len(segments) > _SEGMENTS_LIMIT and await self._write_down_again()):
                await self._journal.forget(segments, failure)
            return worked

    async def _write_down_again(self) -> bool:
        """Give the journal what is left: a part that cannot be written must not keep the records of all that was."""
        failure = self._journal.failure
        for part in self._parts:
            for index in range(len(part.tables)):
                self._journal.add(part, index)
        await self._journal.settle()
        return self._journal.failure is failure

    async def _write(self, part: TailPart) -> bool:
        try:
            await asyncio.to_thread(self._write_now, part)
        except (OSError, pa.ArrowException) as error:
            number = getattr(error, "errno", None)
            self._failure = _DISK_FULL if number in NO_ROOM else "write_failed"
            _LOG.error("log_not_written", folder=part.partition.folder, rows=part.row_count, error=str(error))
            return False
        self._parts.remove(part)
        self.row_count -= part.row_count
        return True

    def _write_now(self, part: TailPart) -> None:
        table = pa.concat_tables(part.tables, promote_options="permissive")
        self._files.write(part.partition, table, name=part.name, version=part.version)

    def _keep(self, partition: Partition, version: str, table: pa.Table) -> None:
        found = next((part for part in self._parts if _takes(part, partition, version, table)), None)
        if found is None:
            found = TailPart(partition, version, self._files.new_name())
            self._parts.append(found)
        found.add(table)
        self.row_count += table.num_rows
        self._journal.add(found, len(found.tables) - 1)

    def _names_in(self, partitions: Sequence[Partition]) -> frozenset[str]:
        try:
            return names_held(self._files.files(partitions))
        except OSError as error:
            # Readers tell by the name, too; and writing a file again gives the same file.
            _LOG.warning("log_not_read", error=str(error))
            return frozenset()


def _takes(part: TailPart, partition: Partition, version: str, table: pa.Table) -> bool:
    """Whether a part is open for a table; a version's columns change once, when its signature gets known."""
    is_same = (part.partition, part.version) == (partition, version)
    return not part.closed and is_same and part.tables[0].schema.equals(table.schema)
