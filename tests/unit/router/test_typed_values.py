"""Typed values to raw bytes and back, for every element type that has a JSON form."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.convert.typed_values import json_from_raw, raw_from_json
from services.router.domain.rejection import Reject
from services.router.domain.tensor import DATA_TYPES, RAW_ONLY, Kind, Tensor, bytes_offsets, pack_bytes, unpack_bytes

TYPED = sorted(set(DATA_TYPES) - RAW_ONLY)


def values_of(name: str) -> st.SearchStrategy[Any]:
    data_type = DATA_TYPES[name]
    if data_type.kind is Kind.BOOL:
        return st.booleans()
    if data_type.kind is Kind.WHOLE:
        return st.integers(int(data_type.low), int(data_type.high))
    if data_type.kind is Kind.BYTES:
        return st.text()
    return st.floats(width=32 if name == "FP32" else 64, allow_nan=False, allow_infinity=False)


def nest(flat: list[Any], shape: list[int]) -> list[Any]:
    if len(shape) == 1:
        return flat
    size = len(flat) // shape[0] if shape[0] else 0
    return [nest(flat[row * size : (row + 1) * size], shape[1:]) for row in range(shape[0])]


@pytest.mark.parametrize("name", TYPED)
@given(data=st.data())
def test_values_survive_raw_form_nested_or_flat(name: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    flat = data.draw(st.lists(values_of(name), min_size=math.prod(shape), max_size=math.prod(shape)))
    raw = raw_from_json(name, shape, flat)
    assert raw == raw_from_json(name, shape, nest(flat, shape))
    assert json_from_raw(Tensor("t", name, tuple(shape), raw)) == flat


@pytest.mark.parametrize("name", sorted(RAW_ONLY))
def test_sixteen_bit_floats_have_no_json_form(name: str) -> None:
    with pytest.raises(Reject, match="no typed or JSON form"):
        raw_from_json(name, [1], [1.0])
    with pytest.raises(Reject, match="no typed or JSON form"):
        json_from_raw(Tensor("t", name, (1,), b"\x00\x00"))


def test_numbers_that_are_not_finite_go_out_as_null() -> None:
    raw = raw_from_json("FP32", [1], [1.0])
    assert json_from_raw(Tensor("t", "FP32", (2,), raw + b"\x00\x00\xc0\x7f")) == [1.0, None]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INT8", 128),
        ("UINT8", -1),
        ("UINT64", 2**64),
        ("INT64", 2**63),
        ("FP32", 1e39),
        ("INT32", 1.0),
        ("BOOL", 1),
        ("BYTES", 5),
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(Reject, match="want"):
        raw_from_json(name, [1], [value])


@pytest.mark.parametrize("shape", [[-1], [2**40], [2**20, 2**20], [1] * 17, [2**31 - 1, 2**31 - 1, 2**31 - 1]])
def test_impossible_shapes_are_refused_before_anything_is_made(shape: list[int]) -> None:
    with pytest.raises(Reject, match="want"):
        raw_from_json("FP32", shape, [1.0])


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_bytes_elements_survive(elements: list[bytes]) -> None:
    assert unpack_bytes(pack_bytes(elements), len(elements)) == elements


@given(st.binary(max_size=64), st.integers(0, 20))
def test_random_bytes_are_elements_or_refused(data: bytes, count: int) -> None:
    try:
        offsets = bytes_offsets(data, count)
    except Reject:
        return
    assert pack_bytes(unpack_bytes(data, count)) == data
    assert offsets[-1] == len(data)


def test_bytes_that_are_no_text_have_no_json_form() -> None:
    with pytest.raises(Reject, match="binary form"):
        json_from_raw(Tensor("t", "BYTES", (1,), pack_bytes([b"\xff"])))
