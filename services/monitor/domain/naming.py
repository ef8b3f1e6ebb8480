"""Predictions that came before their version was known get the names of its signature."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from services.monitor.domain.columns import FeatureColumn, Floats, PredictionColumns
from services.monitor.domain.decode import blank, numbers_predicted, predict
from services.monitor.domain.version_info import FeatureKind, Task, VersionInfo


def named(columns: PredictionColumns, info: VersionInfo) -> PredictionColumns:
    """Return the same predictions with the features and outputs that the signature tells apart."""
    predicted, probabilities = _prediction(columns, info)
    features = dict(_features(columns, info)) if info.features else columns.features
    return replace(columns, info=info, features=features, predicted=predicted, probabilities=probabilities)


def _features(columns: PredictionColumns, info: VersionInfo) -> Iterator[tuple[str, FeatureColumn]]:
    for feature in info.features:
        found = columns.features.get(f"{feature.tensor}[{feature.column}]")
        if found is None and feature.column == 0:
            # A tensor of one column is not numbered.
            found = columns.features.get(feature.tensor)
        if found is None:
            continue
        if feature.name in columns.redacted:
            found = blank(found)
        is_whole = isinstance(found, np.ndarray) and found.dtype.kind in "iu"
        yield feature.name, found != 0 if feature.kind is FeatureKind.BOOL and is_whole else found


def _prediction(columns: PredictionColumns, info: VersionInfo) -> tuple[Floats | None, Floats | None]:
    values = columns.outputs.get(info.prediction_tensor)
    if values is None or info.task is None:
        return None, None
    if info.task is Task.REGRESSION:
        return numbers_predicted(values), None
    if values.ndim != 2 or values.shape[1] != len(info.labels):
        return None, None
    probabilities: Floats = np.clip(values.astype(np.float64), 0.0, 1.0)
    return predict(probabilities, info.threshold), probabilities
