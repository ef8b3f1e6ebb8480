"""The files of the prediction log: `<model>/<yyyy-mm-dd-hh>/<name>.parquet`, the hour being that of the prediction, UTC.

A file appears whole or not at all, safe on the disk, and never changes. A file may say that it replaces others: from the moment it is
there, those do not count, whether they are deleted yet or not.
"""

import json
import os
import tempfile
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as arrow_fs

from services.common.names import is_id
from services.common.write_log import sync_folder
from services.monitor.domain.log_table import foreign_to_log

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

_LOG: Final = structlog.get_logger(part="prediction-log")
HOUR_US: Final = 3_600_000_000
_HOUR_FORM: Final = "%Y-%m-%d-%H"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SUFFIX: Final = ".parquet"
_REPLACES: Final = b"interlock.replaces"
_VERSION: Final = b"interlock.version"
_ROW_GROUP_ROWS: Final = 65_536
_FOOTER_LIMIT: Final = 20_000


def hour_of(time_us: int) -> int:
    """Return the hour of a time, in hours since 1970."""
    return time_us // HOUR_US


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One model's predictions of one hour."""

    model: str
    hour: int
    """Hours since 1970 UTC."""

    @property
    def folder(self) -> str:
        """Path below the log's root."""
        return f"{self.model}/{(_EPOCH + timedelta(hours=self.hour)).strftime(_HOUR_FORM)}"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file with what its footer says."""

    partition: Partition
    name: str
    path: str
    version: str
    schema: pa.Schema = field(compare=False, hash=False)
    row_count: int = 0
    replaces: frozenset[str] = frozenset()
    """Names in the same folder that do not count any more."""


class LogFiles:
    """Lists, reads and writes. All methods block; call them in threads."""

    def __init__(self, uri: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(uri)
        self._local = isinstance(self._fs, LocalFileSystem)
        handler = arrow_fs.LocalFileSystem() if self._local else arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(self._fs))
        self._arrow_fs = handler
        self._footers: OrderedDict[str, LogFile] = OrderedDict()
        self._bad: set[str] = set()

    @property
    def bad_count(self) -> int:
        """Files that were found to be damaged, and are left out."""
        return len(self._bad)

    def models(self) -> list[str]:
        """Return the models that have predictions in the log."""
        return self._names(self._root)

    def row_groups(self, file: LogFile) -> list[tuple[int, int]]:
        """Return the first prediction time, microseconds, and the number of rows of each row group of a file."""
        with self._arrow_fs.open_input_file(file.path) as opened:
            metadata = pq.read_metadata(opened)
        column = file.schema.get_field_index("prediction_time")
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        return [(group.column(column).statistics.min_raw, group.num_rows) for group in groups]

    def range_of(self, file: LogFile, column: str) -> tuple[int, int] | None:
        """Return the smallest and the largest value of a column of whole numbers or times; None when it has none."""
        index = file.schema.get_field_index(column)
        if index < 0 or not file.row_count:
            return None
        with self._arrow_fs.open_input_file(file.path) as opened:
            metadata = pq.read_metadata(opened)
        found = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
        return min(statistics.min_raw for statistics in found), max(statistics.max_raw for statistics in found)

    def was_changed(self, partition: Partition, since_us: int) -> bool:
        """Return whether a partition has a file that was written after a time; where that is not told, yes."""
        folder = f"{self._root}/{partition.folder}"
        try:
            return any(
                self._fs.modified(f"{folder}/{name}").timestamp() * 1e6 > since_us for name in self._names(folder)
            )
        except (NotImplementedError, FileNotFoundError):
            return True

    def partitions(
        self, models: Iterable[str] | None = None, first_hour: int = 0, last_hour: int = 1 << 40
    ) -> list[Partition]:
        """Return the partitions of some models, or of all, from one hour to another, inclusive, oldest first."""
        found = []
        for model in sorted(set(models)) if models is not None else self.models():
            for name in self._names(f"{self._root}/{model}"):
                hour = _parse_hour(name)
                if hour is not None and first_hour <= hour <= last_hour:
                    found.append(Partition(model, hour))
        return sorted(found, key=lambda partition: (partition.hour, partition.model))

    def files(self, partitions: Iterable[Partition]) -> list[LogFile]:
        """Return the files that count, in the order of the partitions."""
        return [file for partition in partitions for file in self.listing(partition)[0]]

    def listing(self, partition: Partition) -> tuple[list[LogFile], list[str]]:
        """Return the files of a partition that count, and the paths of those that others have replaced."""
        folder = f"{self._root}/{partition.folder}"
        names = [name for name in self._names(folder) if name.endswith(_SUFFIX) and not name.startswith(".")]
        found = [file for name in names if (file := self._footer(partition, f"{folder}/{name}")) is not None]
        counting = [file for file in found if not _is_replaced(file, found)]
        kept = {file.name for file in counting} | (set(names) - {file.name for file in found})
        return counting, [f"{folder}/{name}" for name in names if name not in kept]

    def dataset(self, files: Sequence[LogFile], schema: pa.Schema, tables: Sequence[pa.Table] = ()) -> "Dataset":
        """Return files and tables of exactly this schema as one dataset; what a file lacks is null."""
        import pyarrow.dataset as ds  # noqa: PLC0415 - imports pandas where there is one: not to start

        children = [self._read([file.path for file in files], schema)] if files else []
        children.append(ds.dataset(pa.concat_tables(tables) if tables else schema.empty_table()))
        return ds.UnionDataset(schema, children)

    def _read(self, paths: str | Sequence[str], schema: pa.Schema | None = None) -> "Dataset":
        import pyarrow.dataset as ds  # noqa: PLC0415 - as above

        # A page that was damaged on the disk is found when it is read, not when its numbers are believed.
        options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        form = ds.ParquetFileFormat(default_fragment_scan_options=options)
        return ds.dataset(paths, schema=schema, format=form, filesystem=self._arrow_fs)

    def new_name(self) -> str:
        """Return a name that no file has."""
        return f"part-{uuid.uuid4().hex}{_SUFFIX}"

    def write(self, partition: Partition, table: pa.Table, *, name: str, version: str) -> None:
        """Write a file; raises OSError. The file is there whole, or not at all."""
        with self.writing(partition, table.schema, name=name, version=version) as writer:
            writer.write_table(table.unify_dictionaries(), row_group_size=_ROW_GROUP_ROWS)

    @contextmanager
    def writing(
        self, partition: Partition, schema: pa.Schema, *, name: str, version: str, replaces: Iterable[str] = ()
    ) -> Iterator[pq.ParquetWriter]:
        """Open a writer of a new file, which appears when the block ends without an error; raises OSError."""
        about = {_VERSION: version, _REPLACES: json.dumps(sorted(replaces))}
        folder = f"{self._root}/{partition.folder}"
        self._fs.makedirs(folder, exist_ok=True)
        with self._appearing(f"{folder}/{name}", f"{folder}/.{name}") as unfinished:
            options = {"compression": "zstd", "compression_level": 1, "write_page_checksum": True}
            with pq.ParquetWriter(unfinished, schema.with_metadata(about), **options) as writer:
                yield writer

    @contextmanager
    def _appearing(self, path: str, beside: str) -> Iterator[str]:
        """Give the path of a local file that becomes `path` when the block ends without an error."""
        if self._local:
            try:
                yield beside
                _sync(beside)
                Path(beside).replace(path)
                # A model's and an hour's folder may be new.
                for parent in (Path(path).parent, Path(path).parent.parent, Path(self._root)):
                    sync_folder(parent)
            except BaseException:
                self.remove(beside)
                raise
            return
        with tempfile.TemporaryDirectory(prefix="il-log-") as folder:
            local = f"{folder}/unfinished"
            yield local
            self._fs.put_file(local, path)

    def remove(self, path: str) -> None:
        """Delete a file; one that is gone already is fine."""
        self._footers.pop(path, None)
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            return

    def remove_partition(self, partition: Partition) -> None:
        """Delete a partition with all that is in it."""
        folder = f"{self._root}/{partition.folder}"
        for name in self._names(folder):
            self.remove(f"{folder}/{name}")
        if self._local:
            self._fs.rmdir(folder)

    def check(self, files: Iterable[LogFile]) -> bool:
        """Read files through and leave those out from now on that cannot be; returns whether there were any."""
        found = False
        for file in files:
            try:
                for _ in self._read(file.path).to_batches():
                    pass
            except FileNotFoundError:
                self._footers.pop(file.path, None)
                found = True
            except (OSError, pa.ArrowException) as error:
                found = self._leave_out(file.path, error) or found
        return found

    def _names(self, folder: str) -> list[str]:
        try:
            # Object stores remember listings; files come from elsewhere too, a compaction that was cut off for one.
            self._fs.invalidate_cache(folder)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(folder, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _footer(self, partition: Partition, path: str) -> LogFile | None:
        if path in self._bad:
            return None
        found = self._footers.get(path)
        if found is None:
            found = self._read_footer(partition, path)
            if found is None:
                return None
            self._footers[path] = found
            while len(self._footers) > _FOOTER_LIMIT:
                self._footers.popitem(last=False)
        return found

    def _read_footer(self, partition: Partition, path: str) -> LogFile | None:
        try:
            with self._arrow_fs.open_input_file(path) as opened:
                metadata = pq.read_metadata(opened)
            about: dict[bytes, bytes] = metadata.metadata or {}
            schema = metadata.schema.to_arrow_schema()
            _check(schema, metadata)
            version = about.get(_VERSION, b"-").decode()
            if version and not is_id(version):
                raise ValueError(f"want the id of a version in the metadata, got {version!r}")
            return LogFile(
                partition,
                path.rpartition("/")[2],
                path,
                version,
                schema,
                metadata.num_rows,
                frozenset(map(str, json.loads(about.get(_REPLACES, b"[]")))),
            )
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError, pa.ArrowException) as error:
            self._leave_out(path, error)
            return None

    def _leave_out(self, path: str, error: Exception) -> bool:
        """Leave a file out from now on, unless it is the store that cannot be read; returns whether it was left out."""
        if getattr(error, "errno", None) is not None:
            _LOG.warning("log_file_not_read", path=path, error=str(error))
            return False
        self._footers.pop(path, None)
        self._bad.add(path)
        _LOG.error("log_file_damaged", path=path, error=str(error))
        return True


def _check(schema: pa.Schema, metadata: pq.FileMetaData) -> None:
    """Raise ValueError for a file that is sound and none of ours: one such must not spoil what is read with it."""
    wrong = foreign_to_log(schema)
    if wrong:
        raise ValueError(wrong)
    index = schema.get_field_index("prediction_id")
    groups = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
    if any(group is not None and group.null_count for group in groups):
        raise ValueError("want an id for each prediction, got nulls")


def names_held(files: Iterable[LogFile]) -> frozenset[str]:
    """Return the names of files and of those that they replace: what any of these held is in them."""
    return frozenset(name for file in files for name in (file.name, *file.replaces))


def _sync(path: str) -> None:
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


def _is_replaced(file: LogFile, others: Iterable[LogFile]) -> bool:
    """Whether another file has the rows of this one: it says so, or two were merged from the same and it from more."""
    return any(
        file.name in other.replaces or (file.replaces and file.replaces < other.replaces)
        for other in others
        if other.name != file.name
    )


def _parse_hour(name: str) -> int | None:
    try:
        found: Any = datetime.strptime(name, _HOUR_FORM).replace(tzinfo=UTC) - _EPOCH
    except ValueError:
        return None
    return int(found.total_seconds()) // 3600
