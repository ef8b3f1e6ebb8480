"""Numbers that are none, NaN and the infinities, in the tensors of a request: refused where the version's policy says so."""

from collections.abc import Sequence
from typing import Final

from services.common.errors import Violation
from services.inference.domain.item import Item
from services.inference.domain.tensor import ITEM_SIZE, TensorSpec

# The bits of the exponent. All of them set: no finite number, and with no other bit beside the sign an infinity.
_EXPONENT: Final = {"FP16": 0x7C00, "BF16": 0x7F80, "FP32": 0x7F80_0000, "FP64": 0x7FF0_0000_0000_0000}


def non_finite(item: Item, inputs: Sequence[TensorSpec]) -> list[Violation]:
    """Return the first number of each input that is not finite, with its index in the tensor; nothing where all are."""
    found = []
    for spec, trailing, data in zip(inputs, item.key.trailing, item.inputs, strict=True):
        if spec.datatype in _EXPONENT:
            text = _first(spec.datatype, (item.rows, *trailing), data)
            if text:
                found.append(Violation(f"inputs.{spec.name}", f"want finite numbers, got {text}"))
    return found


def _first(datatype: str, shape: tuple[int, ...], data: bytes) -> str:
    # A sixth of a second of every start, and few versions refuse them.
    import numpy as np  # noqa: PLC0415

    exponent = _EXPONENT[datatype]
    bits = np.frombuffer(data, f"<u{ITEM_SIZE[datatype]}")
    wrong = (bits & exponent) == exponent
    if not wrong.any():
        return ""
    position = int(wrong.argmax())
    sign = 1 << 8 * ITEM_SIZE[datatype] - 1
    names = {exponent: "infinity", exponent | sign: "-infinity"}
    index = [int(each) for each in np.unravel_index(position, shape)]
    return f"{names.get(int(bits[position]), 'NaN')} at {index}"
