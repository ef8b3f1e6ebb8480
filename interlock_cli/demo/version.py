"""What the registry is told about a trained version: signature, baseline and golden rows."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from interlock.registry.v1 import baseline_pb2
from interlock.registry.v1 import model_version_pb2 as pb
from interlock.types.v1 import signature_pb2
from sklearn.pipeline import Pipeline

from interlock_cli.demo.data import CATEGORICAL, LABELS, NUMERIC, WEATHER, Flights, Recipe
from interlock_cli.demo.direct import TOLERANCE, model_inputs
from interlock_sdk.baseline import profile_categories, profile_numbers, profile_probabilities
from interlock_sdk.golden import golden_rows, spread_positions
from interlock_sdk.onnx_export import CATEGORIES_INPUT, LABEL_OUTPUT, NUMBERS_INPUT, PROBABILITIES_OUTPUT
from interlock_sdk.onnx_signature import onnx_tensor_specs

SPREAD_GOLDEN_ROWS = 30

_TEXTS = {
    "carrier": "Two-character code of the airline, for example B6",
    "origin": "IATA code of the airport of departure: EWR, JFK or LGA",
    "dest": "IATA code of the airport of arrival",
}
_NUMBERS = {
    "sched_dep_hour": (0, 23, "Hour of the scheduled departure, local time"),
    "month": (1, 12, "Month of the departure, 1 = January"),
    "weekday": (1, 7, "Day of the week of the departure, 1 = Monday"),
}
_MAX_DISTANCE_MILES = 12_500
_WEATHER_TEXTS = {
    "temperature": "Temperature at the origin, degrees Fahrenheit",
    "wind_speed": "Wind speed at the origin, miles per hour",
    "precipitation": "Precipitation at the origin in the last hour, inches",
    "visibility": "Visibility at the origin, miles",
}
_DELAY_TEXTS = {
    "carrier_delay_6h": "Mean arrival delay of the airline's flights that landed in the last 6 hours, minutes",
    "route_delay_7d": "Mean arrival delay of flights of the same route that landed in the last 7 days, minutes",
    "aircraft_delay_24h": "Mean arrival delay of the aircraft's flights that landed in the last 24 hours, minutes",
}
# Where the features service has them: "<view>.<feature>".
SOURCES = {name: f"weather.{name}" for name in WEATHER} | {
    "carrier_delay_6h": "carrier_delays.mean_6h",
    "route_delay_7d": "route_delays.mean_7d",
    "aircraft_delay_24h": "aircraft_delays.mean_24h",
}


def build_signature(artifact: bytes, recipe: Recipe) -> signature_pb2.Signature:
    """Describes the tensors of the exported model and the features that fill them."""
    inputs, outputs = onnx_tensor_specs(artifact)
    return signature_pb2.Signature(
        inputs=inputs,
        outputs=outputs,
        features=[*_text_features(), *_number_features(), *(_live_features() if recipe.live else ())],
        prediction=signature_pb2.PredictionSpec(
            task=signature_pb2.TASK_CLASSIFICATION, tensor=PROBABILITIES_OUTPUT, labels=LABELS
        ),
    )


def _text_features() -> list[signature_pb2.FeatureSpec]:
    # Any text is legal: an airline or airport that was not there in training gets the model's code for unknown.
    return [
        signature_pb2.FeatureSpec(
            name=name,
            type=signature_pb2.FEATURE_TYPE_STRING,
            tensor=CATEGORIES_INPUT,
            column=column,
            source="request",
            description=_TEXTS[name],
        )
        for column, name in enumerate(CATEGORICAL)
    ]


def _number_features() -> list[signature_pb2.FeatureSpec]:
    whole = [
        signature_pb2.FeatureSpec(
            name=name, type=signature_pb2.FEATURE_TYPE_INT64, minimum=low, maximum=high, description=text
        )
        for name, (low, high, text) in _NUMBERS.items()
    ]
    distance = signature_pb2.FeatureSpec(
        name="distance",
        type=signature_pb2.FEATURE_TYPE_DOUBLE,
        minimum=0,
        maximum=_MAX_DISTANCE_MILES,
        description="Distance between the airports in miles",
    )
    for feature in (features := [*whole, distance]):
        feature.MergeFrom(
            signature_pb2.FeatureSpec(tensor=NUMBERS_INPUT, column=NUMERIC.index(feature.name), source="request")
        )
    return features


def _live_features() -> list[signature_pb2.FeatureSpec]:
    # Null is legal: an aircraft that has not landed within a day has no delay. The model has seen such rows.
    described = {**_WEATHER_TEXTS, **_DELAY_TEXTS}
    return [
        signature_pb2.FeatureSpec(
            name=name,
            type=signature_pb2.FEATURE_TYPE_DOUBLE,
            tensor=NUMBERS_INPUT,
            column=len(NUMERIC) + column,
            source=SOURCES[name],
            nullable=True,
            missing_policy=signature_pb2.MISSING_POLICY_DEFAULT,
            description=text,
        )
        for column, (name, text) in enumerate(described.items())
    ]


def build_baseline(flights: Flights, probabilities: npt.NDArray[np.float64], recipe: Recipe) -> baseline_pb2.Baseline:
    """Profiles the training flights and the probabilities, [N, 2], that the version gives for them."""
    texts = [profile_categories(name, flights.features[name]) for name in CATEGORICAL]
    numbers = [profile_numbers(name, flights.features[name]) for name in recipe.numeric]
    return baseline_pb2.Baseline(
        row_count=len(flights),
        description=f"Flights from New York City, {recipe.window.first} to {recipe.window.last}",
        features=[*texts, *numbers],
        outputs=profile_probabilities(LABELS, probabilities),
    )


def build_golden_rows(model: Pipeline, flights: Flights, recipe: Recipe) -> list[pb.GoldenRow]:
    """Picks training flights from the least to the most likely late, adds unknown texts, and asks the trained model."""
    probability = model.predict_proba(flights.features)[:, 1]
    known = flights.features.iloc[spread_positions(probability, SPREAD_GOLDEN_ROWS)]
    rows = pd.concat([known, _with_unknown_texts(known.iloc[[0, -1]])], ignore_index=True)
    expected = model.predict_proba(rows)
    outputs = {LABEL_OUTPUT: expected.argmax(axis=1), PROBABILITIES_OUTPUT: expected.astype(np.float32)}
    return golden_rows(model_inputs(recipe, rows), outputs, absolute_tolerance=TOLERANCE)


def _with_unknown_texts(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows.assign(**{name: "\N{AIRPLANE}"}) for name in CATEGORICAL])
