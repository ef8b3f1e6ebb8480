"""Reads the prediction log: its files together with what is still in memory."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from services.monitor.adapters.log_files import LogFile, LogFiles, Partition, hour_of, names_held
from services.monitor.adapters.log_journal import TailPart
from services.monitor.adapters.log_writer import LogWriter
from services.monitor.domain.columns import Bytes
from services.monitor.domain.decode import times_of_ids
from services.monitor.domain.failure import LogUnavailable
from services.monitor.domain.log_table import ids_of, unified_schema

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

_LOG: Final = structlog.get_logger(part="prediction-log")
_T = TypeVar("_T")
_INDEXED_ROWS: Final = 4_000_000
"""Ids in memory, 16 bytes each, and the most predictions of one hour among which ids are looked for one by one."""
_ID: Final = np.dtype("S16")
_Ids = npt.NDArray[np.bytes_]
_WHEN: Final = pc.field("prediction_time")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Predictions of some models and hours as they are at one moment."""

    files: tuple[LogFile, ...]
    tail: tuple[TailPart, ...]
    schema: pa.Schema

    @property
    def parts(self) -> tuple[LogFile | TailPart, ...]:
        """Files and what is in memory."""
        return (*self.files, *self.tail)

    @property
    def row_count(self) -> int:
        """Predictions, with those that stand in two files counted twice."""
        return sum(part.row_count for part in self.parts)


