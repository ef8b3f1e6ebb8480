"""Predictions as a table of the log, and back.

A table holds predictions of one version. Beside the columns that all have, each feature is a column `features.<name>` of
its own, so that a file holds only what its version takes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.monitor.domain.columns import Bytes, FeatureColumn, Floats, Ints, PredictionColumns
from services.monitor.domain.decode import times_of_ids
from services.monitor.domain.version_info import FeatureKind, VersionInfo

FEATURE_PREFIX: Final = "features."
_TIME: Final = pa.timestamp("us")
_NAMES: Final = ("model", "version", "variant", "environment")
FIXED_FIELDS: Final = (
    pa.field("prediction_id", pa.uuid()),
    pa.field("prediction_time", _TIME),
    pa.field("receive_time", _TIME),
    pa.field("model", pa.string()),
    pa.field("version", pa.string()),
    pa.field("model_digest", pa.string()),
    pa.field("environment", pa.string()),
    pa.field("variant", pa.string()),
    pa.field("epoch", pa.int64()),
    pa.field("bucket", pa.int16()),
    pa.field("principal", pa.string()),
    pa.field("status", pa.int16()),
    pa.field("latency_us", pa.int64()),
    pa.field("degraded", pa.bool_()),
    pa.field("cached", pa.bool_()),
    pa.field("sampling_weight", pa.float64()),
    pa.field("prediction", pa.float64()),
    pa.field("predicted_label", pa.string()),
    pa.field("confidence", pa.float64()),
    pa.field("probabilities", pa.list_(pa.float32())),
    pa.field("feature_read_time", _TIME),
    pa.field("entities", pa.map_(pa.string(), pa.string())),
    pa.field("feature_event_times", pa.map_(pa.string(), _TIME)),
    pa.field("redacted_features", pa.list_(pa.string())),
    pa.field("missing_features", pa.map_(pa.string(), pa.string())),
)

_READINGS: Final = frozenset({"prediction", "predicted_label", "confidence", "probabilities"})
"""Only versions whose signature says what they predict have these."""


def table_of(columns: PredictionColumns, chosen: Ints, weight_factor: float = 1.0) -> pa.Table:
    """Return the predictions at `chosen` positions as a table; weights are multiplied by the factor."""
    count = columns.count
    fixed: dict[str, Any] = {
        "prediction_id": uuids(columns.ids),
        "prediction_time": pa.array(columns.prediction_time_us, _TIME),
        "receive_time": pa.repeat(pa.scalar(columns.receive_time_us, _TIME), count),
        "model": _constant(columns.model, count),
        "version": _constant(columns.version, count),
        "model_digest": _constant(columns.info.digest if columns.info else None, count),
        "environment": _constant(columns.environment, count),
        "variant": _constant(columns.variant, count),
        "epoch": pa.repeat(pa.scalar(columns.epoch, pa.int64()), count),
        "bucket": pa.array(columns.buckets.astype(np.int16), mask=columns.buckets < 0),
        "principal": columns.principals,
        "status": pa.array(columns.statuses.astype(np.int16)),
        "latency_us": pa.array(columns.latencies_us),
        "degraded": pa.array(columns.degraded),
        "cached": pa.array(columns.cached),
        "sampling_weight": pa.array(columns.weights * weight_factor),
        "feature_read_time": pa.array(columns.feature_read_times_us, _TIME, mask=columns.feature_read_times_us == 0),
        "entities": _map(columns.entity_keys, pa.string(), count),
        "feature_event_times": _map(_event_times(columns.feature_event_times_us), _TIME, count),
        "redacted_features": _repeated(sorted(columns.redacted), count),
        "missing_features": _map(columns.missing, pa.string(), count),
    }
    spread = _Spread(columns.rows, count)
    fixed |= {name: spread(values) for name, values in _readings(columns).items()}
    names = [field.name for field in FIXED_FIELDS if field.name in fixed]
    arrays = [fixed[name] for name in names]
    kinds = {feature.name: feature.kind for feature in columns.info.features} if columns.info else {}
    for name, values in columns.features.items():
        names.append(FEATURE_PREFIX + name)
        arrays.append(spread(_stored(values, kinds.get(name))))
    table = pa.table(arrays, names)
    return table if len(chosen) == count else table.take(pa.array(chosen))


def columns_of_table(table: pa.Table, info: VersionInfo | None) -> PredictionColumns:
    """Return predictions of one model, version, variant and environment from a table whose rows were all run.

    Outputs are not in the log; what they meant is.
    """
    ids = ids_of(table["prediction_id"])
    count = table.num_rows
    model, version, variant, environment = (table[name][0].as_py() or "" for name in _NAMES)
    return PredictionColumns(
        model=model,
        version=version,
        variant=variant,
        environment=environment,
        epoch=table["epoch"][0].as_py(),
        info=info,
        ids=ids,
        prediction_time_us=times_of_ids(ids),
        statuses=_whole(table["status"]),
        buckets=_whole(pc.fill_null(table["bucket"], -1)),
        principals=_dictionary(table["principal"]),
        degraded=table["degraded"].to_numpy(),
        cached=table["cached"].to_numpy(),
        latencies_us=_whole(table["latency_us"]),
        weights=table["sampling_weight"].to_numpy(),
        rows=np.arange(count),
        features={
            name.removeprefix(FEATURE_PREFIX): _loaded(table[name])
            for name in table.column_names
            if name.startswith(FEATURE_PREFIX)
        },
        outputs={},
        predicted=table["prediction"].to_numpy() if "prediction" in table.column_names else None,
        probabilities=_probabilities(table),
        entity_keys={},
        feature_event_times_us={},
        feature_read_times_us=_whole(pc.fill_null(table["feature_read_time"].cast(pa.int64()), 0)),
        redacted=_redacted(table),
        missing={},
    )


def uuids(ids: Bytes) -> pa.Array:
    """Return ids, (count, 16), as an Arrow array of UUIDs."""
    buffer = pa.py_buffer(np.ascontiguousarray(ids))
    storage = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, buffer])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def ids_of(column: pa.ChunkedArray) -> Bytes:
    """Return a column of UUIDs, none of them null, as (count, 16)."""
    parts = [
        np.frombuffer(chunk.storage.buffers()[1], dtype=np.uint8)[16 * chunk.offset :][: 16 * len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate(parts).reshape(-1, 16) if parts else np.empty((0, 16), dtype=np.uint8)


def first_id(time_us: int) -> bytes:
    """Return the smallest UUIDv7 of a time, microseconds since 1970; ids have milliseconds."""
    milliseconds = min(max(-(-time_us // 1000), 0), (1 << 48) - 1)
    return milliseconds.to_bytes(6, "big") + bytes(10)


def unified_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return one schema for tables of many versions; a feature that is a text in one and a number in another is a text."""
    found: dict[str, pa.DataType] = {field.name: field.type for field in FIXED_FIELDS}
    for schema in schemas:
        for field in schema:
            if field.name.startswith(FEATURE_PREFIX):
                kind = _plain(field.type)
                found[field.name] = _common(found.get(field.name, kind), kind)
    return pa.schema(list(found.items()))


