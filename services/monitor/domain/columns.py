"""Predictions in columns: what every part of the monitor computes from.

Two lengths are at play. Columns about the prediction itself have one entry for each prediction (`count`). Features and
outputs have one entry for each prediction that was run (`row_count`), in the same order; `rows` says which those are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.monitor.domain.version_info import VersionInfo

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[Any]
"""A one-dimensional array of the tensor's own type; NaN is a missing value, `bool` a truth value."""
FeatureColumn: TypeAlias = Numbers | pa.DictionaryArray
"""Values of one feature: numbers as Numbers, texts as a dictionary array of strings in which null is missing."""


@dataclass(frozen=True, slots=True, eq=False)
class PredictionColumns:
    """Predictions of one version under one variant. Treat every array as read-only: all sinks share it."""

    model: str
    version: str
    """Id of the version that answered; empty when the prediction failed before one was chosen."""
    variant: str
    """Variant of the route; empty when the caller pinned the version."""
    environment: str
    epoch: int
    """Epoch of the routing configuration."""
    info: VersionInfo | None
    """The version's signature; None while it is not known, and features are then named after their tensors."""
    ids: Bytes
    """Prediction ids, UUIDv7, (count, 16)."""
    prediction_time_us: Ints
    """Time inside the id, microseconds since 1970 UTC, (count,)."""
    statuses: Ints
    """gRPC status codes, 0 = answered, (count,)."""
    buckets: Ints
    """Buckets of the assignment, 0 to 9,999; -1 = none, (count,)."""
    principals: pa.DictionaryArray
    """Who asked, (count,)."""
    degraded: Bools
    cached: Bools
    latencies_us: Ints
    weights: Floats
    """How many predictions each one stands for, (count,)."""
    rows: Ints
    """Positions, 0 to count - 1, of the predictions that have features and outputs, ascending, (row_count,)."""
    features: Mapping[str, FeatureColumn]
    """Values as the model took them, by name of the feature, (row_count,) each."""
    outputs: Mapping[str, Numbers]
    """Numeric output tensors by name, (row_count, ...) each."""
    predicted: Floats | None
    """Class index of a classification, number of a regression, NaN where the model gave none, (row_count,); None when
    the signature does not say."""
    probabilities: Floats | None
    """Probabilities in the order of the signature's labels, (row_count, labels); None for a regression."""
    entity_keys: Mapping[str, pa.Array]
    """Keys of the entities that features were fetched for, by entity; string, null = none given, (count,) each."""
    feature_event_times_us: Mapping[str, Ints]
    """Event times of fetched features by feature, microseconds since 1970; 0 = missing, (count,) each."""
    feature_read_times_us: Ints
    """When features were read, microseconds since 1970; 0 = none were, (count,)."""
    redacted: frozenset[str]
    """Features and entities that the route keeps back: all values of them are missing."""
    missing: Mapping[str, pa.Array]
    """Why there was no usable value of a fetched feature, by feature; string, null = there was one, (count,) each."""
    receive_time_us: int = 0
    """When the monitor took them, microseconds since 1970; rises from batch to batch."""

    @property
    def count(self) -> int:
        """Predictions."""
        return len(self.statuses)

    @property
    def row_count(self) -> int:
        """Predictions that were run and have features and outputs."""
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledColumns:
    """Predictions that have got a label. All of them were run, so `predictions.rows` is 0, 1, ... count - 1.

    The features, outputs and everything else of `predictions` come from the log: outputs holds no tensor, while
    predicted and probabilities are there. Weights count sampled logging in.
    """

    predictions: PredictionColumns
    labels: Floats
    """What was true: class index or number, (count,)."""
    label_delays_us: Ints
    """From the prediction to the event time of the label, microseconds, (count,)."""
    previous_labels: Floats
    """The label that this one replaces, which was handed over by an earlier batch; NaN = it is the first, (count,)."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelBatch:
    """Labels joined with their predictions, in one piece."""

    number: int
    """Rises from batch to batch and over restarts. After a crash the last batch comes again, same number, same content."""
    parts: tuple[LabelledColumns, ...]
    """Each of one model, version, variant and environment; several may be of the same."""
