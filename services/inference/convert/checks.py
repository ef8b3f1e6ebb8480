"""Checks of what came against what the signature wants, in plain integers and before anything is touched."""

from collections.abc import Sequence
from typing import Final

from services.common.errors import Violation, echo
from services.common.tensor_limits import RANK_LIMIT
from services.inference.domain.failure import InvalidTensors
from services.inference.domain.item import BatchKey
from services.inference.domain.tensor import BYTES, ITEM_SIZE, BrokenTensor, TensorSpec, element_count, row_borders
from services.inference.domain.version import VersionSpec

MAX_ELEMENTS: Final = 1 << 31
_SHOWN: Final = 8


class Violations:
    """Collects what is wrong, so that a caller hears of everything at once."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        """Note one thing that is wrong."""
        self._found.append(Violation(field, description))

    def raise_if_any(self) -> None:
        """Raise `InvalidTensors` with all of them."""
        if self._found:
            raise InvalidTensors(self._found)

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return bool(self._found)


def shown(values: Sequence[int]) -> str:
    """Return a shape for a message, cut to a readable length."""
    head = ", ".join(str(value) for value in values[:_SHOWN])
    return f"[{head}{', ...' if len(values) > _SHOWN else ''}]"


def names(specs: Sequence[TensorSpec]) -> str:
    """Return the names of tensors for a message."""
    return ", ".join(repr(spec.name) for spec in specs)


def is_plain(spec: TensorSpec, datatype: str, shape: Sequence[int], size_bytes: int, rows: int) -> bool:
    """Return whether nothing can be wrong with a tensor of so many rows and raw bytes. No says nothing about wrong."""
    return (
        datatype == spec.datatype
        and rows > 0
        and spec.row_bytes > 0
        and size_bytes == rows * spec.row_bytes
        and tuple(shape) == (rows, *spec.trailing)
    )


def plain_key(version: VersionSpec) -> BatchKey:
    """Return what requests share whose inputs are all plain and that want every output."""
    return BatchKey(tuple(range(len(version.outputs))), tuple([spec.trailing for spec in version.inputs]))


def shape_defect(spec: TensorSpec, shape: Sequence[int]) -> str:
    """Return what is wrong with a tensor's shape, or an empty string."""
    if len(shape) != len(spec.shape):
        return f"{_want(spec)}, got {shown(shape) if len(shape) <= RANK_LIMIT else f'{len(shape)} dimensions'}"
    if any(size < 0 for size in shape):
        return f"{_want(spec)} with no negative size, got {shown(shape)}"
    if shape[0] == 0:
        return f"{_want(spec)} with at least 1 row, got {shown(shape)}"
    if any(wanted not in {-1, size} for wanted, size in zip(spec.trailing, shape[1:], strict=True)):
        return f"{_want(spec)}, got {shown(shape)}"
    if element_count(shape, MAX_ELEMENTS) > MAX_ELEMENTS:
        return f"want at most {MAX_ELEMENTS} elements, got shape {shown(shape)}"
    return ""


def _want(spec: TensorSpec) -> str:
    return f"want shape {shown(spec.shape)}"


def data_defect(spec: TensorSpec, shape: Sequence[int], data: bytes) -> str:
    """Return what is wrong with a tensor's raw bytes, given a shape that is right, or an empty string.

    Floating-point NaN and infinity pass: whether a feature may be missing is the router's business, by the signature's
    features, and a caller of raw tensors speaks to the model directly. A version's policy may refuse them (`ModelHost`).
    """
    if spec.datatype == "BOOL" and data.translate(None, b"\x00\x01"):
        return "want bytes 0 and 1, got others"
    if spec.datatype == BYTES:
        return text_defect(shape, data)
    size = element_count(shape, MAX_ELEMENTS) * ITEM_SIZE[spec.datatype]
    if size != len(data):
        return f"want {size} bytes for shape {shown(shape)} of {spec.datatype}, got {len(data)}"
    return ""


def text_defect(shape: Sequence[int], data: bytes) -> str:
    """Return what is wrong with the raw bytes of a BYTES tensor, or an empty string. Elements must be UTF-8 texts."""
    if element_count(shape, MAX_ELEMENTS) * 4 > len(data):
        return f"want {element_count(shape, MAX_ELEMENTS)} elements, each with a 4-byte length, got {len(data)} bytes"
    try:
        row_borders(BYTES, shape, data, utf8=True)
    except BrokenTensor as broken:
        return str(broken)
    return ""


def output_positions(wanted: Sequence[str], specs: Sequence[TensorSpec], violations: Violations) -> tuple[int, ...]:
    """Return the positions of the wanted outputs, all of them when none is named."""
    if not wanted:
        return tuple(range(len(specs)))
    if len(wanted) > len(specs):
        violations.add("outputs", f"want at most {len(specs)} names, got {len(wanted)}")
        return ()
    known = {spec.name: position for position, spec in enumerate(specs)}
    positions = []
    for name in wanted:
        if name not in known:
            violations.add("outputs", f"want one of {names(specs)}, got {echo(name)}")
        elif known[name] in positions:
            violations.add("outputs", f"want each name once, got {echo(name)} again")
        else:
            positions.append(known[name])
    return tuple(positions)
