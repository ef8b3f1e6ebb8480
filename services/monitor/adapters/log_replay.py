"""Gives back from the log what a crash took from memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from services.common.refusals import ResourceNotFound
from services.monitor.adapters.log_files import LogFile, LogFiles, names_held
from services.monitor.adapters.log_journal import TailPart
from services.monitor.domain.columns import PredictionColumns
from services.monitor.domain.failure import RegistryUnavailable
from services.monitor.domain.log_table import columns_of_table
from services.monitor.domain.version_info import VersionInfo
from services.monitor.domain.window_ports import VersionFinder

_LOG: Final = structlog.get_logger(part="windows")
_PATIENCE_S: Final = 60
_RECEIVED: Final = "receive_time"
_STEP_US: Final = 600 * 1_000_000
"""What was received within so long is given back in one piece."""
_CLOCKS_APART_US: Final = 600 * 1_000_000
_BATCH_ROWS: Final = 32_768


@dataclass(frozen=True, slots=True)
class _Candidate:
    part: LogFile | TailPart
    first_us: int
    last_us: int


class LogReplay:
    """Reads what was received in a time, in the order in which it was received."""

    def __init__(self, files: LogFiles, unwritten: Sequence[TailPart], versions: VersionFinder) -> None:
        """`unwritten` is what an earlier process left that could not be written at the start."""
        self._files = files
        self._unwritten = unwritten
        self._versions = versions

    async def between(self, after_us: int, until_us: int) -> AsyncIterator[tuple[list[PredictionColumns], int]]:
        """Yield pieces: predictions, and the receive time by which everything has been given once the piece is."""
        if until_us <= after_us:
            return
        candidates = await asyncio.to_thread(self._candidates, after_us, until_us)
        while candidates:
            begin_us = max(after_us, min(found.first_us for found in candidates) - 1)
            after_us = min(begin_us + _STEP_US, until_us)
            piece = []
            for found in candidates:
                if found.first_us <= after_us and found.last_us > begin_us:
                    piece += await self._piece(found.part, begin_us, after_us)
            yield piece, min(after_us, max(found.last_us for found in candidates))
            candidates = [found for found in candidates if found.last_us > after_us]

    def _candidates(self, after_us: int, until_us: int) -> list[_Candidate]:
        """Return what holds something received in a time."""
        found: list[tuple[LogFile | TailPart, int, int]] = []
        # A file is written after the last of its predictions was received; clocks of stores may be a little off.
        changed = (p for p in self._files.partitions() if self._files.was_changed(p, after_us - _CLOCKS_APART_US))
        files = self._files.files(changed)
        for file in files:
            times = self._files.range_of(file, _RECEIVED)
            if times is not None:
                found.append((file, *times))
        written = names_held(files)
        for part in self._unwritten:
            received = [table[_RECEIVED].cast(pa.int64()) for table in part.tables]
            if part.name not in written:
                first_us, last_us = (edge([edge(times).as_py() for times in received]) for edge in (pc.min, pc.max))
                found.append((part, first_us.as_py(), last_us.as_py()))
        return [
            _Candidate(part, first_us, min(last_us, until_us))
            for part, first_us, last_us in found
            if last_us > after_us and first_us <= until_us
        ]

    def _read(self, part: LogFile | TailPart, after_us: int, until_us: int) -> list[pa.Table]:
        received = pc.field(_RECEIVED)
        limits = [pa.scalar(limit, pa.timestamp("us")) for limit in (after_us, until_us)]
        if isinstance(part, LogFile):
            dataset = self._files.dataset([part], part.schema)
        else:
            table = pa.concat_tables(part.tables, promote_options="permissive")
            dataset = self._files.dataset([], table.schema, [table])
        batches = dataset.to_batches(filter=(received > limits[0]) & (received <= limits[1]), batch_size=_BATCH_ROWS)
        return [pa.Table.from_batches([batch]) for batch in batches if batch.num_rows]

    async def _piece(self, part: LogFile | TailPart, after_us: int, until_us: int) -> list[PredictionColumns]:
        info = await self._find(part)
        if info is None:
            return []
        try:
            return await asyncio.to_thread(lambda: list(self._columns(part, after_us, until_us, info)))
        except (OSError, pa.ArrowException) as error:
            _LOG.error("log_file_not_replayed", file=part.name, error=str(error))
            return []

    def _columns(
        self, part: LogFile | TailPart, after_us: int, until_us: int, info: VersionInfo
    ) -> Iterator[PredictionColumns]:
        for table in self._read(part, after_us, until_us):
            for rows in _parts(table):
                has_prediction = "prediction" in rows.column_names
                was_run = rows["prediction"].is_valid() if has_prediction else pc.equal(rows["status"], 0)
                run, failed = rows.filter(was_run), rows.filter(pc.invert(was_run))
                if run.num_rows:
                    yield columns_of_table(run, info)
                if failed.num_rows:
                    nothing: dict[str, Any] = {"rows": np.empty(0, dtype=np.int64), "features": {}}
                    yield replace(columns_of_table(failed, info), predicted=None, probabilities=None, **nothing)

    async def _find(self, part: LogFile | TailPart) -> VersionInfo | None:
        """Return the version of a part; a registry that starts at the same time as we do is waited for."""
        for _ in range(_PATIENCE_S):
            try:
                return await self._versions.find(part.partition.model, part.version) if part.version else None
            except ResourceNotFound:
                return None
            except RegistryUnavailable:
                await asyncio.sleep(1)
        _LOG.error("log_file_not_replayed", file=part.name, error="the registry does not answer")
        return None


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of each environment and variant."""
    names = ("environment", "variant")
    for found in (
        table.select(names)
        .cast(pa.schema([(name, pa.string()) for name in names]))
        .group_by(names)
        .aggregate([])
        .to_pylist()
    ):
        yield table.filter(
            (pc.field("environment") == found["environment"]) & (pc.field("variant") == found["variant"])
        )
