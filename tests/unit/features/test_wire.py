"""Values as bytes, keys as Redis has them, values and keys that are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.features.convert.value import value_from_proto, value_to_proto
from services.features.domain.catalog import compile_view
from services.features.domain.definitions import Entity, Feature, FeatureType, FeatureView, PushSource, Value
from services.features.domain.online_key import KeySpace
from services.features.domain.ports import ValueType
from services.features.domain.value_check import WrongValue, canonical_key, checked
from services.features.domain.wire import decode, encode, tag_of

SCALARS = (
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
)
VALUES = st.one_of(st.none(), *SCALARS, *(st.lists(scalar).map(tuple) for scalar in SCALARS))
TEXT_KEY = Entity(id="tail", key_type=FeatureType.STRING)
INT_KEY = Entity(id="flight", key_type=FeatureType.INT64)


@given(VALUES)
def test_the_stored_form_is_the_contracts(value: Value) -> None:
    data = encode(value)
    assert data == value_to_proto(value).SerializeToString()
    again = decode(data)
    assert (again, type(again)) == (value, type(value))
    assert value_from_proto(FeatureValue.FromString(data)) == value


def test_a_type_is_told_by_the_first_byte() -> None:
    examples: dict[FeatureType, Value] = {
        FeatureType.DOUBLE: 0.5,
        FeatureType.INT64: 1,
        FeatureType.STRING: "a",
        FeatureType.BOOL: True,
    }
    for scalar, value in examples.items():
        assert encode(value)[0] == tag_of(scalar, is_list=False)
        assert encode((value,))[0] == tag_of(scalar, is_list=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"\x09\x00", b"\x1a\x05abc", b"\x7f\x00", b"\x2a\x02\x0a\x07", b"\x10\x80"])
def test_bytes_that_are_no_value_are_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"byte|begins"):
        decode(data)


@given(st.lists(st.tuples(*[st.text(":%23Aa", min_size=1)] * 2), min_size=2, unique=True))
def test_two_tuples_of_keys_never_share_a_redis_key(pairs: list[tuple[str, str]]) -> None:
    entities = {name: Entity(id=name, key_type=FeatureType.STRING) for name in ("a", "b")}
    view = compile_view(
        FeatureView(
            id="v", entities=("a", "b"), features=(Feature(name="f", type=FeatureType.BOOL),), source=PushSource()
        ),
        entities,
    )
    keys = KeySpace(view)
    made = {keys.of(pair) for pair in pairs}
    assert len(made) == len(pairs)
    assert all(key.startswith(keys.prefix) and key.count(b":") == 4 for key in made)
    assert {keys.of_row({"b": second, "a": first, "other": "x"}) for first, second in pairs} == made


@pytest.mark.parametrize(
    ("value", "wanted", "kept"),
    [
        (3, ValueType(FeatureType.DOUBLE), 3.0),
        (3.0, ValueType(FeatureType.INT64), 3),
        (None, ValueType(FeatureType.INT64, nullable=True), None),
        ((1, 2.5), ValueType(FeatureType.DOUBLE, is_list=True), (1.0, 2.5)),
        ((), ValueType(FeatureType.STRING, is_list=True), ()),
    ],
)
def test_a_value_is_kept_as_its_type_says(value: Any, wanted: ValueType, kept: Value) -> None:
    found = checked(value, wanted)
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("value", "wanted", "got"),
    [
        (float("nan"), ValueType(FeatureType.DOUBLE), "want a finite number, got the number nan"),
        (float("inf"), ValueType(FeatureType.DOUBLE, nullable=True), "want a finite number or null, got"),
        ("3", ValueType(FeatureType.DOUBLE), 'got the text "3"'),
        (True, ValueType(FeatureType.DOUBLE), "got true"),
        (2.5, ValueType(FeatureType.INT64), "got the number 2.5"),
        (1e300, ValueType(FeatureType.INT64), "want a whole number"),
        (1, ValueType(FeatureType.BOOL), "want true or false, got the number 1"),
        (None, ValueType(FeatureType.STRING), "want a text, got null"),
        (1.0, ValueType(FeatureType.DOUBLE, is_list=True), "want a list of DOUBLE values, got the number 1.0"),
        ((1.0, "a"), ValueType(FeatureType.DOUBLE, is_list=True), 'got the text "a"'),
        ((0,) * 100_001, ValueType(FeatureType.INT64, is_list=True), "want at most 100000 values, got 100001"),
        (object(), ValueType(FeatureType.INT64), "got nothing"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_came(value: Any, wanted: ValueType, got: str) -> None:
    with pytest.raises(WrongValue) as caught:
        checked(value, wanted)
    assert got in str(caught.value)


@pytest.mark.parametrize("key", ["", "x" * 513, "é" * 257])
def test_a_key_has_1_to_512_bytes(key: str) -> None:
    with pytest.raises(WrongValue, match="want a key of 1 to 512 bytes"):
        canonical_key(key, TEXT_KEY)


def test_a_whole_number_as_a_key_has_one_form() -> None:
    for key in ("0", "-1", "42", str(2**63 - 1), str(-(2**63))):
        assert canonical_key(key, INT_KEY) == key
    for key in ("01", "-0", "+1", "1.0", " 1", "1e3", "٣", str(2**63), "9" * 30, "B6"):
        with pytest.raises(WrongValue, match="want an INT64 key"):
            canonical_key(key, INT_KEY)
