"""Golden rows: inputs with the outputs that a version must give for them. Here only: do they fit the signature."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from services.common.errors import Violation, echo
from services.registry.domain.signature import ANY_SIZE, DataType, Kind, Signature, TensorSpec, element_count

GOLDEN_ROW_LIMIT: Final = 64
BATCH_LIMIT: Final = 64
# Golden rows travel with every snapshot of the configuration.
GOLDEN_BYTES_LIMIT: Final = 4 * 1024 * 1024
_LENGTH_PREFIX_BYTES: Final = 4

Violations = Iterator[Violation]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One dense tensor: row-major, little-endian; BYTES elements carry a 4-byte length each."""

    name: str
    data_type: DataType | None
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class GoldenRow:
    """Inputs of one or more rows, and outputs to compare."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    absolute_tolerance: float = 0.0
    relative_tolerance: float = 0.0


def check_golden_rows(rows: Sequence[GoldenRow], signature: Signature, path: str) -> Violations:
    """Yield everything that is wrong with golden rows; caps are checked before anything is counted out."""
    if len(rows) > GOLDEN_ROW_LIMIT:
        yield Violation(path, f"want at most {GOLDEN_ROW_LIMIT}, got {len(rows)}")
        return
    size_bytes = sum(len(tensor.data) for row in rows for tensor in (*row.inputs, *row.outputs))
    if size_bytes > GOLDEN_BYTES_LIMIT:
        yield Violation(path, f"want at most {GOLDEN_BYTES_LIMIT} bytes of tensors in all, got {size_bytes}")
        return
    for index, row in enumerate(rows):
        yield from _check_row(row, signature, f"{path}[{index}]")


def _check_row(row: GoldenRow, signature: Signature, path: str) -> Violations:
    yield from _check_side(row.inputs, signature.inputs, f"{path}.inputs")
    yield from _check_side(row.outputs, signature.outputs, f"{path}.outputs")
    missing = {spec.name for spec in signature.inputs} - {tensor.name for tensor in row.inputs}
    if missing:
        yield Violation(f"{path}.inputs", f"want every input, got nothing for {', '.join(map(echo, sorted(missing)))}")
    if not row.outputs:
        yield Violation(f"{path}.outputs", "want at least one output to compare, got none")
    yield from _check_batch(row, f"{path}.inputs")
    for name in ("absolute_tolerance", "relative_tolerance"):
        tolerance: float = getattr(row, name)
        if not (math.isfinite(tolerance) and tolerance >= 0):
            yield Violation(f"{path}.{name}", f"want 0 (the default) or a positive number, got {tolerance:g}")


def _check_batch(row: GoldenRow, path: str) -> Violations:
    sizes = {tensor.shape[0] for tensor in (*row.inputs, *row.outputs) if tensor.shape}
    if len(sizes) > 1:
        yield Violation(path, f"want as many rows in each tensor of a golden row, got {sorted(sizes)}")
    elif sizes and not 1 <= min(sizes) <= BATCH_LIMIT:
        yield Violation(path, f"want 1 to {BATCH_LIMIT} rows, got {min(sizes)}")


def _check_side(tensors: Sequence[Tensor], specs: Sequence[TensorSpec], path: str) -> Violations:
    known = {spec.name: spec for spec in specs}
    seen: set[str] = set()
    for index, tensor in enumerate(tensors):
        at = f"{path}[{index}]"
        spec = known.get(tensor.name)
        if spec is None:
            yield Violation(f"{at}.name", f"want a tensor of the signature, got {echo(tensor.name)}")
        elif tensor.name in seen:
            yield Violation(f"{at}.name", f"want each tensor once, got {echo(tensor.name)} again")
        else:
            yield from _check_tensor(tensor, spec, at)
        seen.add(tensor.name)


def _check_tensor(tensor: Tensor, spec: TensorSpec, path: str) -> Violations:
    if tensor.data_type is None or tensor.data_type is not spec.data_type:
        want = "none" if spec.data_type is None else spec.data_type.value
        got = "none" if tensor.data_type is None else tensor.data_type.value
        yield Violation(f"{path}.data_type", f"want {want}, got {got}")
    elif not _fits(tensor.shape, spec.shape):
        yield Violation(f"{path}.shape", f"want {list(spec.shape)}, got {list(tensor.shape)}")
    else:
        yield from _check_data(tensor, tensor.data_type, f"{path}.data")


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(got >= 0 and want in (ANY_SIZE, got) for got, want in zip(shape, wanted, strict=True))


def _check_data(tensor: Tensor, data_type: DataType, path: str) -> Violations:
    count = element_count(tensor.shape)
    if data_type.kind is Kind.TEXT:
        yield from _check_texts(tensor.data, count, path)
        return
    wanted = count * data_type.size_bytes
    if len(tensor.data) != wanted:
        yield Violation(path, f"want {wanted} bytes for {count} elements, got {len(tensor.data)}")
    elif data_type.kind is Kind.BOOL and tensor.data.strip(b"\x00\x01"):
        yield Violation(path, "want truth values of one byte, 0 or 1; got other bytes")


def _check_texts(data: bytes, count: int, path: str) -> Violations:
    if count * _LENGTH_PREFIX_BYTES > len(data):
        yield Violation(path, f"want at least {count * _LENGTH_PREFIX_BYTES} bytes for {count} texts, got {len(data)}")
        return
    position = 0
    for _ in range(count):
        length = int.from_bytes(data[position : position + _LENGTH_PREFIX_BYTES], "little")
        position += _LENGTH_PREFIX_BYTES + length
    if position != len(data):
        yield Violation(path, f"want {count} texts of {len(data)} bytes with their lengths, got lengths for {position}")
