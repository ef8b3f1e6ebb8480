"""Sorts predictions into windows and slices, and adds them to their sketches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.monitor.domain.batch_view import BatchView, Part, group_counts
from services.monitor.domain.column_form import ColumnForm, Values, positive_index
from services.monitor.domain.columns import Ints
from services.monitor.domain.label_free import ScoreSketch
from services.monitor.domain.policy import MonitoringPolicy, PolicyBook
from services.monitor.domain.window import Sketch, WindowKey, WindowSketch, add_counts, merge_groups


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """The predictions of a batch that lie in one window."""

    start_us: int
    end_us: int
    policy: MonitoringPolicy
    positions: Ints | None
    """None: all."""


def stretches(model: str, times_us: Ints, book: PolicyBook) -> Iterator[Stretch]:
    """Yield the windows that prediction times lie in."""
    if not times_us.size:
        return
    first, last = int(times_us.min()), int(times_us.max())
    policy = book.at(model, first)
    start_us = first - first % policy.window_us
    if policy is book.at(model, last) and last < start_us + policy.window_us:
        yield Stretch(start_us, start_us + policy.window_us, policy, None)
        return
    revisions = book.revisions(model)
    which = np.searchsorted([revision.from_us for revision in revisions], times_us, side="right") - 1
    for index, revision in enumerate(revisions):
        window_us = revision.policy.window_us
        starts = np.where(np.maximum(which, 0) == index, times_us - times_us % window_us, -1)
        for start in np.unique(starts[starts >= 0]).tolist():
            yield Stretch(start, start + window_us, revision.policy, np.flatnonzero(starts == start))


def parts(view: BatchView, stretch: Stretch) -> Iterator[tuple[str, Part]]:
    """Yield the slices of a stretch that have predictions; everything, under no name, first."""
    columns = view.columns
    inside = np.ones(columns.row_count, dtype=np.bool_)
    if stretch.positions is None:
        yield "", Part(None, None)
    else:
        among = np.zeros(columns.count, dtype=np.bool_)
        among[stretch.positions] = True
        inside = among[columns.rows]
        yield "", Part(stretch.positions, np.flatnonzero(inside))
    for wanted in stretch.policy.slices:
        rows = np.flatnonzero(inside & view.slice_rows(wanted))
        if rows.size:
            yield wanted.name, Part(columns.rows[rows], rows)


def window_key(view: BatchView, slice_name: str, stretch: Stretch) -> WindowKey:
    """Return which window a part belongs to."""
    columns = view.columns
    return WindowKey(
        columns.model,
        columns.version,
        columns.environment,
        slice_name,
        columns.variant,
        stretch.start_us,
        stretch.end_us,
    )


def add_part(window: WindowSketch, view: BatchView, part: Part, policy: MonitoringPolicy) -> None:
    """Add the predictions of a part to the window that they belong to."""
    _add_counts(window, view, part)
    weights = None if view.row_weights is None else part.of_rows(view.row_weights)
    for name, (form, values) in view.features.items():
        _sketch(window.features, name, form, part.of_rows(values), weights)
    for name, (form, values) in view.outputs.items():
        _sketch(window.outputs, name, form, part.of_rows(values), weights)
    predicted = view.is_predicted_positive(policy)
    if predicted is not None:
        _add_positives(window, view, part, policy)


def _add_counts(window: WindowSketch, view: BatchView, part: Part) -> None:
    columns = view.columns
    weights = part.of_predictions(columns.weights)
    statuses = part.of_predictions(columns.statuses)
    for status in np.unique(statuses).tolist():
        add_counts(window.statuses, {status: float(weights[statuses == status].sum())})
    window.degraded += float(weights[part.of_predictions(columns.degraded)].sum())
    window.cached += float(weights[part.of_predictions(columns.cached)].sum())
    window.latency_ms.update(
        part.of_predictions(columns.latencies_us) / 1000, None if view.weights is None else weights
    )
    add_counts(
        window.stale, {name: float(weights[part.of_predictions(mask)].sum()) for name, mask in view.stale.items()}
    )
    row_weights = part.of_rows(columns.weights[columns.rows])
    add_counts(
        window.illegal, {name: float(row_weights[part.of_rows(mask)].sum()) for name, mask in view.illegal.items()}
    )


def _sketch(sketches: dict[str, Sketch], name: str, form: ColumnForm, values: Values, weights: "object") -> None:
    sketch = sketches.get(name)
    if sketch is None:
        sketch = sketches[name] = form.sketch()
    sketch.update(values, weights)  # type: ignore[arg-type]


def _add_positives(window: WindowSketch, view: BatchView, part: Part, policy: MonitoringPolicy) -> None:
    columns = view.columns
    is_positive = part.of_rows(view.is_predicted_positive(policy))
    weights = None if view.row_weights is None else part.of_rows(view.row_weights)
    if columns.probabilities is not None:
        window.scores = window.scores or ScoreSketch()
        chances = part.of_rows(columns.probabilities[:, positive_index(view.info, policy.positive_label)])
        window.scores.update(chances, is_positive, weights)
    for group in policy.fairness_groups:
        found = view.groups(group.feature)
        if found is not None:
            codes, names = found
            cells = {"prediction_count": np.ones(is_positive.size, dtype=np.bool_), "predicted_positive": is_positive}
            counts = group_counts(part.of_rows(codes), names, cells, weights)
            merge_groups(window.groups, {group.feature: counts})
