"""Strict JSON: duplicates wherever they are, unknown fields, and no guessing at types."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.json_body import Fields, InvalidJson, decode_object

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_any_object_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    assert decode_object(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=4), st.data())
def test_a_field_named_twice_is_refused_wherever_it_stands(value: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(value)))
    text = json.dumps(value)[:-1] + f", {json.dumps(name)}: 1}}"
    for body in (text, f'{{"outer": {text}}}', f'{{"outer": [1, {text}]}}'):
        with pytest.raises(InvalidJson):
            decode_object(body.encode())


@pytest.mark.parametrize("depth", [5_000, 200_000])
def test_deep_nesting_is_refused_at_once(depth: int) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidJson, match="nested too deeply"):
        decode_object(b'{"a":' * depth + b"1" + b"}" * depth)
    assert time.perf_counter() - started < 2


def test_any_depth_is_read_or_refused_and_never_a_crash() -> None:
    for depth in range(50, 1_200, 50):
        with contextlib.suppress(InvalidJson):
            decode_object(b'{"a":' * depth + b"1" + b"}" * depth)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"n": True}, "want a whole number, got true"),
        ({"n": 1.5}, "want a whole number, got 1.5"),
        ({"b": 1}, "want true or false, got 1"),
        ({"t": ["x"]}, "want a text, got a list of 1 values"),
        ({"o": "x"}, 'want an object, got the text "x"'),
        ({"i": {}}, "want a list, got an object"),
        ({"tt": "x"}, 'want a field of the contract, got an unknown one; did you mean "t"?'),
    ],
)
def test_wrong_types_and_names_are_said(value: dict[str, Any], message: str) -> None:
    fields = Fields(value, ("n", "b", "t", "o", "i"), "body")
    fields.whole("n")
    fields.flag("b")
    fields.text("t")
    fields.members("o")
    fields.items("i")
    with pytest.raises(InvalidJson) as caught:
        fields.check()
    (violation,) = caught.value.violations
    assert violation.field.startswith("body.")
    assert violation.description == message


def test_absent_and_null_are_the_default() -> None:
    fields = Fields({"t": None}, ("t", "n", "b", "o", "i"))
    assert (fields.text("t"), fields.whole("n"), fields.flag("b"), fields.members("o"), fields.items("i")) == (
        "", 0, False, {}, [],
    )  # fmt: skip
    fields.check()


def test_a_flood_of_unknown_fields_is_cut() -> None:
    fields = Fields({f"x{index}": 1 for index in range(100_000)}, ("model",))
    assert len(fields.violations) == 50