def foreign_to_log(schema: pa.Schema) -> str:
    """Return why a table of this schema is none of the log; empty when it may be one."""
    for want in FIXED_FIELDS:
        index = schema.get_field_index(want.name)
        if index < 0 and want.name not in _READINGS:
            return f"want a column {want.name}, got none or several"
        kind = want.type if index < 0 else _plain(schema.field(index).type)
        # What is inside of lists and maps has names that differ between files and memory.
        if not kind.equals(want.type) and not (pa.types.is_nested(kind) and kind.id == want.type.id):
            return f"want {want.name} as {want.type}, got {kind}"
    for field in schema:
        kind = _plain(field.type)
        if field.name.startswith(FEATURE_PREFIX) and not (pa.types.is_string(kind) or pa.types.is_primitive(kind)):
            return f"want {field.name} as text, number or truth value, got {kind}"
    return ""


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one.equals(other):
        return one
    if pa.types.is_string(one) or pa.types.is_string(other):
        return pa.string()
    return pa.float64()


def _constant(text: str | None, count: int) -> pa.Array:
    # Parquet takes a null among the positions and none among the texts.
    indices = pa.array(np.zeros(count, dtype=np.int8), mask=np.full(count, text is None))
    return pa.DictionaryArray.from_arrays(indices, pa.array([text or ""], pa.string()))


class _Spread:
    """Puts values of the predictions that were run at their places among all; the others are null."""

    def __init__(self, rows: Ints, count: int) -> None:
        self._places: pa.Array | None = None
        if len(rows) < count:
            places = np.zeros(count, dtype=np.int64)
            places[rows] = np.arange(len(rows))
            absent = np.ones(count, dtype=bool)
            absent[rows] = False
            self._places = pa.array(places, mask=absent)

    def __call__(self, values: pa.Array) -> pa.Array:
        return values if self._places is None else values.take(self._places)


