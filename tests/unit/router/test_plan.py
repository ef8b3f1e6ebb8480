"""The plan: rows to raw bytes and back for any value, and everything that is wrong with a row at once."""

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.failure import InvalidFeatures
from services.router.domain.feature import UnsupportedSignature
from services.router.domain.plan import Plan, compile_plan
from services.router.domain.signature import (
    FeatureSpec,
    FeatureType,
    MissingPolicy,
    PredictionSpec,
    Signature,
    TensorSpec,
    ViolationPolicy,
)
from services.router.domain.tensor import DATA_TYPES, unpack_bytes

OUTPUT = TensorSpec("y", "FP32", (-1, 2))
PREDICTION = PredictionSpec("y", ("no", "yes"))
FP32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def plan_of(*features: FeatureSpec, data_type: str = "FP32") -> Plan:
    tensor = TensorSpec("x", data_type, (-1, len(features)))
    return compile_plan(Signature((tensor,), (OUTPUT,), features, PREDICTION))


def feature(name: str = "f", column: int = 0, kind: FeatureType = FeatureType.DOUBLE, **rest: Any) -> FeatureSpec:
    return FeatureSpec(name=name, type=kind, tensor="x", column=column, **rest)


def refusal(plan: Plan, features: Mapping[str, object]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidFeatures) as caught:
        plan.encode(features)
    return [(found.field, found.description) for found in caught.value.violations]


@given(st.lists(FP32, min_size=1, max_size=30))
def test_numbers_come_back_from_the_row_as_they_went_in(values: list[float]) -> None:
    plan = plan_of(*(feature(f"f{index}", index) for index in range(len(values))))
    row = plan.encode({f"f{index}": value for index, value in enumerate(values)})
    assert struct.unpack(f"<{len(values)}f", row.chunks[0]) == tuple(values)


@given(st.lists(st.text(), min_size=1, max_size=10))
def test_texts_come_back_from_the_row_as_they_went_in(values: list[str]) -> None:
    specs = [feature(f"f{index}", index, FeatureType.STRING) for index in range(len(values))]
    row = plan_of(*specs, data_type="BYTES").encode({f"f{index}": value for index, value in enumerate(values)})
    assert [found.decode() for found in unpack_bytes(row.chunks[0], len(values))] == values


@pytest.mark.parametrize("name", [name for name, found in DATA_TYPES.items() if found.kind.name == "WHOLE"])
@given(data=st.data())
def test_whole_numbers_fill_their_type_to_its_edges_and_not_beyond(name: str, data: st.DataObject) -> None:
    data_type = DATA_TYPES[name]
    low, high = int(data_type.low), int(data_type.high)
    plan = plan_of(feature(kind=FeatureType.INT64), data_type=name)
    for value in (low, high, data.draw(st.integers(low, high))):
        assert struct.unpack(f"<{data_type.code}", plan.encode({"f": value}).chunks[0]) == (value,)
    for value in (low - 1, high + 1):
        assert refusal(plan, {"f": value})[0][0] == "features.f"


def test_truth_values_fit_bool_whole_and_floating_columns() -> None:
    for name, code in (("BOOL", "?"), ("INT8", "b"), ("FP32", "f")):
        plan = plan_of(feature(kind=FeatureType.BOOL), data_type=name)
        assert struct.unpack(f"<{code}", plan.encode({"f": True}).chunks[0]) == (1,)


def test_half_precision_types_are_packed() -> None:
    assert struct.unpack("<e", plan_of(feature(), data_type="FP16").encode({"f": 1.5}).chunks[0]) == (1.5,)
    assert plan_of(feature(), data_type="BF16").encode({"f": 1.5}).chunks[0] == struct.pack("<f", 1.5)[2:]


def test_features_stand_in_the_column_that_the_signature_says() -> None:
    plan = plan_of(feature("late", 1), feature("early", 0))
    assert struct.unpack("<2f", plan.encode({"late": 2.0, "early": 1.0}).chunks[0]) == (1.0, 2.0)


