"""How each feature and output of a version is sketched."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.columns import FeatureColumn, Floats, PredictionColumns
from services.monitor.domain.numeric_sketch import NumericSketch
from services.monitor.domain.profile import CategoricalProfile, FeatureProfile, NumericProfile
from services.monitor.domain.version_info import FeatureInfo, FeatureKind, Task, VersionInfo
from services.monitor.domain.window import Sketch

PREDICTION: Final = "prediction"
PROBABILITY: Final = "probability/"
_TRUE: Final = ("true", "1", "yes")
Values: TypeAlias = Floats | pa.DictionaryArray


@dataclass(frozen=True, slots=True, eq=False)
class ColumnForm:
    """One feature or output: numbers, or categories."""

    name: str
    is_numeric: bool
    profile: FeatureProfile | None = None
    """Of the baseline; None where it has none."""
    info: FeatureInfo | None = None
    """None for outputs, and where there is no signature."""

    def sketch(self) -> Sketch:
        """Return an empty sketch, with the bins or categories of the baseline."""
        content = self.profile.content if self.profile else None
        if self.is_numeric:
            return NumericSketch(content.edges if isinstance(content, NumericProfile) else ())
        return CategorySketch(content.categories if isinstance(content, CategoricalProfile) else ())

    def values(self, column: FeatureColumn) -> Values | None:
        """Return a column as the sketch takes it; None when it is of another kind."""
        if isinstance(column, pa.DictionaryArray):
            return None if self.is_numeric else column
        if self.is_numeric:
            return column.astype(np.float64, copy=False)
        return self._truths(column) if self.info is None or self.info.kind is FeatureKind.BOOL else None

    def _truths(self, column: npt.NDArray[Any]) -> pa.DictionaryArray:
        missing = np.isnan(column) if column.dtype.kind == "f" else None
        codes = np.where(missing, 0, column != 0) if missing is not None else column != 0
        return pa.DictionaryArray.from_arrays(
            pa.array(codes.astype(np.int8), mask=missing), pa.array(self.truth_words, pa.string())
        )

    @property
    def truth_words(self) -> tuple[str, str]:
        """The words for false and true: the baseline's own, however it writes them."""
        content = self.profile.content if self.profile else None
        known = content.categories if isinstance(content, CategoricalProfile) else ()
        true = next((word for word in known if word.lower() in _TRUE), "true")
        false = next((word for word in known if word.lower() not in _TRUE), "false")
        return false, true


@dataclass(frozen=True, slots=True, eq=False)
class VersionForm:
    """All columns of one version that are analysed."""

    features: Mapping[str, ColumnForm]
    outputs: Mapping[str, ColumnForm]
    left_out: int = 0
    """Columns beyond the limit."""


def form_of(info: VersionInfo, limit: int) -> VersionForm:
    """Return how the columns of a version are sketched: at most `limit` of them, outputs first."""
    outputs = list(_outputs(info))[:limit]
    features = [_feature(feature, info) for feature in info.features][: limit - len(outputs)]
    left_out = len(info.features) + (len(info.labels) + 1 if info.task else 0) - len(outputs) - len(features)
    return VersionForm(_by_name(features), _by_name(outputs), left_out)


def form_of_unnamed(columns: PredictionColumns, limit: int) -> VersionForm:
    """Return how the columns of a version without named features are sketched, by what they hold."""
    forms = [
        ColumnForm(name, not isinstance(column, pa.DictionaryArray) and column.dtype.kind != "b")
        for name, column in columns.features.items()
    ]
    return VersionForm(_by_name(forms[:limit]), {}, max(0, len(forms) - limit))


def output_columns(columns: PredictionColumns, info: VersionInfo) -> Iterator[tuple[str, FeatureColumn]]:
    """Yield the outputs under their names; the prediction of a classification as the name of its class."""
    if columns.predicted is None:
        return
    if info.task is Task.REGRESSION:
        yield PREDICTION, columns.predicted
        return
    none = np.isnan(columns.predicted)
    classes = pa.array(np.where(none, 0, columns.predicted).astype(np.int32), mask=none)
    yield PREDICTION, pa.DictionaryArray.from_arrays(classes, pa.array(info.labels, pa.string()))
    if columns.probabilities is not None:
        for index, label in enumerate(info.labels):
            yield f"{PROBABILITY}{label}", columns.probabilities[:, index]


def positive_index(info: VersionInfo, positive_label: str) -> int:
    """Return the class that counts as positive: the policy's, or the last."""
    return info.labels.index(positive_label) if positive_label in info.labels else len(info.labels) - 1


def _feature(feature: FeatureInfo, info: VersionInfo) -> ColumnForm:
    is_numeric = feature.kind in (FeatureKind.DOUBLE, FeatureKind.INT64)
    return ColumnForm(
        feature.name, is_numeric, info.baseline.features.get(feature.name) if info.baseline else None, feature
    )


def _outputs(info: VersionInfo) -> Iterator[ColumnForm]:
    profiles = info.baseline.outputs if info.baseline else {}
    if info.task is None:
        return
    is_classification = info.task is Task.CLASSIFICATION
    profile = profiles.get(PREDICTION)
    fits = profile is not None and isinstance(profile.content, CategoricalProfile) is is_classification
    yield ColumnForm(PREDICTION, not is_classification, profile if fits else None)
    for label in info.labels:
        name = f"{PROBABILITY}{label}"
        yield ColumnForm(name, True, profiles.get(name))


def _by_name(forms: Iterable[ColumnForm]) -> dict[str, ColumnForm]:
    return {form.name: form for form in forms}
