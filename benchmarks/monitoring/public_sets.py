"""NannyML's car_loan and census sets in chunks: what fires, when, and what fires falsely; quality without labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.monitoring.stationary import histogram_of, profile_of
from services.monitor.domain.drift import FeatureComparison, measure_drift
from services.monitor.domain.drift_null import DAY_S, Window
from services.monitor.domain.label_free import NotCalibrated, ScoreSketch, Stretch, check_calibration, estimate_quality
from services.monitor.domain.quality import ClassificationQuality

CHUNK = 5_000
# NannyML's documentation: the second half of car_loan's analysis has drifted; census is one year after the other, and
# what changes there is for the reader to say.
FEATURES_OF_OTHERS = {"id", "timestamp", "year", "label", "probability", "prediction", "is_reference"}


@dataclass
class DriftRow:
    """One feature: chunks in which each side fires. Chunks are counted through the analysis part; r = in the reference."""

    feature: str
    ours: list[str] = field(default_factory=list)
    theirs: dict[str, list[str]] = field(default_factory=dict)
    largest: float = 0.0


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the realised figure, and how wide it was."""

    metric: str
    stated: int
    """Chunks in which a level is stated."""
    covered: float
    width: float
    unstated: int
    unstated_covered: float
    error: float
    """Mean of all chunks."""
    their_covered: float | None = None
    their_width: float | None = None
    their_error: float | None = None


def drift_table(path: Path, verdicts: dict[str, Any]) -> list[DriftRow]:
    """Baseline: the first half of the reference; its second half and the analysis are windows, each a day."""
    table = pd.read_parquet(path)
    reference, analysis = table[table.is_reference], table[~table.is_reference]
    half = len(reference) // 2 // CHUNK * CHUNK
    features = [name for name in table.columns if name not in FEATURES_OF_OTHERS]
    profiles = {name: profile_of([_values(reference.iloc[:half], name)]) for name in features}
    rows = {name: DriftRow(name) for name in features}
    past: dict[str, list[Window]] = {name: [] for name in features}
    labelled = [*_labelled("r", reference.iloc[half:], half // CHUNK), *_labelled("", analysis)]
    for day, (label, chunk) in enumerate(labelled):
        now = {n: Window(day * DAY_S, histogram_of(profiles[n], _values(chunk, n))) for n in features}
        compared = [FeatureComparison(n, profiles[n].histogram(), [now[n]], past[n]) for n in features]
        for drift in measure_drift(compared, window_s=DAY_S):
            if drift.is_drifted:
                rows[drift.name].ours.append(label)
            if not label.startswith("r"):
                largest = max(s.value.estimate for s in drift.statistics if s.metric == "jensen_shannon")
                rows[drift.name].largest = max(rows[drift.name].largest, largest)
            past[drift.name].append(replace(now[drift.name], is_drifted=drift.is_drifted))
    for name, methods in verdicts.items():
        for method, found in methods.items():
            rows[name].theirs[method] = list(_their_chunks(found))
    return list(rows.values())


def chunks_of(path: Path, size: int) -> tuple[list[Stretch], int]:
    """Return all chunks in a row, with the inputs that had drifted, and how many are of the reference.

    Baseline of the drift: the first half of the reference, of which nothing is judged.
    """
    table = pd.read_parquet(path)
    parts = [table[table.is_reference], table[~table.is_reference]]
    half = len(parts[0]) // 2 // size * size
    features = [name for name in table.columns if name not in FEATURES_OF_OTHERS]
    profiles = {name: profile_of([_values(parts[0].iloc[:half], name)]) for name in features}
    past: dict[str, list[Window]] = {name: [] for name in features}
    found: list[Stretch] = []
    for _, chunk in [labelled for part in parts for labelled in _labelled("", part, size=size)]:
        drifted = set()
        if len(found) >= half // size:
            start_s = len(found) * DAY_S
            now = {n: Window(start_s, histogram_of(profiles[n], _values(chunk, n))) for n in features}
            compared = [FeatureComparison(n, profiles[n].histogram(), [now[n]], past[n]) for n in features]
            drifted = {drift.name for drift in measure_drift(compared, window_s=DAY_S) if drift.is_drifted}
            for name, window in now.items():
                past[name].append(replace(window, is_drifted=name in drifted))
        scores = ScoreSketch()
        scores.update(chunk.probability.to_numpy(), chunk.prediction.to_numpy() == 1)
        found.append(Stretch(0, _quality(chunk), scores, frozenset(drifted)))
    return found, len(parts[0]) // size


def coverage_table(chunks: Sequence[Stretch], first: int, verdicts: dict[str, Any]) -> list[Coverage] | str:
    """Return how often the label-free estimate's interval holds what labels show, without labels of any chunk from `first` on."""
    found: dict[str, list[tuple[bool, bool, float, float]]] = {}
    for now in range(first, len(chunks)):
        known = [replace(chunks[at], ago=now - at) for at in range(first)]
        try:
            calibration = check_calibration(known, chunks[now].drifted)
        except NotCalibrated as refusal:
            return str(refusal)
        truth = {metric.name: metric.value.estimate for metric in chunks[now].quality.metrics()}
        for metric in estimate_quality(chunks[now].scores, calibration):
            value, real = metric.value, truth[metric.name]
            inside = value.lower <= real <= value.upper
            row = (value.level > 0, inside, value.upper - value.lower, abs(value.estimate - real))
            found.setdefault(metric.name, []).append(row)
    return [_coverage(name, rows, verdicts) for name, rows in found.items()]


def _coverage(name: str, rows: list[tuple[bool, bool, float, float]], verdicts: dict[str, Any]) -> Coverage:
    table = np.array(rows, dtype=float)
    stated, unstated = table[table[:, 0] == 1], table[table[:, 0] == 0]
    covered, width = (float(stated[:, index].mean()) if stated.size else np.nan for index in (1, 2))
    unstated_covered = float(unstated[:, 1].mean()) if unstated.size else np.nan
    ours = (name, len(stated), covered, width, len(unstated), unstated_covered, float(table[:, 3].mean()))
    theirs = verdicts.get({"auc": "roc_auc"}.get(name, name))
    if theirs is None or "realized" not in theirs:
        return Coverage(*ours)
    value, real, lower, upper = (
        np.array(theirs[key], dtype=float)
        for key in ("value", "realized", "lower_confidence_boundary", "upper_confidence_boundary")
    )
    inside = float(np.mean((lower <= real) & (real <= upper)))
    return Coverage(*ours, inside, float(np.mean(upper - lower)), float(np.abs(value - real).mean()))


def _their_chunks(found: dict[str, Any]) -> Iterator[str]:
    index = {"reference": 0, "analysis": 0}
    for period, alert in zip(found["period"], found["alert"], strict=True):
        if alert:
            yield f"{'r' if period == 'reference' else ''}{index[period]}"
        index[period] += 1


def _labelled(
    prefix: str, table: pd.DataFrame, first: int = 0, size: int = CHUNK
) -> Iterator[tuple[str, pd.DataFrame]]:
    for index in range(len(table) // size):
        yield f"{prefix}{first + index}", table.iloc[index * size : (index + 1) * size]


def _values(table: pd.DataFrame, name: str) -> np.ndarray | list[str]:
    column = table[name]
    return column.to_numpy(dtype=float) if column.dtype.kind in "fi" else column.tolist()


def _quality(chunk: pd.DataFrame) -> ClassificationQuality:
    quality = ClassificationQuality()
    quality.update(
        chunk.probability.to_numpy(),
        chunk.label.to_numpy() == 1,
        is_predicted_positive=chunk.prediction.to_numpy() == 1,
    )
    return quality
