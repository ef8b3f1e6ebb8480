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
from services.router.domain.feature import MISSING, FeatureReader, FetchedColumn, RowNotes, UnsupportedSignature
from services.router.domain.reading import PredictionReader
from services.router.domain.signature import FeatureSpec, MissingPolicy, Signature, TensorSpec
from services.router.domain.tensor import DATA_TYPES, DataType, Kind, Tensor, pack_bytes

# Suggestions cost time that the caller would choose; the rest of the names is listed without.
_SUGGESTION_LIMIT: Final = 16
_VIOLATION_LIMIT: Final = 200

_Pack = Callable[[Sequence[Any]], bytes]


@dataclass(slots=True)
class EncodedRow:
    """One row as the hop takes it: bytes for each input tensor, in the signature's order."""

    chunks: tuple[bytes, ...]
    flagged: tuple[str, ...] = ()
    defaulted: bool = False


@dataclass(slots=True)
class Draft:
    """A row whose request values are read: columns by tensor, those of fetched features still empty."""

    columns: list[list[Any]]
    notes: RowNotes


@dataclass(frozen=True, slots=True)
class FetchedFeature:
    """A feature whose value is fetched: its spec, what reads the value, and its place as tensor and column."""

    spec: FeatureSpec
    reader: FeatureReader
    place: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _TensorPlan:
    name: str
    data_type: str
    columns: int
    readers: tuple[FeatureReader | FetchedColumn, ...]
    pack: _Pack


class Plan:
    """Encodes rows for one version and reads its answers.

    `fetched` are the features that do not come with the request, `sources` where they come from, in the same order.
    `plain` says that a row of values is all it takes: nothing is fetched, nothing may fall back.
    """

    def __init__(
        self,
        tensors: tuple[_TensorPlan, ...],
        reader: PredictionReader,
        fetched: tuple[FetchedFeature, ...],
        *,
        plain: bool,
    ) -> None:
        self._tensors = tensors
        away = {feature.spec.name for feature in fetched}
        self.names = frozenset(
            reader.name for tensor in tensors for reader in tensor.readers if reader.name not in away
        )
        """Names of the features that come with the request."""
        self._known = self.names | away
        self.fetched = fetched
        self.sources = tuple(feature.spec.source for feature in fetched)
        self.plain = plain
        self.reader = reader

    def encode(self, features: Mapping[str, object]) -> EncodedRow:
        """Return the bytes of a row that comes whole; raises InvalidFeatures with everything that is wrong with it."""
        return self.pack(self.draft(features))

    def draft(self, features: Mapping[str, object]) -> Draft:
        """Return the row as far as the request goes; raises InvalidFeatures with everything that is wrong with it."""
        notes = RowNotes()
        columns = [
            [reader.read(features.get(reader.name, MISSING), notes) for reader in tensor.readers]
            for tensor in self._tensors
        ]
        self._check_names(features, notes)
        if notes.violations:
            raise InvalidFeatures(notes.violations)
        return Draft(columns, notes)

    def request_values(self, draft: Draft) -> dict[str, object]:
        """Return the values that came with the request, by name, as the model takes them."""
        return {
            reader.name: value
            for tensor, values in zip(self._tensors, draft.columns, strict=True)
            for reader, value in zip(tensor.readers, values, strict=True)
            if reader.name in self.names
        }

    def pack(self, draft: Draft) -> EncodedRow:
        """Return the bytes of a row with all its columns filled."""
        chunks = tuple([tensor.pack(values) for tensor, values in zip(self._tensors, draft.columns, strict=True)])
        return EncodedRow(chunks, tuple(draft.notes.flagged), draft.notes.defaulted)

    def tensors(self, rows: Sequence[EncodedRow]) -> tuple[Tensor, ...]:
        """Return the input tensors of some rows, joined along the batch dimension."""
        count = len(rows)
        return tuple([
            Tensor(
                tensor.name,
                tensor.data_type,
                (count, tensor.columns),
                rows[0].chunks[index] if count == 1 else b"".join([row.chunks[index] for row in rows]),
            )
            for index, tensor in enumerate(self._tensors)
        ])  # fmt: skip

    def _check_names(self, features: Mapping[str, object], notes: RowNotes) -> None:
        # Equal sizes and no missing name mean equal names: the usual row is settled by one comparison.
        if len(features) <= len(self.names) and self.names.issuperset(features):
            return
        unknown = [name for name in features if name not in self._known]
        for index, name in enumerate(unknown[:_VIOLATION_LIMIT]):
            hint = did_you_mean(name, self.names) if index < _SUGGESTION_LIMIT else ""
            notes.violations.append(
                Violation(f"features.{name}", f"want a feature of the signature, got an unknown name{hint}")
            )


def compile_plan(signature: Signature) -> Plan:
    """Return the plan of a signature with features; UnsupportedSignature says why there can be none."""
    if not signature.features or signature.prediction is None:
        raise UnsupportedSignature("the signature has no features; use the Open Inference Protocol")
    tensors = tuple(_tensor_plan(spec, signature.features) for spec in signature.inputs)
    fetched = tuple(
        FetchedFeature(spec, FeatureReader(spec, DATA_TYPES[tensor.data_type]), (index, spec.column))
        for index, tensor in enumerate(signature.inputs)
        for spec in signature.features
        if spec.fetched and spec.tensor == tensor.name
    )
    plain = not fetched and all(spec.missing is not MissingPolicy.FALLBACK for spec in signature.features)
    return Plan(tensors, PredictionReader(signature.prediction, signature.outputs), fetched, plain=plain)


def _tensor_plan(spec: TensorSpec, features: Sequence[FeatureSpec]) -> _TensorPlan:
    data_type = DATA_TYPES[spec.data_type]
    mine = sorted((feature for feature in features if feature.tensor == spec.name), key=lambda found: found.column)
    if len(spec.shape) != 2 or [feature.column for feature in mine] != list(range(len(mine))):
        raise UnsupportedSignature(f"input {spec.name}: want the shape [-1, columns] with one feature for each column")
    if spec.shape[1] not in (-1, len(mine)) or not mine:
        raise UnsupportedSignature(f"input {spec.name}: want {spec.shape[1]} features, got {len(mine)}")
    readers = tuple(FetchedColumn(spec) if spec.fetched else FeatureReader(spec, data_type) for spec in mine)
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
