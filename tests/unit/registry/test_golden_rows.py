"""Golden rows must fit the signature, byte by byte."""

import math
import struct
from dataclasses import replace

import pytest

from services.registry.domain.golden import GOLDEN_BYTES_LIMIT, GoldenRow, Tensor, check_golden_rows
from services.registry.domain.signature import DataType, Signature, TensorSpec
from tests.unit.registry.builders import GOLDEN, SOUND, texts

X, T = GOLDEN.inputs
(Y,) = GOLDEN.outputs


def wrong(*rows: GoldenRow, signature: Signature = SOUND) -> dict[str, str]:
    return {each.field: each.description for each in check_golden_rows(rows, signature, "g")}


def with_x(**fields: object) -> GoldenRow:
    return replace(GOLDEN, inputs=(replace(X, **fields), T))  # type: ignore[arg-type]


def with_text(**fields: object) -> GoldenRow:
    return replace(GOLDEN, inputs=(X, replace(T, **fields)))  # type: ignore[arg-type]


def test_rows_that_fit_pass() -> None:
    batch = GoldenRow(
        inputs=(
            replace(X, shape=(2, 2), data=struct.pack("<4f", 1, 2, math.nan, 4)),
            replace(T, shape=(2, 1), data=texts(b"", bytes(300))),
        ),
        outputs=(replace(Y, shape=(2, 2), data=bytes(16)),),
    )
    assert wrong(*[GOLDEN] * 63, batch) == {}


@pytest.mark.parametrize(
    ("row", "field", "said"),
    [
        (replace(GOLDEN, inputs=(X,)), "g[0].inputs", 'got nothing for "t"'),
        (replace(GOLDEN, inputs=(X, T, T)), "g[0].inputs[2].name", "again"),
        (with_x(name="z"), "g[0].inputs[0].name", 'got "z"'),
        (with_x(data_type=DataType.FP64), "g[0].inputs[0].data_type", "want FP32, got FP64"),
        (with_x(data_type=None), "g[0].inputs[0].data_type", "want FP32, got none"),
        (with_x(shape=(1, 3)), "g[0].inputs[0].shape", "want [-1, 2], got [1, 3]"),
        (with_x(shape=(2,)), "g[0].inputs[0].shape", "got [2]"),
        (with_x(shape=(-1, 2)), "g[0].inputs[0].shape", "got [-1, 2]"),
        (with_x(shape=(2, 2)), "g[0].inputs", "as many rows"),
        (with_x(data=bytes(7)), "g[0].inputs[0].data", "want 8 bytes for 2 elements, got 7"),
        (with_x(shape=(2**40, 2)), "g[0].inputs[0].data", f"want {2**43} bytes"),
        (with_text(data=b"\x01"), "g[0].inputs[1].data", "want at least 4 bytes for 1 texts, got 1"),
        (with_text(data=texts(b"a") + b"b"), "g[0].inputs[1].data", "lengths for 5"),
        (with_text(data=struct.pack("<I", 2**32 - 1)), "g[0].inputs[1].data", "lengths for 4294967299"),
        (with_text(shape=(2**40, 1)), "g[0].inputs[1].data", f"want at least {2**42} bytes"),
        (replace(GOLDEN, outputs=()), "g[0].outputs", "got none"),
        (replace(GOLDEN, outputs=(Y, Y)), "g[0].outputs[1].name", "again"),
        (replace(GOLDEN, absolute_tolerance=-1.0), "g[0].absolute_tolerance", "got -1"),
        (replace(GOLDEN, relative_tolerance=math.nan), "g[0].relative_tolerance", "got nan"),
    ],
)
def test_a_row_that_does_not_fit_is_told_why(row: GoldenRow, field: str, said: str) -> None:
    found = wrong(row)
    assert said in found[field]


def test_truth_values_are_one_byte_0_or_1() -> None:
    signature = Signature(inputs=(TensorSpec("b", DataType.BOOL, (-1, 3)),), outputs=SOUND.outputs)
    row = GoldenRow(inputs=(Tensor("b", DataType.BOOL, (1, 3), b"\x00\x01\x01"),), outputs=(Y,))
    assert wrong(row, signature=signature) == {}
    bad = replace(row, inputs=(replace(row.inputs[0], data=b"\x00\x02\x01"),))
    assert "0 or 1" in wrong(bad, signature=signature)["g[0].inputs[0].data"]


def test_numbers_and_sizes_are_capped() -> None:
    assert "got 65" in wrong(*[GOLDEN] * 65)["g"]
    assert (
        f"got {GOLDEN_BYTES_LIMIT + 1}" in wrong(GoldenRow((replace(X, data=bytes(GOLDEN_BYTES_LIMIT + 1)),), ()))["g"]
    )
    rows = 65
    many = GoldenRow(
        inputs=(replace(X, shape=(rows, 2), data=bytes(8 * rows)), replace(T, shape=(rows, 1), data=bytes(4 * rows))),
        outputs=(replace(Y, shape=(rows, 2), data=bytes(8 * rows)),),
    )
    assert "got 65" in wrong(many)["g[0].inputs"]
    none = GoldenRow(
        inputs=(replace(X, shape=(0, 2), data=b""), replace(T, shape=(0, 1), data=b"")),
        outputs=(replace(Y, shape=(0, 2), data=b""),),
    )
    assert "got 0" in wrong(none)["g[0].inputs"]
