"""Streams with labels that no constant of the label-free estimate was chosen on, as public_sets wants them."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from interlock_cli.demo.data import flights_path

SETS = {"housing": (500,), "flights": (1_000, 5_000), "rotating": (1_000,)}
"""Name and the rows of a chunk: a set of NannyML's (`peer_nannyml`), a year of flights, and a plane that turns."""
FLIGHT_COLUMNS = ["month", "day", "hour", "carrier", "origin", "dest", "dep_delay"]


def prepare(folder: Path) -> None:
    """Write those that no peer writes."""
    flights().to_parquet(folder / "flights.parquet", index=False)
    rotating(20_261_121).to_parquet(folder / "rotating.parquet", index=False)


def flights() -> pd.DataFrame:
    """Whether flights from New York left a quarter of an hour late, 2013; trained on January, reference February and March.

    Nothing but schedule: what the hour means for delays changes with season and weather, which the model cannot know.
    """
    table = pd.read_csv(flights_path(), usecols=FLIGHT_COLUMNS).dropna()
    table = table.sort_values(["month", "day", "hour"], kind="stable", ignore_index=True)
    label, features = (table.dep_delay >= 15).to_numpy(), table[["hour", "carrier", "origin", "dest"]]
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=500))
    january = (table.month == 1).to_numpy()
    model.fit(features[january], label[january])
    p = model.predict_proba(features)[:, 1]
    # At a half nobody is ever called late.
    found = _table(features, p, label, p >= 0.25, (table.month <= 3).to_numpy())
    return found[~january]


def rotating(seed: int, rows: int = 120_000, reference: int = 20_000, dimensions: int = 5) -> pd.DataFrame:
    """A plane between the classes that starts to turn after the reference, stops and turns again (Hulten et al., 2001)."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, dimensions))
    turning = (np.arange(rows) >= reference) & (np.arange(rows) // 20_000 % 2 == 1)
    angle = 0.8 * np.cumsum(turning) / 20_000
    score = 1.5 * (np.cos(angle) * features[:, 0] + np.sin(angle) * features[:, 1]) + 0.8 * features[:, 2] - 0.7
    label = random.random(rows) < 1 / (1 + np.exp(-score))
    model = LogisticRegression().fit(features[: reference // 2], label[: reference // 2])
    p = model.predict_proba(features)[:, 1]
    inputs = pd.DataFrame(features, columns=[f"x{index}" for index in range(dimensions)])
    return _table(inputs, p, label, p >= 0.5, np.arange(rows) < reference)[reference // 2 :]


def _table(
    features: pd.DataFrame, p: np.ndarray, label: np.ndarray, predicted: np.ndarray, is_reference: np.ndarray
) -> pd.DataFrame:
    return features.assign(
        probability=p, label=label.astype(int), prediction=predicted.astype(int), is_reference=is_reference
    )
