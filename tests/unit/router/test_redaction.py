"""Redaction: the named columns are emptied, whatever their type, and nothing else changes."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.reading import unpack_numbers
from services.router.domain.redaction import redacted
from services.router.domain.signature import FeatureSpec, FeatureType, Signature, TensorSpec
from services.router.domain.tensor import DATA_TYPES, Kind, Tensor, pack_bytes, unpack_bytes


def signature(data_type: str, columns: int) -> Signature:
    features = tuple(
        FeatureSpec(name=f"f{index}", type=FeatureType.DOUBLE, tensor="x", column=index) for index in range(columns)
    )
    return Signature((TensorSpec("x", data_type, (-1, columns)),), (), features)


@pytest.mark.parametrize("data_type", [name for name, found in DATA_TYPES.items() if found.kind is not Kind.BYTES])
@pytest.mark.parametrize(("rows", "columns", "hidden"), [(1, 1, {0}), (1, 3, {1}), (3, 1, {0}), (3, 4, {0, 2, 3})])
def test_numbers_become_nan_or_zero(data_type: str, rows: int, columns: int, hidden: set[int]) -> None:
    code, size = DATA_TYPES[data_type].code, DATA_TYPES[data_type].size_bytes
    raw = struct.pack(f"<{rows * columns}{code}", *([1] * rows * columns)) if code else b"\x80\x3f" * rows * columns
    names = {f"f{column}" for column in hidden} | {"unknown"}
    (tensor,) = redacted(signature(data_type, columns), names, [Tensor("x", data_type, (rows, columns), raw)])
    assert len(tensor.data) == rows * columns * size
    for place, value in enumerate(unpack_numbers(code, rows * columns, tensor.data)):
        if place % columns not in hidden:
            assert value == 1
        elif DATA_TYPES[data_type].kind is Kind.FLOAT:
            assert math.isnan(value)
        else:
            assert value == 0


@given(texts=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_texts_become_empty(texts: list[tuple[str, str]]) -> None:
    raw = pack_bytes([text.encode() for pair in texts for text in pair])
    (tensor,) = redacted(signature("BYTES", 2), {"f0"}, [Tensor("x", "BYTES", (len(texts), 2), raw)])
    left = unpack_bytes(tensor.data, 2 * len(texts))
    assert [text.decode() for text in left[1::2]] == [second for _, second in texts]
    assert set(left[::2]) == {b""}


def test_an_input_without_features_is_named_itself() -> None:
    spec = Signature((TensorSpec("image", "UINT8", (-1, 2, 2)), TensorSpec("mask", "UINT8", (-1, 1))), ())
    image = Tensor("image", "UINT8", (2, 2, 2), bytes(range(1, 9)))
    mask = Tensor("mask", "UINT8", (2, 1), b"\x01\x02")
    assert redacted(spec, {"image"}, [image, mask]) == (Tensor("image", "UINT8", (2, 2, 2), bytes(8)), mask)
