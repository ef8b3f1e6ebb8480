"""Which signatures are sound, and what is said of those that are not."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from services.registry.domain.signature import (
    DataType,
    FeatureSpec,
    FeatureType,
    MissingPolicy,
    PredictionSpec,
    Signature,
    Task,
    TensorSpec,
    ViolationPolicy,
)
from services.registry.domain.signature_check import check_signature
from tests.unit.registry.builders import AGE, AMOUNT, CITY, PREDICTION, SOUND, TEXT, X, Y

NAN = math.nan


def wrong(signature: Signature) -> dict[str, str]:
    return {each.field: each.description for each in check_signature(signature, "s")}


def with_amount(**fields: object) -> Signature:
    return replace(SOUND, features=(replace(AMOUNT, **fields), AGE, CITY))  # type: ignore[arg-type]


def with_city(**fields: object) -> Signature:
    return replace(SOUND, features=(AMOUNT, AGE, replace(CITY, **fields)))  # type: ignore[arg-type]


def with_prediction(**fields: object) -> Signature:
    return replace(SOUND, prediction=replace(PREDICTION, **fields))  # type: ignore[arg-type]


def only(feature: FeatureSpec, data_type: DataType) -> Signature:
    return Signature(
        inputs=(TensorSpec("x", data_type, (-1, 1)),),
        outputs=(Y,),
        features=(replace(feature, tensor="x", column=0),),
        prediction=PREDICTION,
    )


SOUND_ONES = {
    "as built": SOUND,
    "without features": Signature(inputs=(TensorSpec("image", DataType.UINT8, (-1, 3, -1, -1)),), outputs=(Y,)),
    "nullable number": with_amount(nullable=True),
    "nullable text with a stand-in": with_city(nullable=True, default="none"),
    "limits and a default": with_amount(minimum=0.0, maximum=9.5, default=9.5, missing_policy=MissingPolicy.DEFAULT),
    "clipped": with_amount(minimum=0.0, violation_policy=ViolationPolicy.CLIP),
    "allowed values": with_city(allowed=("Berlin", "Paris"), default="Paris"),
    "allowed numbers": with_amount(allowed=(1, 2.5), minimum=1.0),
    "from a view": with_amount(source="customer.v2.amount", max_age=timedelta(hours=1)),
    "a whole number as a whole float": replace(SOUND, features=(AMOUNT, replace(AGE, default=3.0), CITY)),
    "a truth value in a whole-number column": only(
        FeatureSpec(name="b", type=FeatureType.BOOL, tensor=""), DataType.INT8
    ),
    "a truth value in its own type": only(FeatureSpec(name="b", type=FeatureType.BOOL, tensor=""), DataType.BOOL),
    "classes left open": replace(SOUND, outputs=(replace(Y, shape=(-1, -1)),)),
    "regression": replace(
        SOUND, outputs=(TensorSpec("y", DataType.FP64, (-1,)),), prediction=PredictionSpec(Task.REGRESSION, "y")
    ),
}


@pytest.mark.parametrize("name", SOUND_ONES)
def test_a_sound_signature_passes(name: str) -> None:
    assert wrong(SOUND_ONES[name]) == {}


UNSOUND: list[tuple[str, Callable[[], Signature], str, str]] = [
    ("no inputs", lambda: replace(SOUND, inputs=()), "s.inputs", "got 0"),
    ("no outputs", lambda: replace(SOUND, outputs=()), "s.outputs", "got 0"),
    ("too many tensors", lambda: replace(SOUND, outputs=(Y,) * 65), "s.outputs", "got 65"),
    ("nameless tensor", lambda: replace(SOUND, outputs=(replace(Y, name=""),)), "s.outputs[0].name", "got nothing"),
    ("control characters", lambda: replace(SOUND, outputs=(replace(Y, name="y\x1b"),)), "s.outputs[0].name", "control"),
    ("two of one name", lambda: replace(SOUND, outputs=(Y, Y)), "s.outputs[1].name", "again"),
    ("no type", lambda: replace(SOUND, outputs=(replace(Y, data_type=None),)), "s.outputs[0].data_type", "none of"),
    ("no shape", lambda: replace(SOUND, outputs=(replace(Y, shape=()),)), "s.outputs[0].shape", "got 0"),
    ("17 dimensions", lambda: replace(SOUND, outputs=(replace(Y, shape=(-1,) * 17),)), "s.outputs[0].shape", "got 17"),
    ("fixed batch", lambda: replace(SOUND, outputs=(replace(Y, shape=(1, 2)),)), "s.outputs[0].shape[0]", "got 1"),
    ("size 0", lambda: replace(SOUND, outputs=(replace(Y, shape=(-1, 0)),)), "s.outputs[0].shape[1]", "got 0"),
    ("size -2", lambda: replace(SOUND, outputs=(replace(Y, shape=(-1, -2)),)), "s.outputs[0].shape[1]", "got -2"),
    ("huge", lambda: replace(SOUND, outputs=(replace(Y, shape=(-1, 2**62)),)), "s.outputs[0].shape[1]", "got 46"),
    ("column twice", lambda: with_amount(column=1), "s.features", "2 features for column 1"),
    ("column missing", lambda: replace(SOUND, features=(AMOUNT, CITY)), "s.features", "got nothing for 1: 1"),
    ("column outside", lambda: with_amount(column=2), "s.features[0].column", "want 0 to 1, got 2"),
    ("column negative", lambda: with_amount(column=-1), "s.features[0].column", "got -1"),
    ("unknown tensor", lambda: with_amount(tensor="z"), "s.features[0].tensor", 'got "z"'),
    (
        "input of rank 3",
        lambda: replace(SOUND, inputs=(replace(X, shape=(-1, 2, 2)), TEXT)),
        "s.features[0].tensor",
        "[-1, 2, 2]",
    ),
    ("open columns", lambda: replace(SOUND, inputs=(replace(X, shape=(-1, -1)), TEXT)), "s.features", '"x" is none'),
    (
        "a billion columns",
        lambda: replace(SOUND, inputs=(replace(X, shape=(-1, 10**9)), TEXT)),
        "s.features",
        "999999998: 2, 3,",
    ),
    ("bad name", lambda: with_amount(name="a-b"), "s.features[0].name", 'got "a-b"'),
    ("no name", lambda: with_amount(name=""), "s.features[0].name", 'got ""'),
    ("same name", lambda: with_amount(name="age"), "s.features[1].name", "again"),
    ("no feature type", lambda: with_amount(type=None), "s.features[0].type", "none of them"),
    (
        "text into numbers",
        lambda: with_amount(type=FeatureType.STRING),
        "s.features[0].tensor",
        "takes STRING, got FP32",
    ),
    (
        "number into texts",
        lambda: with_city(type=FeatureType.DOUBLE),
        "s.features[2].tensor",
        "takes DOUBLE, got BYTES",
    ),
    ("fraction into whole", lambda: only(AMOUNT, DataType.INT32), "s.features[0].tensor", "takes DOUBLE, got INT32"),
    ("number into truth", lambda: only(AGE, DataType.BOOL), "s.features[0].tensor", "takes INT64, got BOOL"),
    ("null without NaN", lambda: with_city(nullable=True), "s.features[2].default_value", "BYTES has no NaN"),
    (
        "null of a whole number",
        lambda: only(replace(AGE, nullable=True), DataType.INT64),
        "s.features[0].default_value",
        "INT64 has no NaN",
    ),
    (
        "no stand-in",
        lambda: with_amount(missing_policy=MissingPolicy.DEFAULT),
        "s.features[0].default_value",
        "missing_policy",
    ),
    ("default of another type", lambda: with_amount(default="1"), "s.features[0].default_value", 'got "1"'),
    ("truth as a number", lambda: with_amount(default=True), "s.features[0].default_value", "got True"),
    (
        "number as truth",
        lambda: only(FeatureSpec(name="b", type=FeatureType.BOOL, tensor="", default=1), DataType.BOOL),
        "s.features[0].default_value",
        "got 1",
    ),
    (
        "fraction as whole",
        lambda: replace(SOUND, features=(AMOUNT, replace(AGE, default=1.5), CITY)),
        "s.features[1].default_value",
        "got 1.5",
    ),
    (
        "default that is a list",
        lambda: with_amount(illegal_default=True),
        "s.features[0].default_value",
        "a single DOUBLE",
    ),
    ("default that is NaN", lambda: with_amount(default=NAN), "s.features[0].default_value", "finite"),
    (
        "default too small",
        lambda: with_amount(default=-1.0, minimum=0.0),
        "s.features[0].default_value",
        "from 0 to inf, got -1",
    ),
    (
        "default not allowed",
        lambda: with_city(default="Rome", allowed=("Paris",)),
        "s.features[2].default_value",
        "allowed values",
    ),
    (
        "default too large for the column",
        lambda: only(replace(AGE, default=300), DataType.UINT8),
        "s.features[0].default_value",
        "fits into UINT8",
    ),
    (
        "default too large for half",
        lambda: only(replace(AMOUNT, default=70_000.0), DataType.FP16),
        "s.features[0].default_value",
        "fits into FP16",
    ),
    (
        "allowed value outside",
        lambda: with_amount(allowed=(1.0, 9.0), maximum=5.0),
        "s.features[0].allowed_values[1]",
        "got 9",
    ),
    ("allowed value of another type", lambda: with_city(allowed=("a", 1)), "s.features[2].allowed_values[1]", "got 1"),
    ("allowed null", lambda: with_city(allowed=(None,)), "s.features[2].allowed_values[0]", "null"),
    ("allowed twice", lambda: with_city(allowed=("a", "a")), "s.features[2].allowed_values", "once"),
    (
        "too many allowed",
        lambda: with_amount(allowed=tuple(range(10_001))),
        "s.features[0].allowed_values",
        "got 10001",
    ),
    ("limit of a text", lambda: with_city(minimum=1.0), "s.features[2].minimum", "got 1"),
    ("limit that is NaN", lambda: with_amount(maximum=NAN), "s.features[0].maximum", "finite"),
    ("limits crossed", lambda: with_amount(minimum=2.0, maximum=1.0), "s.features[0].minimum", "at most the maximum 1"),
    (
        "clip to nothing",
        lambda: with_amount(violation_policy=ViolationPolicy.CLIP),
        "s.features[0].violation_policy",
        "neither",
    ),
    ("unknown policies", lambda: with_amount(violation_policy=None), "s.features[0].violation_policy", "none of"),
    ("unknown missing policy", lambda: with_amount(missing_policy=None), "s.features[0].missing_policy", "none of"),
    ("bad source", lambda: with_amount(source="customer"), "s.features[0].source", 'got "customer"'),
    ("traversing source", lambda: with_amount(source="a..b"), "s.features[0].source", 'got "a..b"'),
    (
        "age of a request feature",
        lambda: with_amount(max_age=timedelta(1)),
        "s.features[0].max_age",
        "with the request",
    ),
    ("no age", lambda: with_amount(source="a.b", max_age=timedelta()), "s.features[0].max_age", "got 0 s"),
    ("long description", lambda: with_amount(description="d" * 1_001), "s.features[0].description", "got 1001"),
    ("no prediction", lambda: replace(SOUND, prediction=None), "s.prediction", "got nothing"),
    ("no task", lambda: with_prediction(task=None), "s.prediction.task", "neither"),
    ("one label", lambda: with_prediction(labels=("a",), threshold=None), "s.prediction.labels", "got 1"),
    ("label twice", lambda: with_prediction(labels=("a", "a")), "s.prediction.labels", "2 times"),
    ("empty label", lambda: with_prediction(labels=("a", "")), "s.prediction.labels[1]", "got nothing"),
    (
        "labels of a regression",
        lambda: with_prediction(task=Task.REGRESSION, threshold=None),
        "s.prediction.labels",
        "got 2",
    ),
    ("threshold 0", lambda: with_prediction(threshold=0.0), "s.prediction.threshold", "got 0"),
    ("threshold NaN", lambda: with_prediction(threshold=NAN), "s.prediction.threshold", "got nan"),
    ("threshold of three", lambda: with_prediction(labels=("a", "b", "c")), "s.prediction.threshold", "two labels"),
    ("unknown output", lambda: with_prediction(tensor="z"), "s.prediction.tensor", 'got "z"'),
    (
        "labels do not fit",
        lambda: replace(SOUND, outputs=(replace(Y, shape=(-1, 3)),)),
        "s.prediction.tensor",
        "[-1, 2]",
    ),
    (
        "output of texts",
        lambda: replace(SOUND, outputs=(replace(Y, data_type=DataType.BYTES),)),
        "s.prediction.tensor",
        "BYTES",
    ),
]


@pytest.mark.parametrize(
    ("signature", "field", "said"), [case[1:] for case in UNSOUND], ids=[case[0] for case in UNSOUND]
)
def test_an_unsound_signature_is_told_what_is_wrong(signature: Callable[[], Signature], field: str, said: str) -> None:
    found = wrong(signature())
    assert field in found
    assert "want" in found[field]
    assert said in found[field]


def test_everything_is_said_at_once() -> None:
    signature = replace(with_amount(tensor="z", minimum=NAN), prediction=None, outputs=(replace(Y, shape=(3,)),))
    assert set(wrong(signature)) == {
        "s.features",
        "s.features[0].tensor",
        "s.features[0].minimum",
        "s.prediction",
        "s.outputs[0].shape[0]",
    }
