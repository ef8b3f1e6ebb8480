"""Series whose change points people annotated (Turing Change Point Dataset, as river ships it).

Rows become windows of equal length. The baseline is the first three windows, and again the three windows after each alarm; every
later window is compared with it, the windows since then being its past. A real monitor is told of a new version instead.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.monitoring.stationary import histogram_of
from services.monitor.domain.drift import FeatureComparison, measure_drift
from services.monitor.domain.drift_null import Window
from services.monitor.domain.profile import profile_numbers

WINDOWS = 40
BASELINE_WINDOWS = 3
MARGIN_WINDOWS = 1
# Far apart, so that no two windows are "the same hour" of two days: these series have no hours.
STEP_S = 60.0


@dataclass(frozen=True)
class Found:
    """Rows at which something fired, how many of them no annotator explains, and how many annotated changes were found."""

    fires: int
    false: int
    detected: int
    annotated: int


def our_fires(columns: dict[str, list[float]]) -> tuple[list[int], int]:
    """Return the first rows of the windows that fire, and the rows of a window."""
    length = len(next(iter(columns.values())))
    size = max(length // WINDOWS, 5)
    arrays = {name: np.array(values, dtype=float) for name, values in columns.items()}
    starts = list(range(0, length - size + 1, size))
    fires, first = [], 0
    while first + BASELINE_WINDOWS < len(starts):
        fired = _first_fire(arrays, starts, first, size)
        if fired is None:
            break
        fires.append(starts[fired])
        first = fired
    return fires, size


def _first_fire(arrays: dict[str, np.ndarray], starts: list[int], first: int, size: int) -> int | None:
    begin, end = starts[first], starts[first + BASELINE_WINDOWS]
    profiles = {name: profile_numbers(values[begin:end]) for name, values in arrays.items()}
    usable = {name: profile for name, profile in profiles.items() if profile.edges.size}

    def window(name: str, index: int) -> Window:
        start = starts[index]
        return Window(index * STEP_S, histogram_of(usable[name], arrays[name][start : start + size]))

    # The baseline's own windows show how much windows differ.
    past = {name: [window(name, index) for index in range(first, first + BASELINE_WINDOWS)] for name in usable}
    for index in range(first + BASELINE_WINDOWS, len(starts)):
        now = {name: window(name, index) for name in usable}
        # As against an earlier stretch: three windows are no baseline of whole weeks.
        compared = [
            FeatureComparison(name, usable[name].histogram(), [now[name]], past[name], is_baseline=False)
            for name in usable
        ]
        if any(drift.is_drifted for drift in measure_drift(compared, window_s=STEP_S)):
            return index
        for name in usable:
            past[name].append(now[name])
    return None


def judge(fires: list[int], annotations: dict[str, list[int]], margin: int, length: int) -> Found:
    """Hold fires against the changes that at least two annotators marked within a margin of each other.

    A fire is false when no annotator at all marked a change near it.
    """
    marks = sorted((row, person) for person, rows in annotations.items() for row in rows if row < length)
    changes: list[list[tuple[int, str]]] = []
    for mark in marks:
        if changes and mark[0] - changes[-1][-1][0] <= margin:
            changes[-1].append(mark)
        else:
            changes.append([mark])
    agreed = [(group[0][0], group[-1][0]) for group in changes if len({person for _, person in group}) >= 2]
    near = [any(abs(fire - row) <= 2 * margin for row, _ in marks) for fire in fires]
    # A window can only fire once it is over, so a fire up to two windows after the change found it.
    detected = sum(any(low - margin <= fire <= high + 2 * margin for fire in fires) for low, high in agreed)
    return Found(len(fires), near.count(False), detected, len(agreed))


def compare(verdicts: dict[str, Any]) -> list[tuple[str, int, dict[str, Found]]]:
    """Return for each series its length and what each detector found."""
    found = []
    for name, series in verdicts.items():
        if name == "version":
            continue
        columns, annotations = series["columns"], series["annotations"]
        length = len(next(iter(columns.values())))
        ours, size = our_fires(columns)
        fires = {"ours": ours, **{method: _first_of_runs(rows, size) for method, rows in series["fires"].items()}}
        judged = {method: judge(rows, annotations, MARGIN_WINDOWS * size, length) for method, rows in fires.items()}
        found.append((name, length, judged))
    return found


def _first_of_runs(rows: list[int], size: int) -> list[int]:
    """Count fires that follow each other within a window as one."""
    return [row for before, row in pairwise([-size - 1, *rows]) if row - before > size]
