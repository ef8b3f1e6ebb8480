"""Numpy arrays as the contract's tensors."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from interlock.types.v1 import tensor_pb2

from interlock_sdk.tensors import tensor_from_proto, tensor_to_proto


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"],
)
def test_numbers_come_back_as_they_went(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    got = tensor_from_proto(tensor_to_proto("x", array))
    assert got.dtype == array.dtype
    assert np.array_equal(got, array)


def test_numbers_are_little_endian_and_row_major() -> None:
    array = np.asfortranarray(np.array([[1, 2], [3, 4]], dtype=">i2"))
    tensor = tensor_to_proto("x", array)
    assert tensor.data == b"\x01\x00\x02\x00\x03\x00\x04\x00"
    assert list(tensor.shape) == [2, 2]


def test_texts_carry_their_length_in_bytes() -> None:
    tensor = tensor_to_proto("x", np.array([["é", b"\x00"]], dtype=object))
    assert tensor.data_type == tensor_pb2.DATA_TYPE_BYTES
    assert tensor.data == b"\x02\x00\x00\x00\xc3\xa9\x01\x00\x00\x00\x00"


@pytest.mark.parametrize(
    "array", [np.array(["a", ""]), np.array([b"a", b""], dtype=object), np.empty((0, 3), dtype=object)]
)
def test_texts_come_back_as_bytes(array: npt.NDArray[Any]) -> None:
    got = tensor_from_proto(tensor_to_proto("x", array))
    assert got.shape == array.shape
    assert got.tolist() == [text.encode() if isinstance(text, str) else text for text in array.tolist()]


@pytest.mark.parametrize(
    "array", [np.array([1 + 2j]), np.array(["2013"], dtype="datetime64[Y]"), np.array([{}], dtype=object)]
)
def test_other_elements_are_refused(array: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="want"):
        tensor_to_proto("x", array)


@pytest.mark.parametrize("data", [b"\x01\x00", b"\x05\x00\x00\x00ab"])
def test_cut_off_texts_are_refused(data: bytes) -> None:
    tensor = tensor_pb2.Tensor(name="x", data_type=tensor_pb2.DATA_TYPE_BYTES, shape=[1], data=data)
    with pytest.raises(ValueError, match="data ends inside"):
        tensor_from_proto(tensor)


def test_data_that_does_not_fill_the_shape_is_refused() -> None:
    tensor = tensor_pb2.Tensor(name="x", data_type=tensor_pb2.DATA_TYPE_FP32, shape=[2], data=b"\x00" * 4)
    with pytest.raises(ValueError, match="reshape"):
        tensor_from_proto(tensor)


def test_a_type_that_numpy_does_not_know_is_refused() -> None:
    tensor = tensor_pb2.Tensor(name="x", data_type=tensor_pb2.DATA_TYPE_BF16, shape=[1], data=b"\x00\x00")
    with pytest.raises(ValueError, match="no numpy type"):
        tensor_from_proto(tensor)
