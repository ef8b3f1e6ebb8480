"""Batch sources: files and database tables, read piece by piece.

`read_pieces` gives what stands there; `read_values` gives it as rows of a feature view, without those that cannot be
used, which it counts by reason.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from services.features.adapters.arrow_values import WrongColumn, arrow_type, check_zone, keys_of, times_of, values_of
from services.features.adapters.join_sql import key_column, value_column
from services.features.adapters.rooted_files import open_files, without_links
from services.features.domain.definitions import BatchSource, FeatureType, FileFormat, FileLocation, SqlLocation
from services.features.domain.failure import SourceUnreadable
from services.features.domain.file_roots import FileRoots
from services.features.domain.point_in_time import PlannedFeature, PlannedKey
from services.features.domain.value_check import KEY_LIMIT_BYTES

ROWS_A_PIECE: Final = 65_536
_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")
_MISSING_KEY: Final = "MISSING_KEY"
_INVALID_KEY: Final = "INVALID_KEY"
_MISSING_TIME: Final = "MISSING_EVENT_TIME"
_INVALID_TIME: Final = "INVALID_EVENT_TIME"
_INVALID_KNOWN_AT: Final = "INVALID_KNOWN_AT"
_INVALID_VALUE: Final = "INVALID_VALUE"
_INVALID_ROW: Final = "INVALID_ROW"


class BatchReader:
    """Reads batch sources; `connections` are SQLAlchemy URLs by name, files lie under `roots`."""

    def __init__(self, connections: Mapping[str, str], roots: FileRoots = FileRoots()) -> None:  # noqa: B008 - frozen
        self.connections = connections
        self.roots = roots
        self.skipped: Counter[str] = Counter()
        """Rows that could not be used, by reason."""

    def read_pieces(self, source: BatchSource, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a source in its order, all columns or those named; raises SourceUnreadable."""
        location = source.location
        if isinstance(location, SqlLocation):
            yield from self._read_sql(location)
        elif isinstance(location, FileLocation):
            yield from self._read_files(location, columns)

    def read_values(
        self,
        source: BatchSource,
        keys: Sequence[PlannedKey],
        features: Sequence[PlannedFeature],
        assumed_delay_us: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows of a view: keys, values, `event_us`, `known_us`, and empty `event_id` and `absent`."""
        names = {source.entity_column(key.entity) for key in keys} | {source.event_time_column}
        names |= {source.feature_column(feature.name) for feature in features}
        if source.known_at_column:
            names.add(source.known_at_column)
        for piece in self.read_pieces(source, sorted(names)):
            yield self._values(Piece(piece, source), keys, features, assumed_delay_us)

    def _values(
        self,
        piece: "Piece",
        keys: Sequence[PlannedKey],
        features: Sequence[PlannedFeature],
        assumed_delay_us: int,
    ) -> pa.RecordBatch:
        """Convert one piece; the first reason that a row has is the one that is counted."""
        source, columns = piece.source, {}
        unusable = np.zeros(len(piece.rows), np.bool_)

        def leave_out(wrong: Any, reason: str) -> None:
            fresh = np.asarray(wrong, np.bool_) & ~unusable
            if fresh.any():
                self.skipped[reason] += int(fresh.sum())
                np.logical_or(unusable, fresh, out=unusable)

        for key in keys:
            column, wrong = piece.convert(
                source.entity_column(key.entity),
                lambda values, key=key: keys_of(values, key.type, from_text=piece.from_text),
            )
            leave_out(wrong, _INVALID_KEY)
            leave_out(column.is_null().to_numpy(zero_copy_only=False), _MISSING_KEY)
            if key.type is FeatureType.STRING:
                size_bytes = pc.binary_length(column).fill_null(1).to_numpy(zero_copy_only=False)
                leave_out((size_bytes < 1) | (size_bytes > KEY_LIMIT_BYTES), _INVALID_KEY)
            columns[key_column(key.entity)] = column
        event_us, wrong = piece.convert(source.event_time_column, lambda values: times_of(values, source.time_zone))
        leave_out(wrong, _INVALID_TIME)
        leave_out(event_us.is_null().to_numpy(zero_copy_only=False), _MISSING_TIME)
        leave_out(pc.less(event_us, 0).fill_null(False).to_numpy(zero_copy_only=False), _INVALID_TIME)
        if source.known_at_column:
            known_us, wrong = piece.convert(
                source.known_at_column, lambda values: times_of(values, source.time_zone, latest=True)
            )
            leave_out(wrong | known_us.is_null().to_numpy(zero_copy_only=False), _INVALID_KNOWN_AT)
        else:
            known_us = pc.add(event_us, assumed_delay_us)
        for feature in features:
            column, wrong = piece.convert(
                source.feature_column(feature.name),
                lambda values, feature=feature: values_of(
                    values, feature.type, is_list=feature.is_list, from_text=piece.from_text
                ),
            )
            leave_out(wrong, _INVALID_VALUE)
            columns[value_column(feature.name)] = column
        columns |= {
            "event_us": event_us,
            "known_us": known_us,
            "event_id": pa.array([""] * len(piece.rows), pa.string()),
            "absent": pa.nulls(len(piece.rows), pa.list_(pa.string())),
        }
        found = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        return found.filter(pa.array(~unusable)) if unusable.any() else found

    def _read_files(self, location: FileLocation, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        try:
            files, paths = open_files(location.uri, self.roots)
            found = sorted(files.glob(paths)) if fsspec.core.has_magic(paths) else [paths]
            if len(found) == 1 and files.isdir(found[0]):
                ending = ".csv" if location.format is FileFormat.CSV else ".parquet"
                found = sorted(path for path in files.find(found[0]) if path.endswith(ending))
        except (OSError, ValueError, ImportError) as error:
            raise SourceUnreadable(location.uri, _said(error)) from error
        if not found:
            raise SourceUnreadable(location.uri, "want at least one file, got none")
        for path in found:
            try:
                with files.open(without_links(files, path, self.roots), "rb") as file:
                    if location.format is FileFormat.CSV:
                        yield from self._read_csv(file, columns)
                    else:
                        yield from _read_parquet(file, path, columns)
            except (pa.ArrowException, OSError, ValueError, UnicodeError) as error:
                raise SourceUnreadable(path, _said(error)) from error

    def _read_csv(self, file: Any, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        def skip(_row: Any) -> str:
            self.skipped[_INVALID_ROW] += 1
            return "skip"

        # Everything is read as text: a type that the reader guessed from the first rows would be wrong for a later one.
        names = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
        file.seek(0)
        reader = pa_csv.open_csv(
            file,
            parse_options=pa_csv.ParseOptions(invalid_row_handler=skip, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=_present(names, columns, ""),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        yield from reader

    def _read_sql(self, location: SqlLocation) -> Iterator[pa.RecordBatch]:
        url = self.connections.get(location.connection)
        if url is None:
            known = ", ".join(sorted(self.connections)) or "none"
            raise SourceUnreadable(
                location.connection, f"want a connection of INTERLOCK_FEATURES_CONNECTIONS ({known}), got none of it"
            )
        table = _TABLE.fullmatch(location.query.strip())
        query = f"SELECT * FROM {table[0]}" if table else location.query  # noqa: S608 - a name by the pattern above
        # SQLAlchemy takes half of the time in which a child starts, and few sources need it.
        from services.features.adapters.sql_reader import SqlUnreadable, read_query  # noqa: PLC0415

        try:
            yield from read_query(url, query, ROWS_A_PIECE)
        except SqlUnreadable as error:
            raise SourceUnreadable(location.connection, _said(error)) from error


class Piece:
    """Some rows of a source, and how to take a column out of them."""

    def __init__(self, rows: pa.RecordBatch, source: BatchSource) -> None:
        self.rows = rows
        self.source = source
        location = source.location
        assert location is not None, "a sound definition says where its source lies"
        # CSV has nothing but text, and SQLite's columns hold what they were given.
        self.from_text = isinstance(location, SqlLocation) or location.format is FileFormat.CSV
        self._name = location.uri if isinstance(location, FileLocation) else location.connection

    def convert(self, name: str, conversion: Any) -> tuple[pa.Array, Any]:
        """Return a column as `conversion` makes it; raises SourceUnreadable when there is none or its type is wrong."""
        index = self.rows.schema.get_field_index(name)
        if index < 0:
            have = ", ".join(self.rows.schema.names)
            raise SourceUnreadable(self._name, f"want this column, got {have}", name)
        try:
            if self.source.time_zone:
                check_zone(self.source.time_zone)
            return conversion(self.rows.column(index))  # type: ignore[no-any-return]
        except WrongColumn as wrong:
            raise SourceUnreadable(self._name, str(wrong), name) from None


def value_schema(keys: Sequence[PlannedKey], features: Sequence[PlannedFeature]) -> pa.Schema:
    """Return the schema of what `read_values` yields."""
    columns = [(key_column(key.entity), arrow_type(key.type)) for key in keys]
    columns += [(value_column(each.name), arrow_type(each.type, is_list=each.is_list)) for each in features]
    times = [("event_us", pa.int64()), ("known_us", pa.int64())]
    return pa.schema([*columns, *times, ("event_id", pa.string()), ("absent", pa.list_(pa.string()))])


def _read_parquet(file: Any, path: str, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    parquet = pq.ParquetFile(file)
    wanted = _present(parquet.schema_arrow.names, columns, path)
    yield from parquet.iter_batches(batch_size=ROWS_A_PIECE, columns=wanted)


def _present(have: Sequence[str], wanted: Sequence[str] | None, path: str) -> list[str]:
    missing = [name for name in wanted or () if name not in have]
    if missing:
        raise SourceUnreadable(path or "CSV", f"want this column, got {', '.join(have)[:200]}", missing[0])
    return list(have if wanted is None else wanted)


def _said(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