def _readings(columns: PredictionColumns) -> Mapping[str, pa.Array]:
    if columns.predicted is None:
        return {}
    none = np.isnan(columns.predicted)
    found: dict[str, pa.Array] = {"prediction": pa.array(columns.predicted, mask=none)}
    if columns.probabilities is not None and columns.info is not None:
        winners = np.where(none, 0, columns.predicted).astype(np.int32)
        width = columns.probabilities.shape[1]
        offsets = pa.array(np.arange(columns.row_count + 1, dtype=np.int32) * width)
        flat = pa.array(columns.probabilities.astype(np.float32).ravel())
        found["probabilities"] = pa.ListArray.from_arrays(offsets, flat)
        found["confidence"] = pa.array(columns.probabilities[np.arange(columns.row_count), winners], mask=none)
        found["predicted_label"] = pa.DictionaryArray.from_arrays(
            pa.array(winners, mask=none), pa.array(columns.info.labels, pa.string())
        )
    return found


def _stored(values: FeatureColumn, kind: FeatureKind | None) -> pa.Array:
    """Return a feature as the log has it: in its own type, missing values as null."""
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind == "f":
        values = values.astype(np.float32) if values.dtype.itemsize == 2 else values
        missing = np.isnan(values)
        if kind is FeatureKind.INT64:
            return pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)
        if kind is FeatureKind.BOOL:
            return pa.array(values != 0, mask=missing)
        return pa.array(values, mask=missing)
    return pa.array(values.astype(np.int64) if kind is FeatureKind.INT64 else values)


def _loaded(column: pa.ChunkedArray) -> FeatureColumn:
    kind = _plain(column.type)
    if pa.types.is_string(kind):
        return _dictionary(column)
    if column.null_count:
        column = column.cast(pa.float64())
    return column.to_numpy()


def _probabilities(table: pa.Table) -> Floats | None:
    if "probabilities" not in table.column_names or table["probabilities"].null_count:
        return None
    flat: Floats = pc.list_flatten(table["probabilities"]).to_numpy().astype(np.float64)
    return flat.reshape(table.num_rows, -1)


def _dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    found = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    combined = found.unify_dictionaries().combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _whole(column: pa.ChunkedArray) -> Ints:
    found: npt.NDArray[Any] = column.to_numpy()
    return found.astype(np.int64)


def _event_times(times: Mapping[str, Ints]) -> Mapping[str, pa.Array]:
    return {name: pa.array(found, _TIME, mask=found == 0) for name, found in times.items()}


def _redacted(table: pa.Table) -> frozenset[str]:
    """Return what the route kept back; tables of earlier releases do not say."""
    if "redacted_features" not in table.column_names or not table.num_rows:
        return frozenset()
    return frozenset(table["redacted_features"][0].as_py() or ())


def _repeated(names: Sequence[str], count: int) -> pa.Array:
    """Return the same list for each prediction."""
    offsets = np.arange(count + 1, dtype=np.int32) * len(names)
    texts = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), count)))
    return pa.ListArray.from_arrays(pa.array(offsets), texts)


def _map(columns: Mapping[str, pa.Array], kind: pa.DataType, count: int) -> pa.Array:
    """Return one map for each prediction, name to value, without the nulls."""
    names = pa.array(list(columns), pa.string())
    width = len(names)
    present = np.zeros((count, width), dtype=bool)
    for index, column in enumerate(columns.values()):
        present[:, index] = column.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(present.sum(axis=1), out=offsets[1:])
    rows, which = np.nonzero(present)
    # Column after column, so that value (row, column) is at column * count + row.
    values = pa.concat_arrays(list(columns.values())) if width else pa.array([], kind)
    items = values.take(pa.array(which * count + rows)) if width else values
    keys = names.take(pa.array(which)) if width else names
    return pa.MapArray.from_arrays(pa.array(offsets), keys, items.cast(kind))


def sample(ids: Bytes, basis_points: int) -> npt.NDArray[np.bool_]:
    """Return which ids, (count, 16), belong to a sample of so many hundredths of a percent; an id always or never does.

    The draw is the id's own: the last 32 of its random bits.
    """
    tails: Floats | npt.NDArray[Any] = np.ascontiguousarray(ids[:, 12:]).view(">u4").ravel()
    chosen: npt.NDArray[np.bool_] = tails % 10_000 < basis_points
    return chosen
