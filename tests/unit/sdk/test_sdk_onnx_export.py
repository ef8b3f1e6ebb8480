"""The ONNX export of boosted trees, on models other than the demo's."""

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.preprocessing import OrdinalEncoder

from interlock_sdk.onnx_export import UnsupportedModel, export_boosted_trees, round_down_to_float32

ROW_COUNT = 400


@pytest.fixture
def texts() -> npt.NDArray[np.object_]:
    return np.random.default_rng(1).choice(np.array(["a", "b", "cc"], dtype=object), size=(ROW_COUNT, 1))


@pytest.fixture
def numbers() -> npt.NDArray[np.float64]:
    return np.random.default_rng(2).normal(size=(ROW_COUNT, 2)).astype(np.float32).astype(np.float64)


def encoder_of(texts: npt.NDArray[np.object_]) -> OrdinalEncoder:
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(texts)


def rows_of(texts: npt.NDArray[np.object_], numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.hstack([encoder_of(texts).transform(texts), numbers])


def run(
    artifact: bytes, texts: npt.NDArray[np.object_], numbers: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    feed = {"categories": texts, "numbers": numbers.astype(np.float32)}
    return list(session.run(["label", "probabilities"], feed))


def test_missing_numbers_take_the_branch_that_training_chose(
    texts: npt.NDArray[np.object_], numbers: npt.NDArray[np.float64]
) -> None:
    numbers[::3, 0] = np.nan
    target = (np.isnan(numbers[:, 0]) | (numbers[:, 1] > 0.5)).astype(int)
    rows = rows_of(texts, numbers)
    model = HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(rows, target)
    labels, probabilities = run(export_boosted_trees(encoder_of(texts), model, name="g"), texts, numbers)
    assert np.abs(probabilities - model.predict_proba(rows)).max() < 1e-6
    assert labels.tolist() == model.predict(rows).tolist()


def test_values_next_to_a_threshold_keep_their_branch(texts: npt.NDArray[np.object_]) -> None:
    step = np.nextafter(np.float32(1), np.float32(2))
    numbers = np.where(np.arange(ROW_COUNT) % 2, step, np.float32(1)).astype(np.float64)[:, None]
    rows = rows_of(texts, numbers)
    target = (numbers[:, 0] > 1).astype(int)
    model = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(rows, target)
    labels, _ = run(export_boosted_trees(encoder_of(texts), model, name="g"), texts, numbers)
    assert labels.tolist() == target.tolist()


@given(st.floats(-1e30, 1e30), st.integers(-2, 2))
def test_a_rounded_threshold_parts_single_precision_numbers_as_the_exact_one(threshold: float, steps: int) -> None:
    rounded = round_down_to_float32(np.array([threshold]))[0]
    number = rounded
    for _ in range(abs(steps)):
        number = np.nextafter(number, np.float32(np.copysign(np.inf, steps)))
    assert (number <= rounded) == (float(number) <= threshold)


def test_three_classes_are_refused(texts: npt.NDArray[np.object_], numbers: npt.NDArray[np.float64]) -> None:
    model = HistGradientBoostingClassifier(max_iter=1).fit(rows_of(texts, numbers), np.arange(ROW_COUNT) % 3)
    with pytest.raises(UnsupportedModel, match="want two classes, got 3"):
        export_boosted_trees(encoder_of(texts), model, name="g")


def test_native_categorical_splits_are_refused(
    texts: npt.NDArray[np.object_], numbers: npt.NDArray[np.float64]
) -> None:
    target = (texts[:, 0] == "b").astype(int)
    model = HistGradientBoostingClassifier(max_iter=1, categorical_features=[0]).fit(rows_of(texts, numbers), target)
    with pytest.raises(UnsupportedModel, match="categorical"):
        export_boosted_trees(encoder_of(texts), model, name="g")


def test_an_encoder_without_a_code_for_unknown_texts_is_refused(
    texts: npt.NDArray[np.object_], numbers: npt.NDArray[np.float64]
) -> None:
    model = HistGradientBoostingClassifier(max_iter=1).fit(rows_of(texts, numbers), np.arange(ROW_COUNT) % 2)
    with pytest.raises(UnsupportedModel, match="handle_unknown"):
        export_boosted_trees(OrdinalEncoder().fit(texts), model, name="g")


def test_categories_that_are_not_texts_are_refused(
    texts: npt.NDArray[np.object_], numbers: npt.NDArray[np.float64]
) -> None:
    model = HistGradientBoostingClassifier(max_iter=1).fit(rows_of(texts, numbers), np.arange(ROW_COUNT) % 2)
    with pytest.raises(UnsupportedModel, match="texts"):
        export_boosted_trees(encoder_of(np.array([[1], [2]], dtype=object)), model, name="g")
