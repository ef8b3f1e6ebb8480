"""Takes labels that were joined with their predictions into the windows of those predictions."""

import asyncio
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from services.monitor.domain.batch_view import BatchView, Part, group_counts
from services.monitor.domain.column_form import form_of, positive_index
from services.monitor.domain.columns import Bools, Floats, LabelBatch, LabelledColumns
from services.monitor.domain.fairness import GroupCounts
from services.monitor.domain.policy import MonitoringPolicy, PolicyBook
from services.monitor.domain.quality import ClassificationQuality, RegressionQuality
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.version_info import Task, VersionInfo
from services.monitor.domain.window import WindowKey, merge_groups
from services.monitor.domain.window_ports import VersionFinder, WindowStore
from services.monitor.domain.windowing import parts, stretches, window_key

LABELS: Final = "labels"
"""Name of the position: number of the last batch of labels that is in windows."""


class LabelIntake:
    """A `LabelSink`. A batch is in the database, once, when `take_labels` returns."""

    def __init__(self, store: WindowStore, versions: VersionFinder, book: PolicyBook, *, feature_limit: int) -> None:
        self._store = store
        self._versions = versions
        self._book = book
        self._feature_limit = feature_limit

    async def take_labels(self, batch: LabelBatch) -> None:
        """Add labels to their windows; a batch that came before changes nothing. Raises ServiceError."""
        found: dict[WindowKey, QualityWindow] = {}
        for part in batch.parts:
            if not part.predictions.version:
                # A fixed prediction of the route's fallback answered: that is no version's quality.
                continue
            info = part.predictions.info or await self._versions.find(part.predictions.model, part.predictions.version)
            if info.task is not None and part.predictions.predicted is not None:
                await asyncio.to_thread(self._add, found, part, info)
        await self._store.add_labelled(found, (LABELS, batch.number))

    def _add(self, found: dict[WindowKey, QualityWindow], labelled: LabelledColumns, info: VersionInfo) -> None:
        columns = labelled.predictions
        view = BatchView(columns, info, form_of(info, self._feature_limit))
        for stretch in stretches(columns.model, columns.prediction_time_us, self._book):
            for slice_name, part in parts(view, stretch):
                window = _measured(view, labelled, part, stretch.policy)
                key = window_key(view, slice_name, stretch)
                if key in found:
                    found[key].merge(window)
                else:
                    found[key] = window


def _measured(view: BatchView, labelled: LabelledColumns, part: Part, policy: MonitoringPolicy) -> QualityWindow:
    """Return what the labels of a part add, those that they replace taken out."""
    places = np.arange(view.columns.row_count) if part.rows is None else part.rows
    previous = labelled.previous_labels[places]
    replaced = ~np.isnan(previous)
    if view.info.task is Task.REGRESSION:
        return QualityWindow(_regression(view, labelled, places, replaced))
    window = QualityWindow(_classification(view, places, labelled.labels[places], policy))
    for feature, counts in _groups(view, places, labelled.labels[places], policy):
        merge_groups(window.groups, {feature: counts})
    if replaced.any():
        places, previous = places[replaced], previous[replaced]
        taken_out = _classification(view, places, previous, policy)
        if isinstance(window.quality, ClassificationQuality):
            window.quality.subtract(taken_out)
        for feature, counts in _groups(view, places, previous, policy):
            negative = {value: GroupCounts() - cells for value, cells in counts.items()}
            merge_groups(window.groups, {feature: negative})
    return window


def _regression(
    view: BatchView, labelled: LabelledColumns, places: npt.NDArray[np.int64], replaced: Bools
) -> RegressionQuality:
    predicted = np.asarray(view.columns.predicted)
    weights = _weights(view, places)
    quality = RegressionQuality()
    quality.update(predicted[places], labelled.labels[places], weights)
    if replaced.any():
        places = places[replaced]
        taken_out = RegressionQuality()
        taken_out.update(predicted[places], labelled.previous_labels[places], _weights(view, places))
        quality.subtract(taken_out)
    return quality


def _classification(
    view: BatchView, places: npt.NDArray[np.int64], labels: Floats, policy: MonitoringPolicy
) -> ClassificationQuality:
    quality = ClassificationQuality()
    columns = view.columns
    if columns.probabilities is None or columns.predicted is None:
        return quality
    positive = positive_index(view.info, policy.positive_label)
    chances = columns.probabilities[places]
    predicted = columns.predicted[places]
    quality.update(
        chances[:, positive],
        labels == positive,
        is_predicted_positive=predicted == positive,
        is_correct=predicted == labels,
        label_probabilities=chances[np.arange(places.size), labels.astype(np.int64)],
        weights=_weights(view, places),
    )
    return quality


def _groups(
    view: BatchView, places: npt.NDArray[np.int64], labels: Floats, policy: MonitoringPolicy
) -> Iterator[tuple[str, dict[str, GroupCounts]]]:
    if view.columns.predicted is None:
        return
    positive = positive_index(view.info, policy.positive_label)
    predicted, actual = view.columns.predicted[places] == positive, labels == positive
    cells = {
        "true_positive": predicted & actual,
        "false_positive": predicted & ~actual,
        "true_negative": ~predicted & ~actual,
        "false_negative": ~predicted & actual,
    }
    for group in policy.fairness_groups:
        found = view.groups(group.feature)
        if found is not None:
            codes, names = found
            yield group.feature, group_counts(codes[places], names, cells, _weights(view, places))


def _weights(view: BatchView, places: npt.NDArray[np.int64]) -> Floats | None:
    return None if view.row_weights is None else view.row_weights[places]
