"""Rows of history in DuckDB: read from Parquet parts and from what is not rolled into parts yet, or put in piece by piece."""

from collections.abc import Callable, Sequence

import duckdb
import fsspec
import pyarrow as pa

from services.features.adapters import join_sql as sql
from services.features.domain.definitions import EventField, FeatureType
from services.features.domain.failure import SourceUnreadable, WorkTooLarge
from services.features.domain.point_in_time import HistoryFiles, PlannedFeature, PlannedKey

Choose = Callable[[str], str]
"""Makes the query that keeps some rows out of a query that gives all."""


class HistoryTable:
    """A table with the keys, values and both times of one view; `name` is the table."""

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        name: str,
        keys: Sequence[PlannedKey],
        values: Sequence[PlannedFeature | EventField],
    ) -> None:
        self._db = db
        self._name = name
        self._keys = keys
        self._values = [(each.name, _type_of(each)) for each in values]
        db.execute(f"CREATE OR REPLACE TABLE {name} ({sql.history_types(keys, self._values)})")

    def load(self, files: HistoryFiles, choose: Choose) -> None:
        """Read the history; raises SourceUnreadable for a file that is broken."""
        for present, paths in self._files_by_columns(files.parts).items():
            listed = ", ".join(map(sql.text, paths))
            columns = sql.history_columns(self._keys, self._values, present)
            self._insert(choose(f"SELECT {columns} FROM read_parquet([{listed}], union_by_name = true)"), paths)
        if files.tail:
            with pa.OSFile(files.tail) as file, pa.ipc.open_stream(file) as stream:
                tail = stream.read_all()
            columns = sql.history_columns(self._keys, self._values, set(tail.schema.names))
            self._db.register("incoming", tail)
            self._insert(choose(f"SELECT {columns} FROM incoming"))
            self._db.unregister("incoming")

    def add(self, piece: pa.RecordBatch, choose: Choose) -> None:
        """Put in rows that have the table's columns."""
        self._db.register("incoming", pa.Table.from_batches([piece]))
        self._insert(choose("SELECT * FROM incoming"))
        self._db.unregister("incoming")

    def _insert(self, query: str, paths: Sequence[str] = ()) -> None:
        try:
            self._db.execute(f"INSERT INTO {self._name} BY NAME {query}")
        except duckdb.OutOfMemoryException as error:
            raise WorkTooLarge(_said(error)) from error
        except duckdb.Error as error:
            # What is broken in a file shows in many ways.
            raise _unreadable(error, paths) from error

    def _files_by_columns(self, uris: Sequence[str]) -> dict[frozenset[str], list[str]]:
        """Return the files by the columns that they have: a view may have got features after some were written."""
        groups: dict[frozenset[str], list[str]] = {}
        if not uris:
            return groups
        paths = [self._readable(uri) for uri in uris]
        listed = ", ".join(map(sql.text, paths))
        query = f"SELECT file_name, list(DISTINCT name) FROM parquet_schema([{listed}]) GROUP BY file_name"
        try:
            found = self._db.sql(query).fetchall()
        except duckdb.Error as error:
            raise _unreadable(error, paths) from error
        for path, names in found:
            groups.setdefault(frozenset(names), []).append(path)
        return groups

    def _readable(self, uri: str) -> str:
        """Return what DuckDB calls a file: a path here, else the URI, read through fsspec."""
        protocol, _, rest = uri.partition("://")
        if not rest:
            return uri
        if protocol == "file":
            return rest
        if not self._db.filesystem_is_registered(protocol):
            self._db.register_filesystem(fsspec.filesystem(protocol))
        return uri


def _unreadable(error: Exception, paths: Sequence[str]) -> SourceUnreadable:
    """Return an error that names files from the folder of their view on: where the history lies is no business of callers."""
    said, names = str(error), {path: "/".join(path.split("/")[-3:]) for path in paths}
    for path, name in names.items():
        said = said.replace(path, name)
    # Not every error names its file.
    return SourceUnreadable(names[paths[0]] if len(paths) == 1 else "history", _said(said))


def _type_of(value: PlannedFeature | EventField) -> str:
    is_list = isinstance(value, PlannedFeature) and value.is_list
    return sql.type_of(value.type or FeatureType.DOUBLE, is_list=is_list)


def _said(error: object) -> str:
    return str(error).split("\n", 1)[0][:300]
