"""Online vectors that are to be compared: logged predictions of a version, or a table that somebody kept.

The log has `prediction_id`, `feature_read_time`, the maps `entities` and `feature_event_times`, the list
`redacted_features`, and the values that models took, `features`: a struct with a field for each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.adapters.arrow_values import times_of, values_of
from services.features.adapters.batch_reader import BatchReader, Piece
from services.features.adapters.offline_task import LoggedFeature, ParityTask
from services.features.adapters.parity_plan import READ_TIME_COLUMN
from services.features.domain.definitions import BatchSource
from services.features.domain.failure import SourceUnreadable

_ID_COLUMN: Final = "prediction_id"
_NO_READ_TIME: Final = "NO_FEATURE_READ_TIME"
_UTC: Final = pa.timestamp("us", "UTC")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Vectors:
    """Vectors in columns of one length. Of what is not logged there is no column."""

    ids: pa.Array
    rows: pa.Table
    """The time at which each was read, and the keys of entities: what is joined to."""
    values: Mapping[str, pa.Array]
    """By the feature's name, as the model took them, and request values by theirs."""
    unread: Mapping[str, Bools]
    """Where no value of a feature was read, by its name; not known for every one."""
    redacted: Mapping[str, Bools]
    """Where the route kept a feature or key back, by its name."""

    def __len__(self) -> int:
        return len(self.ids)

    def id_texts(self, which: npt.NDArray[Any]) -> list[str]:
        """Return the ids at some places as texts."""
        return [_text(value) for value in self.ids.take(pa.array(which)).to_pylist()]


def logged_vectors(task: ParityTask, pieces: Iterator[pa.RecordBatch], reader: BatchReader) -> Vectors:
    """Return the logged predictions; one without a time of reading is left out and counted."""
    log = pa.Table.from_batches(list(pieces)).combine_chunks()
    read = log.column(READ_TIME_COLUMN).is_valid()
    if unread := len(log) - (pc.sum(read).as_py() or 0):
        reader.skipped[_NO_READ_TIME] += unread
    log = log.filter(read).combine_chunks()
    time_us, _ = times_of(_whole(log.column(READ_TIME_COLUMN)), "UTC")
    entities, event_times = _whole(log.column("entities")), _whole(log.column("feature_event_times"))
    return Vectors(
        ids=_whole(log.column(_ID_COLUMN)),
        rows=pa.table(
            {READ_TIME_COLUMN: time_us.cast(_UTC)}
            | {key.column: pc.map_lookup(entities, pa.scalar(key.entity), "first") for key in task.plan.keys}
        ),
        values=dict(_logged_values(task, _whole(log.column("features")))),
        unread={
            each.name: _bools(pc.map_lookup(event_times, pa.scalar(each.name), "first").is_null())
            for each in task.features
        },
        redacted=_redacted(_whole(log.column("redacted_features"))),
    )


def kept_vectors(task: ParityTask, source: BatchSource, reader: BatchReader) -> Vectors:
    """Return the vectors of a table; a row that cannot be used is left out and counted. Raises SourceUnreadable."""
    count = 0

    def wanted(piece: pa.RecordBatch) -> bool:
        nonlocal count
        before, count = count, count + len(piece)
        return before < task.max_row_count

    tables = [pa.Table.from_batches([piece]) for piece in takewhile(wanted, reader.read_pieces(source))]
    if not tables:
        raise SourceUnreadable("vectors", "want at least one row, got none")
    try:
        table = pa.concat_tables(tables, promote_options="permissive").slice(0, task.max_row_count)
    except pa.ArrowException as error:
        raise SourceUnreadable("vectors", f"want the same columns everywhere; {str(error)[:200]}") from error
    (rows,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    return _kept(task, Piece(rows, source), reader)


def _kept(task: ParityTask, piece: Piece, reader: BatchReader) -> Vectors:
    rows, source = piece.rows, piece.source
    time_us, wrong = piece.convert(source.event_time_column, lambda column: times_of(column, source.time_zone))
    unread = wrong | _bools(time_us.is_null())
    if unread.any():
        reader.skipped[_NO_READ_TIME] += int(unread.sum())
    unusable = unread
    values = {name: rows.column(name) for name in dict.fromkeys(rows.schema.names)}
    for each in task.features:
        values[each.name], wrong = piece.convert(
            source.feature_columns[each.source],
            lambda column, each=each: values_of(column, each.type, is_list=each.is_list, from_text=piece.from_text),
        )
        if (fresh := wrong & ~unusable).any():
            reader.skipped["INVALID_VALUE"] += int(fresh.sum())
            unusable = unusable | fresh
    keys = {key.column: piece.convert(key.column, lambda column: (column, None))[0] for key in task.plan.keys}
    usable = pa.array(~unusable)
    numbers = pa.array(np.arange(len(rows)))
    return Vectors(
        ids=values.get(_ID_COLUMN, numbers).filter(usable),
        rows=pa.table({READ_TIME_COLUMN: time_us.cast(_UTC)} | keys).filter(usable).combine_chunks(),
        values={name: column.filter(usable) for name, column in values.items()},
        unread={},
        redacted={},
    )


def _logged_values(task: ParityTask, features: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    if not pa.types.is_struct(features.type):
        return
    fetched: dict[str, LoggedFeature] = {each.name: each for each in task.features}
    for index, field in enumerate(features.type):
        column = pc.struct_field(features, [index])
        if field.name in fetched:
            wanted = fetched[field.name]
            column, _ = values_of(column, wanted.type, is_list=wanted.is_list, from_text=True)
        yield field.name, column


def _redacted(lists: pa.Array) -> dict[str, Bools]:
    found: dict[str, Bools] = {}
    names, places = pc.list_flatten(lists), pc.list_parent_indices(lists)
    for name in names.unique().to_pylist():
        found[name] = np.zeros(len(lists), np.bool_)
        found[name][places.filter(pc.equal(names, name)).to_numpy()] = True
    return found


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def _bools(column: pa.Array) -> Bools:
    found: Bools = np.asarray(column.to_numpy(zero_copy_only=False), np.bool_)
    return found


def _text(value: Any) -> str:
    return str(UUID(bytes=value)) if isinstance(value, bytes) else str(value)
