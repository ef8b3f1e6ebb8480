"""The plan of a version, compiled once from its signature: rows of named values become raw tensor bytes.

No numpy, no message per row: each input tensor has one packer, and a row is one `struct.pack` per tensor.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.errors import Violation
from services.common.wording import did_you_mean
from services.router.domain.failure import InvalidFeatures
from services.router.domain.feature import MISSING, FeatureReader, RowNotes, UnsupportedSignature
from services.router.domain.reading import PredictionReader
from services.router.domain.signature import REQUEST_SOURCE, FeatureSpec, Signature, TensorSpec
from services.router.domain.tensor import DATA_TYPES, DataType, Kind, Tensor, pack_bytes

# Suggestions cost time that the caller would choose; the rest of the names is listed without.
_SUGGESTION_LIMIT: Final = 16
_VIOLATION_LIMIT: Final = 200

_Pack = Callable[[Sequence[Any]], bytes]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as the hop takes it: bytes for each input tensor, in the signature's order."""

    chunks: tuple[bytes, ...]
    flagged: tuple[str, ...] = ()
    defaulted: bool = False


@dataclass(frozen=True, slots=True)
class _TensorPlan:
    name: str
    data_type: str
    columns: int
    readers: tuple[FeatureReader, ...]
    pack: _Pack


class Plan:
    """Encodes rows for one version and reads its answers."""

    def __init__(self, tensors: tuple[_TensorPlan, ...], reader: PredictionReader) -> None:
        self._tensors = tensors
        self._names = frozenset(reader.name for tensor in tensors for reader in tensor.readers)
        self.reader = reader

    def encode(self, features: Mapping[str, object]) -> EncodedRow:
        """Return the row's bytes; raises InvalidFeatures with everything that is wrong with it."""
        notes = RowNotes()
        rows = [
            [reader.read(features.get(reader.name, MISSING), notes) for reader in tensor.readers]
            for tensor in self._tensors
        ]
        self._check_names(features, notes)
        if notes.violations:
            raise InvalidFeatures(notes.violations)
        chunks = tuple(tensor.pack(values) for tensor, values in zip(self._tensors, rows, strict=True))
        return EncodedRow(chunks, tuple(notes.flagged), notes.defaulted)

    def tensors(self, rows: Sequence[EncodedRow]) -> tuple[Tensor, ...]:
        """Return the input tensors of some rows, joined along the batch dimension."""
        return tuple(
            Tensor(
                tensor.name,
                tensor.data_type,
                (len(rows), tensor.columns),
                rows[0].chunks[index] if len(rows) == 1 else b"".join(row.chunks[index] for row in rows),
            )
            for index, tensor in enumerate(self._tensors)
        )

    def _check_names(self, features: Mapping[str, object], notes: RowNotes) -> None:
        # Equal sizes and no missing name mean equal names: the usual row is settled by one comparison.
        if len(features) <= len(self._names) and self._names.issuperset(features):
            return
        unknown = [name for name in features if name not in self._names]
        for index, name in enumerate(unknown[:_VIOLATION_LIMIT]):
            hint = did_you_mean(name, self._names) if index < _SUGGESTION_LIMIT else ""
            notes.violations.append(
                Violation(f"features.{name}", f"want a feature of the signature, got an unknown name{hint}")
            )


def compile_plan(signature: Signature) -> Plan:
    """Return the plan of a signature with features; UnsupportedSignature says why there can be none."""
    if not signature.features or signature.prediction is None:
        raise UnsupportedSignature("the signature has no features; use the Open Inference Protocol")
    fetched = [feature.name for feature in signature.features if feature.source not in ("", REQUEST_SOURCE)]
    if fetched:
        raise UnsupportedSignature(f"features that are fetched are not served in this release: {', '.join(fetched)}")
    tensors = tuple(_tensor_plan(spec, signature.features) for spec in signature.inputs)
    return Plan(tensors, PredictionReader(signature.prediction, signature.outputs))


def _tensor_plan(spec: TensorSpec, features: Sequence[FeatureSpec]) -> _TensorPlan:
    data_type = DATA_TYPES[spec.data_type]
    mine = sorted((feature for feature in features if feature.tensor == spec.name), key=lambda found: found.column)
    if len(spec.shape) != 2 or [feature.column for feature in mine] != list(range(len(mine))):
        raise UnsupportedSignature(f"input {spec.name}: want the shape [-1, columns] with one feature for each column")
    if spec.shape[1] not in (-1, len(mine)) or not mine:
        raise UnsupportedSignature(f"input {spec.name}: want {spec.shape[1]} features, got {len(mine)}")
    readers = tuple(FeatureReader(feature, data_type) for feature in mine)
    return _TensorPlan(spec.name, spec.data_type, len(mine), readers, _packer(data_type, len(mine)))


def _packer(data_type: DataType, columns: int) -> _Pack:
    if data_type.kind is Kind.BYTES:
        return _pack_texts
    if data_type.name == "BF16":
        return _pack_bf16
    pack = struct.Struct(f"<{columns}{data_type.code}").pack
    return lambda values: pack(*values)


def _pack_texts(values: Sequence[str]) -> bytes:
    return pack_bytes([value.encode() for value in values])


def _pack_bf16(values: Sequence[float]) -> bytes:
    return b"".join(struct.pack("<f", value)[2:] for value in values)
