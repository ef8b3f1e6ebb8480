"""Merges the files of closed hours into one for each version, every id once, and removes what is past its time.

Crash-safe without any note: the merged file names those that it replaces, so it counts from the moment it is there and
they do not; they are deleted a while later, when nobody reads them any more. Its name is made from theirs, so two
that do the same do the same thing.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from services.monitor.adapters.log_files import HOUR_US, LogFile, LogFiles, Partition
from services.monitor.domain.log_table import ids_of, unified_schema
from services.monitor.domain.ports import LogPolicies

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

_LOG: Final = structlog.get_logger(part="prediction-log")
_SLICE_ROWS: Final = 131_072
_CLOSED_AFTER_US: Final = 600 * 1_000_000
"""How long after its end an hour counts as closed; what comes later is merged again."""
_DELETE_AFTER_S: Final = 120.0
"""Longer than any query may take."""
_LAST: Final = 1 << 62


class LogCompaction:
    """Looks after the log of one process."""

    def __init__(
        self, files: LogFiles, policies: LogPolicies, *, interval_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._files = files
        self._policies = policies
        self._interval_s = interval_s
        self._clock = clock
        self._replaced_at: dict[str, float] = {}

    async def run(self) -> None:
        """Look after the log every `interval_s` seconds, for good."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.look()

    async def look(self) -> None:
        """Look after every partition once."""
        try:
            partitions = await asyncio.to_thread(self._files.partitions)
        except OSError as error:
            _LOG.error("compaction_failed", error=str(error))
            return
        for partition in partitions:
            try:
                await asyncio.to_thread(self._look_after, partition)
            except (OSError, pa.ArrowException) as error:
                _LOG.error("compaction_failed", folder=partition.folder, error=str(error))
                await asyncio.to_thread(self._check, partition)

    def _look_after(self, partition: Partition) -> None:
        now = self._clock()
        end_us = (partition.hour + 1) * HOUR_US
        if end_us < (now - self._policies.of_model(partition.model).log_retention_s) * 1e6:
            self._files.remove_partition(partition)
            return
        if end_us + _CLOSED_AFTER_US > now * 1e6:
            return
        files, replaced = self._files.listing(partition)
        for _, found in groupby(sorted(files, key=_version), key=_version):
            same = list(found)
            if len(same) > 1:
                self._merge(partition, same)
        self._delete(replaced, now)

    def _check(self, partition: Partition) -> None:
        self._files.check(self._files.listing(partition)[0])

    def _merge(self, partition: Partition, files: Sequence[LogFile]) -> None:
        replaces = frozenset().union(*({file.name} | file.replaces for file in files))
        digest = hashlib.sha256(b"\n".join(name.encode() for name in sorted(replaces))).hexdigest()
        name = f"merged-{digest[:32]}.parquet"
        schema = unified_schema(file.schema for file in files)
        dataset = self._files.dataset(files, schema)
        cuts = self._cuts(files)
        with self._files.writing(partition, schema, name=name, version=files[0].version, replaces=replaces) as writer:
            for table in _slices(dataset, cuts):
                writer.write_table(table)

    def _cuts(self, files: Sequence[LogFile]) -> list[int]:
        """Return times, microseconds, that cut the rows into slices of about the same size."""
        cuts, rows = [0], 0
        for first_us, count in sorted(group for file in files for group in self._files.row_groups(file)):
            if rows and rows + count > _SLICE_ROWS and first_us > cuts[-1]:
                cuts.append(first_us)
                rows = 0
            rows += count
        return [*cuts, _LAST]

    def _delete(self, replaced: Sequence[str], now: float) -> None:
        for path in replaced:
            if now - self._replaced_at.setdefault(path, now) >= _DELETE_AFTER_S:
                self._files.remove(path)
                del self._replaced_at[path]


def _version(file: LogFile) -> str:
    return file.version


def _slices(dataset: "Dataset", cuts: Sequence[int]) -> Iterator[pa.Table]:
    """Yield the rows between the cuts, sorted by id, each id once."""
    when = pc.field("prediction_time")
    for first_us, end_us in pairwise(cuts):
        limits = (pa.scalar(limit, pa.timestamp("us")) for limit in (first_us, end_us))
        table = dataset.to_table(filter=(when >= next(limits)) & (when < next(limits)))
        halves = ids_of(table["prediction_id"]).view(">u8")
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        ordered = halves[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        yield table.take(pa.array(order[first]))
