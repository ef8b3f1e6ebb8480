"""Rows of the history as records of the log, and as Arrow tables with the columns that `ports.History` promises."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa

from services.features.domain.definitions import FeatureType
from services.features.domain.ports import Row, ViewWriter

_TIME: Final = pa.timestamp("us", tz="UTC")
_TYPES: Final[Mapping[FeatureType, pa.DataType]] = {
    FeatureType.DOUBLE: pa.float64(),
    FeatureType.INT64: pa.int64(),
    FeatureType.STRING: pa.string(),
    FeatureType.BOOL: pa.bool_(),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US: Final = 86_400_000_000

Shape = tuple[tuple[str, ...], tuple[tuple[str, str, bool], ...]]
"""Entities, and name, type and whether it is a list of each input: what a part's columns follow from."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that were appended together, with the columns that their view had then."""

    view: str
    generation: int
    shape: Shape
    rows: Sequence[Row]


def shape_of(writer: ViewWriter) -> Shape:
    """Return the columns of a view."""
    entities = tuple(entity.id for entity in writer.view.entities)
    return entities, tuple((each.name, each.type.scalar.value, each.type.is_list) for each in writer.inputs)


def pack_batch(writer: ViewWriter, rows: Sequence[Row]) -> bytes:
    """Return rows as one record: the view's id, a line feed, and JSON, which keeps every legal value exactly."""
    body = {
        "generation": writer.view.generation,
        "shape": shape_of(writer),
        "rows": [(row.keys, row.event_time_us, row.known_at_us, row.event_id, row.values) for row in rows],
    }
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return writer.view.id.encode() + b"\n" + text.encode()


def view_of(record: bytes) -> str:
    """Return the view of a record without reading the rest."""
    return record[: record.index(b"\n")].decode()


def unpack_batch(record: bytes) -> Batch:
    """Return the rows of a record."""
    view, _, text = record.partition(b"\n")
    body = json.loads(text)
    entities, inputs = body["shape"]
    shape = (tuple(entities), tuple((name, scalar, is_list) for name, scalar, is_list in inputs))
    lists = [name for name, _, is_list in inputs if is_list]
    rows = []
    for keys, event_time_us, known_at_us, event_id, values in body["rows"]:
        for name in lists:
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        rows.append(Row(tuple(keys), values, event_time_us, known_at_us, event_id))
    return Batch(view.decode(), body["generation"], shape, rows)


def table_of(shape: Shape, rows: Sequence[Row]) -> pa.Table:
    """Return rows of one shape as a table."""
    entities, inputs = shape
    columns: dict[str, pa.Array] = {
        f"entity__{entity}": pa.array([row.keys[place] for row in rows], pa.string())
        for place, entity in enumerate(entities)
    }
    for name, scalar, is_list in inputs:
        kind = _TYPES[FeatureType(scalar)]
        columns[name] = pa.array([row.values.get(name) for row in rows], pa.list_(kind) if is_list else kind)
    names = [name for name, _, _ in inputs]
    columns["event_time"] = pa.array([row.event_time_us for row in rows], pa.int64()).cast(_TIME)
    columns["known_at"] = pa.array([row.known_at_us for row in rows], pa.int64()).cast(_TIME)
    columns["event_id"] = pa.array([row.event_id for row in rows], pa.string())
    absent = [[name for name in names if name not in row.values] for row in rows]
    columns["absent"] = pa.array(absent, pa.list_(pa.string()))
    return pa.table(columns)


def day_of(event_time_us: int) -> str:
    """Return the UTC day of a time, as folders are named."""
    return (_EPOCH + timedelta(days=event_time_us // _DAY_US)).strftime("%Y-%m-%d")


def group_by_part(batches: Iterable[Batch]) -> dict[tuple[str, str, Shape], list[Row]]:
    """Return the rows of each view, day and shape: one Parquet part each."""
    groups: dict[tuple[str, str, Shape], list[Row]] = {}
    for batch in batches:
        for row in batch.rows:
            groups.setdefault((batch.view, day_of(row.event_time_us), batch.shape), []).append(row)
    return groups


def tables_of(batches: Iterable[Batch]) -> list[pa.Table]:
    """Return the rows of batches as one table for each shape, in the order of their first rows."""
    by_shape: dict[Shape, list[Any]] = {}
    for batch in batches:
        by_shape.setdefault(batch.shape, []).extend(batch.rows)
    return [table_of(shape, rows) for shape, rows in by_shape.items()]
