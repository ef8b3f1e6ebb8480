"""Some predictions of a batch."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from services.monitor.domain.columns import Bools, FeatureColumn, Ints, PredictionColumns


def subset(columns: PredictionColumns, chosen: Bools) -> PredictionColumns:
    """Return the chosen predictions, (count,), in the same order."""
    positions = np.flatnonzero(chosen)
    run = np.flatnonzero(chosen[columns.rows])
    new_places = np.cumsum(chosen) - 1
    return replace(
        columns,
        ids=columns.ids[positions],
        prediction_time_us=columns.prediction_time_us[positions],
        statuses=columns.statuses[positions],
        buckets=columns.buckets[positions],
        principals=columns.principals.take(pa.array(positions)),
        degraded=columns.degraded[positions],
        cached=columns.cached[positions],
        latencies_us=columns.latencies_us[positions],
        weights=columns.weights[positions],
        rows=new_places[columns.rows[run]],
        features={name: _rows(column, run) for name, column in columns.features.items()},
        outputs={name: values[run] for name, values in columns.outputs.items()},
        predicted=None if columns.predicted is None else columns.predicted[run],
        probabilities=None if columns.probabilities is None else columns.probabilities[run],
        entity_keys={name: keys.take(pa.array(positions)) for name, keys in columns.entity_keys.items()},
        feature_event_times_us={name: times[positions] for name, times in columns.feature_event_times_us.items()},
        feature_read_times_us=columns.feature_read_times_us[positions],
        missing={name: reasons.take(pa.array(positions)) for name, reasons in columns.missing.items()},
    )


def _rows(column: FeatureColumn, rows: Ints) -> FeatureColumn:
    return column[rows] if isinstance(column, np.ndarray) else column.take(pa.array(rows))
