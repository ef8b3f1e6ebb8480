"""What the registry is told about a trained version: signature, baseline and golden rows."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from interlock.registry.v1 import baseline_pb2
from interlock.registry.v1 import model_version_pb2 as pb
from interlock.types.v1 import signature_pb2
from sklearn.pipeline import Pipeline

from interlock_cli.demo.data import CATEGORICAL, LABELS, NUMERIC, Flights, Window
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


def build_signature(artifact: bytes) -> signature_pb2.Signature:
    """Describes the tensors of the exported model and the features that fill them."""
    inputs, outputs = onnx_tensor_specs(artifact)
    return signature_pb2.Signature(
        inputs=inputs,
        outputs=outputs,
        features=[*_text_features(), *_number_features()],
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


def build_baseline(flights: Flights, probabilities: npt.NDArray[np.float64], window: Window) -> baseline_pb2.Baseline:
    """Profiles the training flights and the probabilities, [N, 2], that the version gives for them."""
    texts = [profile_categories(name, flights.features[name]) for name in CATEGORICAL]
    numbers = [profile_numbers(name, flights.features[name]) for name in NUMERIC]
    return baseline_pb2.Baseline(
        row_count=len(flights),
        description=f"Flights from New York City, {window.first} to {window.last}",
        features=[*texts, *numbers],
        outputs=profile_probabilities(LABELS, probabilities),
    )


def build_golden_rows(model: Pipeline, flights: Flights) -> list[pb.GoldenRow]:
    """Picks training flights from the least to the most likely late, adds unknown texts, and asks the trained model."""
    probability = model.predict_proba(flights.features)[:, 1]
    known = flights.features.iloc[spread_positions(probability, SPREAD_GOLDEN_ROWS)]
    rows = pd.concat([known, _with_unknown_texts(known.iloc[[0, -1]])], ignore_index=True)
    expected = model.predict_proba(rows)
    outputs = {LABEL_OUTPUT: expected.argmax(axis=1), PROBABILITIES_OUTPUT: expected.astype(np.float32)}
    return golden_rows(model_inputs(rows), outputs, absolute_tolerance=TOLERANCE)


def _with_unknown_texts(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows.assign(**{name: "\N{AIRPLANE}"}) for name in CATEGORICAL])
