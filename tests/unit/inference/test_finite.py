"""Numbers that are none are found in every floating-point type, and named by tensor and index."""

import struct
from typing import Any, cast

import pytest

from services.inference.domain.finite import non_finite
from services.inference.domain.item import BatchKey, Item
from services.inference.domain.tensor import ITEM_SIZE, TensorSpec

# Largest finite number, smallest NaN, a negative NaN, both infinities: as bits.
BITS = {
    "FP16": (0x7BFF, 0x7C01, 0xFE00, 0x7C00, 0xFC00),
    "BF16": (0x7F7F, 0x7F81, 0xFFC0, 0x7F80, 0xFF80),
    "FP32": (0x7F7F_FFFF, 0x7F80_0001, 0xFFC0_0000, 0x7F80_0000, 0xFF80_0000),
    "FP64": (0x7FEF << 48 | (1 << 48) - 1, 0x7FF0 << 48 | 1, 0xFFF8 << 48, 0x7FF0 << 48, 0xFFF0 << 48),
}
CODES = {2: "H", 4: "I", 8: "Q"}


def found(inputs: list[tuple[TensorSpec, bytes]], rows: int) -> list[tuple[str, str]]:
    specs = [spec for spec, _ in inputs]
    key = BatchKey((0,), tuple(spec.trailing for spec in specs))
    item = Item(rows=rows, inputs=[data for _, data in inputs], key=key, deadline=0.0, sink=cast("Any", None))
    return [(violation.field, violation.description) for violation in non_finite(item, specs)]


@pytest.mark.parametrize("datatype", BITS)
def test_each_is_named(datatype: str) -> None:
    largest, *wrong = BITS[datatype]
    code = CODES[ITEM_SIZE[datatype]]
    spec = TensorSpec("x", datatype, (-1, 2))
    assert found([(spec, struct.pack(f"<4{code}", *[largest] * 4))], rows=2) == []
    for value, name in zip(wrong, ("NaN", "NaN", "infinity", "-infinity"), strict=True):
        data = struct.pack(f"<4{code}", largest, largest, value, wrong[0])
        assert found([(spec, data)], rows=2) == [("inputs.x", f"want finite numbers, got {name} at [1, 0]")]


def test_the_first_of_each_tensor_counts_and_other_types_have_none() -> None:
    inputs = [
        (TensorSpec("text", "BYTES", (-1, 1)), b"\1\0\0\0n"),
        (TensorSpec("n", "INT32", (-1,)), b"\xff\xff\xff\x7f"),
        (TensorSpec("a", "FP32", (-1, 2, 2)), struct.pack("<4f", 0, 1, 2, float("nan"))),
        (TensorSpec("b", "FP64", (-1,)), struct.pack("<d", float("-inf"))),
    ]
    assert found(inputs, rows=1) == [
        ("inputs.a", "want finite numbers, got NaN at [0, 1, 1]"),
        ("inputs.b", "want finite numbers, got -infinity at [0]"),
    ]
