"""Training, export and judgement of the two versions."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from interlock_cli.demo import train as demo_train
from interlock_cli.demo.data import CATEGORICAL, LATER, RECIPES, Flights, Recipe
from interlock_cli.demo.direct import model_inputs, run_onnx
from interlock_cli.demo.train import ExportMismatch, export, late_probability, train
from interlock_sdk.onnx_export import LABEL_OUTPUT, PROBABILITIES_OUTPUT


@pytest.fixture(scope="module")
def sample(spring_flights: Flights) -> Flights:
    return spring_flights.take(np.arange(0, len(spring_flights), 10))


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found: Recipe = request.param
    return found


@pytest.fixture(scope="module")
def model(sample: Flights, recipe: Recipe) -> Pipeline:
    return train(sample, recipe)


@pytest.fixture(scope="module")
def artifact(model: Pipeline, recipe: Recipe, sample: Flights) -> bytes:
    return export(model, recipe, sample.features)


@pytest.fixture(scope="module")
def trained(model: Pipeline, recipe: Recipe, artifact: bytes) -> tuple[Pipeline, Recipe, bytes]:
    return model, recipe, artifact


def test_equal_flights_give_equal_bytes(sample: Flights, recipe: Recipe, artifact: bytes) -> None:
    assert export(train(sample, recipe), recipe, sample.features) == artifact


def test_the_export_answers_as_the_trained_model_on_rows_it_has_not_seen(
    model: Pipeline, recipe: Recipe, artifact: bytes, all_flights: Flights
) -> None:
    later = all_flights.within(LATER).take(np.arange(0, 100_000, 20))
    outputs = run_onnx(artifact, recipe, later.features)
    expected = model.predict_proba(later.features)
    assert outputs[PROBABILITIES_OUTPUT].dtype == np.float32
    assert np.abs(outputs[PROBABILITIES_OUTPUT] - expected).max() < 1e-6
    assert outputs[LABEL_OUTPUT].tolist() == expected.argmax(axis=1).tolist()


@pytest.mark.parametrize(("column", "text"), list(product(CATEGORICAL, ["", "ZZ", "✈", "b6"])))
def test_an_unknown_text_is_answered_as_by_the_trained_model(
    trained: tuple[Pipeline, Recipe, bytes], sample: Flights, column: str, text: str
) -> None:
    model, recipe, artifact = trained
    rows = sample.features.head(50).assign(**{column: text})
    got = run_onnx(artifact, recipe, rows)[PROBABILITIES_OUTPUT][:, 1]
    assert np.abs(got - late_probability(model, rows)).max() < 1e-6


def test_one_row_and_many_rows_are_answered_alike(recipe: Recipe, artifact: bytes, sample: Flights) -> None:
    many = run_onnx(artifact, recipe, sample.features.head(64))[PROBABILITIES_OUTPUT]
    single = [run_onnx(artifact, recipe, sample.features.iloc[[row]])[PROBABILITIES_OUTPUT][0] for row in range(64)]
    assert np.array_equal(many, np.stack(single))


def test_an_export_that_answers_differently_is_refused(
    model: Pipeline, recipe: Recipe, sample: Flights, spring_flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = export(train(spring_flights.take(np.arange(5_000)), recipe), recipe, sample.features)
    monkeypatch.setattr(demo_train, "export_boosted_trees", lambda *_, **__: other)
    with pytest.raises(ExportMismatch):
        export(model, recipe, sample.features)


def test_model_inputs_keep_the_columns_in_the_contract_order() -> None:
    row = {
        "distance": 1,
        "dest": "LAX",
        "origin": "JFK",
        "carrier": "B6",
        "weekday": 2,
        "month": 3,
        "sched_dep_hour": 4,
    }
    inputs = model_inputs(RECIPES[0], pd.DataFrame([row]))
    assert inputs["categories"].tolist() == [["B6", "JFK", "LAX"]]
    assert inputs["numbers"].tolist() == [[4, 3, 2, 1]]
