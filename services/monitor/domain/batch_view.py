"""One batch of predictions made ready for sketches: everything that all of its windows and slices share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa

from services.monitor.domain.column_form import ColumnForm, Values, VersionForm, output_columns, positive_index
from services.monitor.domain.columns import Bools, FeatureColumn, Floats, Ints, PredictionColumns
from services.monitor.domain.fairness import GroupCounts
from services.monitor.domain.policy import MonitoringPolicy, Slice
from services.monitor.domain.version_info import FeatureInfo, FeatureKind, VersionInfo
from services.monitor.domain.window import GROUP_VALUE_LIMIT, OTHER_GROUP

MISSING_GROUP: Final = "_missing"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The predictions of one window and slice; None where it is all of the batch."""

    positions: Ints | None
    """Among all predictions."""
    rows: Ints | None
    """Among those that were run."""

    def of_predictions(self, values: Any) -> Any:
        """Return what belongs to the part of an array with one entry for each prediction."""
        return values if self.positions is None else values[self.positions]

    def of_rows(self, values: Any) -> Any:
        """Return what belongs to the part of a column with one entry for each prediction that was run."""
        if self.rows is None:
            return values
        return values.take(pa.array(self.rows)) if isinstance(values, pa.Array) else values[self.rows]


class BatchView:
    """Columns of a batch as sketches take them, computed once."""

    def __init__(self, columns: PredictionColumns, info: VersionInfo, form: VersionForm) -> None:
        self.columns = columns
        self.info = info
        self.form = form
        self.weights: Floats | None = None if bool((columns.weights == 1.0).all()) else columns.weights

    @cached_property
    def row_weights(self) -> Floats | None:
        """Weights of the predictions that were run; None: each stands for itself."""
        return None if self.weights is None else self.weights[self.columns.rows]

    @cached_property
    def features(self) -> Mapping[str, tuple[ColumnForm, Values]]:
        """Features with how they are sketched; there is no profile of one that is redacted."""
        columns = self.columns.features.items()
        kept = [(name, column) for name, column in columns if name not in self.columns.redacted]
        return dict(_formed(kept, self.form.features))

    @cached_property
    def outputs(self) -> Mapping[str, tuple[ColumnForm, Values]]:
        """Outputs with how they are sketched."""
        return dict(_formed(output_columns(self.columns, self.info), self.form.outputs))

    @cached_property
    def illegal(self) -> Mapping[str, Bools]:
        """For each feature that has limits, which values of the predictions that were run are outside of them."""
        found = {
            name: illegal_values(form.info, values)
            for name, (form, values) in self.features.items()
            if form.info is not None
        }
        return {name: mask for name, mask in found.items() if mask is not None and mask.any()}

    @cached_property
    def stale(self) -> Mapping[str, Bools]:
        """For each feature with a largest age, which predictions got an older value; a missing one is not stale."""
        columns = self.columns
        found = {}
        read_us = np.where(columns.feature_read_times_us > 0, columns.feature_read_times_us, columns.prediction_time_us)
        for feature in self.info.features:
            times = columns.feature_event_times_us.get(feature.name)
            if times is not None and feature.max_age_us is not None:
                mask = (times > 0) & (read_us - times > feature.max_age_us)
                if mask.any():
                    found[feature.name] = mask
        return found

    def slice_rows(self, wanted: Slice) -> Bools:
        """Return which of the predictions that were run belong to a slice."""
        found = self.features.get(wanted.feature)
        if found is None:
            return np.zeros(self.columns.row_count, dtype=np.bool_)
        form, values = found
        if isinstance(values, pa.DictionaryArray):
            return _is_among(values, {_text(value, form) for value in wanted.values})
        if wanted.values:
            return np.asarray(np.isin(values, np.array([float(value) for value in wanted.values])))
        mask: Bools = ~np.isnan(values)
        if wanted.minimum is not None:
            mask &= values >= wanted.minimum
        if wanted.maximum is not None:
            mask &= values < wanted.maximum
        return mask

    def is_predicted_positive(self, policy: MonitoringPolicy) -> Bools | None:
        """Return which of the predictions that were run are of the positive class; None for a regression."""
        if self.columns.predicted is None or not self.info.labels:
            return None
        found: Bools = self.columns.predicted == positive_index(self.info, policy.positive_label)
        return found

    def groups(self, feature: str) -> tuple[Ints, Sequence[str]] | None:
        """Return the group of each prediction that was run as a position in the names of groups."""
        found = self.features.get(feature)
        if found is None:
            return None
        _, values = found
        if isinstance(values, pa.DictionaryArray):
            names = [str(name) for name in values.dictionary.to_pylist()]
            codes = np.asarray(values.indices.fill_null(len(names)), dtype=np.int64)
        else:
            distinct, codes = np.unique(values, return_inverse=True)
            names = [f"{value:g}" for value in distinct if not np.isnan(value)]
        return codes, [*names, MISSING_GROUP]


def illegal_values(info: FeatureInfo, values: Values) -> Bools | None:
    """Return which values are outside of a feature's limits; None when it has none. A missing value is not outside."""
    if isinstance(values, pa.DictionaryArray):
        if not info.allowed:
            return None
        present: Bools = values.is_valid().to_numpy(zero_copy_only=False)
        return present & ~_is_among(values, {str(value) for value in info.allowed})
    if info.minimum is None and info.maximum is None and not info.allowed:
        return None
    mask = np.zeros(values.size, dtype=np.bool_)
    if info.minimum is not None:
        mask |= values < info.minimum
    if info.maximum is not None:
        mask |= values > info.maximum
    if info.allowed:
        mask |= ~np.isnan(values) & ~np.isin(values, np.array([float(value) for value in info.allowed]))
    return mask


def group_counts(
    codes: Ints, names: Sequence[str], cells: Mapping[str, Bools], weights: Floats | None
) -> dict[str, GroupCounts]:
    """Return counts by group: for each cell of GroupCounts, the predictions that belong to it."""
    sums = {
        cell: np.bincount(codes, mask if weights is None else mask * weights, len(names))
        for cell, mask in cells.items()
    }
    found: dict[str, GroupCounts] = {}
    seen = np.bincount(codes, minlength=len(names))
    # The largest groups keep their names.
    for code in np.argsort(-seen, kind="stable").tolist():
        if not seen[code]:
            break
        name = names[code] if len(found) < GROUP_VALUE_LIMIT else OTHER_GROUP
        counts = GroupCounts(**{cell: float(values[code]) for cell, values in sums.items()})
        found[name] = found.get(name, GroupCounts()) + counts
    return found


def _formed(
    columns: Iterable[tuple[str, FeatureColumn]], forms: Mapping[str, ColumnForm]
) -> Iterator[tuple[str, tuple[ColumnForm, Values]]]:
    for name, column in columns:
        form = forms.get(name)
        values = None if form is None else form.values(column)
        if form is not None and values is not None:
            yield name, (form, values)


def _is_among(values: pa.DictionaryArray, wanted: set[str]) -> Bools:
    known = np.array([*(text in wanted for text in values.dictionary.to_pylist()), False])
    return np.asarray(known[np.asarray(values.indices.fill_null(len(values.dictionary)))])


def _text(value: object, form: ColumnForm) -> str:
    if form.info is not None and form.info.kind is FeatureKind.BOOL:
        return form.truth_words[bool(value)]
    return str(value)
