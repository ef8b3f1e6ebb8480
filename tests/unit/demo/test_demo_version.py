"""What the registry is told about a trained version."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from interlock.types.v1 import signature_pb2, tensor_pb2
from sklearn.pipeline import Pipeline

from interlock_cli.demo.data import FEATURES, LABELS, LIVE, RECIPES, Flights, Recipe
from interlock_cli.demo.direct import run_onnx
from interlock_cli.demo.train import export, train
from interlock_cli.demo.version import build_baseline, build_golden_rows, build_signature
from interlock_sdk.onnx_export import PROBABILITIES_OUTPUT
from interlock_sdk.tensors import tensor_from_proto


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found: Recipe = request.param
    return found


@pytest.fixture(scope="module")
def names(recipe: Recipe) -> list[str]:
    return [*FEATURES, *LIVE] if recipe.live else [*FEATURES]


@pytest.fixture(scope="module")
def model(spring_flights: Flights, recipe: Recipe) -> Pipeline:
    return train(spring_flights, recipe)


@pytest.fixture(scope="module")
def signature(model: Pipeline, recipe: Recipe, spring_flights: Flights) -> signature_pb2.Signature:
    return build_signature(export(model, recipe, spring_flights.features.head(100)), recipe)


def test_features_fill_every_column_of_every_input_once(signature: signature_pb2.Signature, names: list[str]) -> None:
    columns = {(spec.name, column) for spec in signature.inputs for column in range(spec.shape[1])}
    filled = [(feature.tensor, feature.column) for feature in signature.features]
    assert sorted(filled) == sorted(columns)
    assert {feature.name for feature in signature.features} == set(names)


def test_text_features_fill_the_text_tensor(signature: signature_pb2.Signature) -> None:
    texts = {feature.tensor for feature in signature.features if feature.type == signature_pb2.FEATURE_TYPE_STRING}
    (spec,) = (spec for spec in signature.inputs if spec.name in texts)
    assert spec.data_type == tensor_pb2.DATA_TYPE_BYTES


def test_a_prediction_is_read_from_an_output_with_a_column_for_each_label(signature: signature_pb2.Signature) -> None:
    (output,) = (spec for spec in signature.outputs if spec.name == signature.prediction.tensor)
    assert list(output.shape) == [-1, len(LABELS)]


def test_every_flight_is_inside_the_declared_limits(signature: signature_pb2.Signature, all_flights: Flights) -> None:
    for feature in signature.features:
        if feature.HasField("minimum"):
            values = all_flights.features[feature.name]
            assert feature.minimum <= values.min(), feature.name
            assert values.max() <= feature.maximum, feature.name


def test_the_baseline_profiles_every_feature_and_the_probabilities(
    model: Pipeline, recipe: Recipe, names: list[str], spring_flights: Flights
) -> None:
    baseline = build_baseline(spring_flights, model.predict_proba(spring_flights.features), recipe)
    assert [profile.name for profile in baseline.features] == names
    assert [profile.name for profile in baseline.outputs] == ["probability/on_time", "probability/late"]
    assert {profile.count for profile in (*baseline.features, *baseline.outputs)} == {len(spring_flights)}
    late = baseline.outputs[1].numeric
    assert late.mean == pytest.approx(spring_flights.late_share(), abs=0.002)


def test_the_export_passes_its_golden_rows(
    model: Pipeline, recipe: Recipe, names: list[str], spring_flights: Flights
) -> None:
    rows = build_golden_rows(model, spring_flights, recipe)
    assert 30 <= len(rows) <= 64
    artifact = export(model, recipe, spring_flights.features.head(100))
    for row in rows:
        (want,) = (tensor for tensor in row.outputs if tensor.name == PROBABILITIES_OUTPUT)
        got = run_tensors(artifact, recipe, names, list(row.inputs))
        assert np.abs(got - tensor_from_proto(want)).max() <= row.absolute_tolerance


def test_golden_rows_cover_both_labels_and_unknown_texts(
    model: Pipeline, recipe: Recipe, spring_flights: Flights
) -> None:
    rows = build_golden_rows(model, spring_flights, recipe)
    labels = {int(tensor_from_proto(tensor)[0]) for row in rows for tensor in row.outputs if tensor.name == "label"}
    assert labels == {0, 1}
    known = {text for name in ("carrier", "origin", "dest") for text in spring_flights.features[name].unique()}
    texts = {text.decode() for row in rows for text in tensor_from_proto(row.inputs[0]).ravel()}
    assert texts - known


def run_tensors(
    artifact: bytes, recipe: Recipe, names: list[str], inputs: list[tensor_pb2.Tensor]
) -> npt.NDArray[np.float32]:
    texts, numbers = (tensor_from_proto(tensor) for tensor in inputs)
    row = [*(text.decode() for text in texts[0]), *numbers[0]]
    probabilities: npt.NDArray[np.float32] = run_onnx(artifact, recipe, pd.DataFrame([row], columns=names))[
        PROBABILITIES_OUTPUT
    ]
    return probabilities