class LogReader:
    """Gives snapshots, and looks predictions up by id. What finds a damaged file leaves it out and goes on."""

    def __init__(self, files: LogFiles, writer: LogWriter) -> None:
        self.files = files
        self._writer = writer
        self._ids: OrderedDict[str, _Ids] = OrderedDict()
        self._lock = threading.Lock()

    def tail(self, model: str, first_hour: int, last_hour: int) -> list[TailPart]:
        """Return what is in memory only."""
        return list(self._writer.tail(frozenset([model]), first_hour, last_hour))

    def snapshot(self, models: Iterable[str] | None, start_us: int, end_us: int) -> Snapshot:
        """Return the hours that hold [start_us, end_us). Blocks."""
        names = frozenset(models) if models is not None else None
        hours = hour_of(start_us), hour_of(end_us - 1)
        # Before the files: what is written in between is then in both, and told by its name.
        tail = list(self._writer.tail(names, *hours))
        return self._with_files(self.files.partitions(names, *hours), tail)

    def dataset(self, snapshot: Snapshot) -> "Dataset":
        """Return a snapshot as one dataset with all columns of its schema."""
        tables = [fitted(table, snapshot.schema) for part in snapshot.tail for table in part.tables]
        return self.files.dataset(snapshot.files, snapshot.schema, tables)

    async def known(self, ids: Sequence[bytes]) -> list[tuple[str, str] | bool]:
        """Return model and version of each prediction; False for one that is not in the log, True for one of an hour
        that has too many to look for it.
        """  # noqa: D205 - one sentence
        return await self.carefully(lambda: self._known(ids))

    async def rows(self, ids: Sequence[bytes]) -> list[pa.Table]:
        """Return the predictions of some ids, each once, one table for each version and file, in any order."""
        return await self.carefully(lambda: self._rows(ids))

    async def carefully(self, read: Callable[[], _T]) -> _T:
        """Run a read in a thread; when a file turns out to be damaged, leave it out and read again."""
        try:
            return await asyncio.to_thread(read)
        except (OSError, pa.ArrowException) as error:
            _LOG.warning("log_not_read", error=str(error))
            await asyncio.to_thread(self.check_all)
        try:
            return await asyncio.to_thread(read)
        except (OSError, pa.ArrowException) as error:
            _LOG.error("log_not_read", error=str(error))
            raise LogUnavailable from error

    def check_all(self) -> bool:
        """Read every file through; returns whether some are damaged or gone. Blocks."""
        return self.files.check(self.files.files(self.files.partitions()))

    def _with_files(self, partitions: Sequence[Partition], tail: Iterable[TailPart]) -> Snapshot:
        files = self.files.files(partitions)
        written = names_held(files)
        rest = tuple(part for part in tail if part.name not in written)
        schemas = [file.schema for file in files] + [table.schema for part in rest for table in part.tables]
        return Snapshot(tuple(files), rest, unified_schema(schemas))

    def _hour(self, hour: int) -> Snapshot:
        tail = list(self._writer.tail(None, hour, hour))
        return self._with_files([Partition(model, hour) for model in self.files.models()], tail)

    def _known(self, ids: Sequence[bytes]) -> list[tuple[str, str] | bool]:
        wanted = _as_ids(ids)
        found: list[tuple[str, str] | bool] = [False] * len(ids)
        for hour, places in _by_hour(wanted):
            snapshot = self._hour(hour)
            if snapshot.row_count > _INDEXED_ROWS:
                for place in places:
                    found[place] = True
                continue
            for part in snapshot.parts:
                for place in places[_contains(self._ids_of(part), wanted[places])]:
                    found[place] = (part.partition.model, part.version)
        return found

    def _rows(self, ids: Sequence[bytes]) -> list[pa.Table]:
        wanted = _as_ids(ids)
        tables = []
        for hour, places in _by_hour(wanted):
            rest = np.sort(wanted[places])
            snapshot = self._hour(hour)
            for part in snapshot.parts:
                few = part.row_count > _INDEXED_ROWS or _contains(self._ids_of(part), rest).any()
                table = self._matching(part, rest) if few else None
                if table is not None and table.num_rows:
                    tables.append(table)
                    rest = rest[~np.isin(rest, _as_ids_array(ids_of(table["prediction_id"])))]
                if not len(rest):
                    break
        return tables

    def _matching(self, part: LogFile | TailPart, wanted: _Ids) -> pa.Table:
        times = pa.array(np.unique(times_of_ids(_as_bytes(wanted))), pa.timestamp("us"))
        if isinstance(part, LogFile):
            table = self.files.dataset([part], part.schema).to_table(filter=_WHEN.isin(times))
        else:
            table = pa.concat_tables(part.tables).filter(_WHEN.isin(times))
        ids = _as_ids_array(ids_of(table["prediction_id"]))
        _, first = np.unique(ids, return_index=True)
        return table.take(pa.array(first[np.isin(ids[first], wanted)]))

    def _ids_of(self, part: LogFile | TailPart) -> _Ids:
        if isinstance(part, TailPart):
            return np.sort(_as_ids_array(np.concatenate([ids_of(table["prediction_id"]) for table in part.tables])))
        with self._lock:
            found = self._ids.pop(part.path, None)
        if found is None:
            table = self.files.dataset([part], part.schema).to_table(columns=["prediction_id"])
            found = np.sort(_as_ids_array(ids_of(table["prediction_id"])))
        with self._lock:
            # The last ones used stay.
            self._ids[part.path] = found
            while sum(map(len, self._ids.values())) > _INDEXED_ROWS and len(self._ids) > 1:
                self._ids.popitem(last=False)
        return found


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema; what it lacks is null."""
    return pa.table([_fitted(table, field) for field in schema], schema=schema)


def _fitted(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table[field.name]
    return column if column.type.equals(field.type) else column.cast(field.type)


def _as_ids(ids: Sequence[bytes]) -> _Ids:
    return np.frombuffer(b"".join(ids), dtype=_ID)


def _as_ids_array(ids: Bytes) -> _Ids:
    return np.ascontiguousarray(ids).view(_ID).ravel()


def _as_bytes(ids: _Ids) -> Bytes:
    return np.ascontiguousarray(ids).view(np.uint8).reshape(-1, 16)


def _by_hour(ids: _Ids) -> Iterable[tuple[int, npt.NDArray[np.int64]]]:
    """Yield hours and the positions of their ids."""
    hours = hour_of(times_of_ids(_as_bytes(ids)))  # type: ignore[arg-type]
    for hour in np.unique(hours):
        yield int(hour), np.flatnonzero(hours == hour)


def _contains(ordered: _Ids, wanted: _Ids) -> npt.NDArray[np.bool_]:
    places = np.searchsorted(ordered, wanted)
    inside = places < len(ordered)
    found: npt.NDArray[np.bool_] = inside & (ordered[np.where(inside, places, 0)] == wanted) if len(ordered) else inside
    return found