def test_rows_join_along_the_batch() -> None:
    plan = plan_of(feature())
    (tensor,) = plan.tensors([plan.encode({"f": float(index)}) for index in range(3)])
    assert (tensor.shape, struct.unpack("<3f", tensor.data)) == ((3, 1), (0.0, 1.0, 2.0))


BAD_VALUES = [
    (FeatureType.DOUBLE, "1", 'want a number, got the text "1"'),
    (FeatureType.DOUBLE, True, "want a number, got true"),
    (FeatureType.DOUBLE, None, "want a number, got null"),
    (FeatureType.DOUBLE, math.nan, "want a finite number, got nan"),
    (FeatureType.DOUBLE, math.inf, "want a finite number, got inf"),
    (FeatureType.DOUBLE, 1e39, "want a number that fits into FP32, got 1e+39"),
    (FeatureType.DOUBLE, 10**400, "want a number that fits into FP32, got a number of 1329 bits"),
    (FeatureType.DOUBLE, [1.0], "want a number, got a list of 1 values"),
    (FeatureType.DOUBLE, {}, "want a number, got an object"),
    (FeatureType.INT64, 1.5, "want a whole number, got 1.5"),
    (FeatureType.INT64, math.nan, "want a whole number, got nan"),
    (FeatureType.INT64, "a\nb", 'want a whole number, got the text "a\\nb"'),
    (FeatureType.BOOL, 1, "want a truth value, got 1"),
    (FeatureType.BOOL, "true", 'want a truth value, got the text "true"'),
]


@pytest.mark.parametrize(("kind", "value", "message"), BAD_VALUES)
def test_a_bad_value_is_refused_with_want_and_got(kind: FeatureType, value: object, message: str) -> None:
    assert refusal(plan_of(feature(kind=kind)), {"f": value}) == [("features.f", message)]


def test_a_bad_text_is_refused() -> None:
    plan = plan_of(feature(kind=FeatureType.STRING), data_type="BYTES")
    assert refusal(plan, {"f": 5}) == [("features.f", "want a text, got 5")]
    assert refusal(plan, {"f": b"5"})[0][1].startswith("want a text, got")


def test_a_whole_number_may_come_as_a_float_without_fraction() -> None:
    assert struct.unpack("<f", plan_of(feature(kind=FeatureType.INT64)).encode({"f": 5.0}).chunks[0]) == (5.0,)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    plan = plan_of(*(feature(name, index) for index, name in enumerate(("alpha", "beta", "gamma"))))
    found = refusal(plan, {"alpha": "x", "betta": 1, "zzz": 2})
    assert found == [
        ("features.alpha", 'want a number, got the text "x"'),
        ("features.beta", "want a number, got nothing: the feature is required"),
        ("features.gamma", "want a number, got nothing: the feature is required"),
        ("features.betta", 'want a feature of the signature, got an unknown name; did you mean "beta"?'),
        ("features.zzz", "want a feature of the signature, got an unknown name"),
    ]


def test_thousands_of_unknown_names_are_cut_and_quick() -> None:
    found = refusal(plan_of(feature()), {"f": 1.0} | {f"f{index}": 1.0 for index in range(100_000)})
    assert len(found) == 200


@pytest.mark.parametrize(
    ("policy", "value", "used", "flagged"),
    [
        (ViolationPolicy.FLAG, 11.5, 11.5, ("f",)),
        (ViolationPolicy.CLIP, 11.5, 10.0, ("f",)),
        (ViolationPolicy.CLIP, -3, 0.0, ("f",)),
        (ViolationPolicy.CLIP, 10, 10.0, ()),
        (ViolationPolicy.REFUSE, 10.0, 10.0, ()),
    ],
)
def test_limits_refuse_flag_or_clip(policy: ViolationPolicy, value: float, used: float, flagged: tuple[str]) -> None:
    row = plan_of(feature(minimum=0, maximum=10, policy=policy)).encode({"f": value})
    assert (struct.unpack("<f", row.chunks[0]), row.flagged) == ((used,), flagged)


