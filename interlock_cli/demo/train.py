"""Training and export of the demo's two versions."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder
from threadpoolctl import threadpool_limits

from interlock_cli.demo.data import CATEGORICAL, Flights, Recipe
from interlock_cli.demo.direct import TOLERANCE, run_onnx
from interlock_sdk.onnx_export import PROBABILITIES_OUTPUT, export_boosted_trees

SEED = 2013

# Of eleven settings the one with the best Brier score, an AUC as good as any, and alone in beating the base rate in every
# month, when each month from April to August was predicted from those before it, from March on. Later flights had no say.
_TIMETABLE_BOOSTING: dict[str, Any] = {
    "max_iter": 60,
    "learning_rate": 0.05,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 500,
    "l2_regularization": 50.0,
    "max_features": 0.5,
    "early_stopping": False,
}
# The live features hold more that is worth learning.
_LIVE_BOOSTING = _TIMETABLE_BOOSTING | {
    "max_iter": 150,
    "max_leaf_nodes": 16,
    "min_samples_leaf": 200,
    "l2_regularization": 10.0,
}


def boosting(recipe: Recipe) -> dict[str, Any]:
    """Gives the parameters of a version's training."""
    return _LIVE_BOOSTING if recipe.live else _TIMETABLE_BOOSTING


def one_thread() -> AbstractContextManager[Any]:
    """Keeps scikit-learn to one thread for as long as the context lasts.

    Two spin at barriers: on a machine that is busy otherwise they take many times as long as one.
    """
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="openmp")
    return limits


class ExportMismatch(RuntimeError):
    """Says that the exported model answers something else than the trained one."""


def train(flights: Flights, recipe: Recipe) -> Pipeline:
    """Fits one version; equal flights give an equal model."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    columns = ColumnTransformer(
        [("categories", encoder, list(CATEGORICAL)), ("numbers", "passthrough", list(recipe.numeric))]
    )
    classifier = HistGradientBoostingClassifier(random_state=SEED, **boosting(recipe))
    with one_thread():
        return Pipeline([("columns", columns), ("boosting", classifier)]).fit(flights.features, flights.late)


def late_probability(model: Pipeline, features: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Gives the trained model's probability of being late, one per row."""
    return np.asarray(model.predict_proba(features)[:, 1], dtype=np.float64)


def export(model: Pipeline, recipe: Recipe, check: pd.DataFrame) -> bytes:
    """Serialises a version as ONNX and compares both on the rows `check`.

    Raises:
        ExportMismatch: a probability differs by more than TOLERANCE.
    """
    encoder = model.named_steps["columns"].named_transformers_["categories"]
    artifact = export_boosted_trees(encoder, model.named_steps["boosting"], name="flight_delay")
    got = run_onnx(artifact, recipe, check)[PROBABILITIES_OUTPUT][:, 1]
    difference = float(np.abs(got - late_probability(model, check)).max())
    if difference > TOLERANCE:
        raise ExportMismatch(f"want probabilities within {TOLERANCE} of the trained model's, got {difference} apart")
    return artifact