def test_refused_limits_are_named() -> None:
    assert refusal(plan_of(feature(minimum=0, maximum=10)), {"f": 10.5})[0][1] == "want a number from 0 to 10, got 10.5"
    assert refusal(plan_of(feature(minimum=0)), {"f": -1})[0][1] == "want a number of at least 0, got -1"
    assert refusal(plan_of(feature(maximum=0)), {"f": 1})[0][1] == "want a number of at most 0, got 1"


def test_a_clipped_whole_number_stays_whole_and_inside() -> None:
    spec = feature(kind=FeatureType.INT64, minimum=0.5, maximum=9.5, policy=ViolationPolicy.CLIP)
    plan = plan_of(spec, data_type="INT32")
    assert struct.unpack("<i", plan.encode({"f": 100}).chunks[0]) == (9,)
    assert struct.unpack("<i", plan.encode({"f": -5}).chunks[0]) == (1,)


def test_a_flagged_value_must_still_fit_the_tensor() -> None:
    plan = plan_of(feature(kind=FeatureType.INT64, maximum=10, policy=ViolationPolicy.FLAG), data_type="INT8")
    assert struct.unpack("<b", plan.encode({"f": 100}).chunks[0]) == (100,)
    assert refusal(plan, {"f": 200})[0][1] == "want a number that fits into INT8, got 200"


def test_allowed_values_are_the_only_ones() -> None:
    plan = plan_of(feature(kind=FeatureType.STRING, allowed=("a", "b")), data_type="BYTES")
    assert plan.encode({"f": "a"}).flagged == ()
    assert refusal(plan, {"f": "c"})[0][1] == 'want one of "a", "b", got the text "c"'
    clipping = plan_of(feature(allowed=(1.0, 2.0), policy=ViolationPolicy.CLIP))
    assert "want one of 1.0, 2.0" in refusal(clipping, {"f": 3})[0][1]


def test_null_becomes_nan_or_the_default() -> None:
    assert math.isnan(struct.unpack("<f", plan_of(feature(nullable=True)).encode({"f": None}).chunks[0])[0])
    spec = feature(kind=FeatureType.INT64, nullable=True, default=-1)
    assert struct.unpack("<i", plan_of(spec, data_type="INT32").encode({"f": None}).chunks[0]) == (-1,)
    assert refusal(plan_of(feature()), {"f": None})[0][1] == "want a number, got null"


def test_a_missing_value_takes_the_default_only_where_the_policy_says_so() -> None:
    row = plan_of(feature(default=4.0, missing=MissingPolicy.DEFAULT)).encode({})
    assert (struct.unpack("<f", row.chunks[0]), row.defaulted) == ((4.0,), True)
    assert "required" in refusal(plan_of(feature(default=4.0)), {})[0][1]


UNSUPPORTED = [
    (feature(kind=FeatureType.STRING), "FP32"),
    (feature(kind=FeatureType.DOUBLE), "INT32"),
    (feature(kind=FeatureType.DOUBLE), "BYTES"),
    (feature(default="x", missing=MissingPolicy.DEFAULT), "FP32"),
    (feature(column=1), "FP32"),
]


@pytest.mark.parametrize(("spec", "data_type"), UNSUPPORTED, ids=range(len(UNSUPPORTED)))
def test_a_signature_that_no_row_can_be_made_for_is_refused_once(spec: FeatureSpec, data_type: str) -> None:
    with pytest.raises(UnsupportedSignature):
        plan_of(spec, data_type=data_type)


def test_a_signature_without_features_has_no_plan() -> None:
    with pytest.raises(UnsupportedSignature, match="Open Inference Protocol"):
        compile_plan(Signature((TensorSpec("x", "FP32", (-1, 3)),), (OUTPUT,)))


def test_a_prediction_of_an_output_that_is_not_there_has_no_plan() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 1)),), (OUTPUT,), (feature(),), PredictionSpec("z"))
    with pytest.raises(UnsupportedSignature):
        compile_plan(signature)
    assert isinstance(compile_plan(replace(signature, prediction=PREDICTION)), Plan)
