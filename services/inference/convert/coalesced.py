"""Messages of the coalesced stream, to items and back."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from google.rpc.status_pb2 import Status
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.types.v1 import tensor_pb2 as types_pb

from services.common.criticality import Criticality
from services.common.errors import echo
from services.common.tensor_limits import TENSOR_LIMIT
from services.inference.convert.checks import (
    Violations,
    data_defect,
    is_plain,
    names,
    output_positions,
    plain_key,
    shape_defect,
)
from services.inference.convert.tensors import datatype_from_proto, tensor_to_proto
from services.inference.domain.failure import InvalidStreamMessage
from services.inference.domain.item import BatchAnswer, BatchKey, Place, merge_spans
from services.inference.domain.tensor import TensorSpec, row_borders
from services.inference.domain.version import VersionSpec

MAX_ITEMS: Final = 1_024
TEXT_LIMIT_BYTES: Final = 128
_MICROSECOND: Final = 1e-6
_MOST: Final = (1 << 32) - 1
_CRITICALITIES: Final = {int(level): level for level in Criticality}


@dataclass(frozen=True, slots=True)
class Payload:
    """The tensors of a batch message, by input of the signature, with the borders of their rows."""

    key: BatchKey
    tensors: Sequence[bytes]
    borders: Sequence[Sequence[int]]

    def rows(self, first: int, count: int) -> list[bytes]:
        """Return some rows of every input."""
        return [data[edge[first] : edge[first + count]] for data, edge in zip(self.tensors, self.borders, strict=True)]


@dataclass(frozen=True, slots=True)
class Requests:
    """The columns of a batch message; one entry for each request. `deadlines` in monotonic seconds."""

    ids: Sequence[int]
    rows: Sequence[int]
    deadlines: Sequence[float]
    criticalities: Sequence[Criticality]
    traceparents: Sequence[str]
    request_ids: Sequence[str]

    def __iter__(self) -> Iterator[tuple[int, int, float, Criticality, str, str]]:
        """Give the requests in the order of their rows."""
        return iter(
            zip(
                self.ids,
                self.rows,
                self.deadlines,
                self.criticalities,
                self.traceparents,
                self.request_ids,
                strict=True,
            )
        )


def requests_from_proto(batch: pb.InferBatch, now: float) -> Requests:
    """Return the columns; raises `InvalidStreamMessage` when the message breaks the rules of the stream."""
    ids, rows = list(batch.ids), list(batch.rows)
    count = len(ids)
    if not 1 <= count <= MAX_ITEMS:
        raise InvalidStreamMessage(f"batch.ids: want 1 to {MAX_ITEMS}, got {count}")
    if len(set(ids)) != count:
        raise InvalidStreamMessage("batch.ids: want each id once, got one twice")
    if len(rows) != count or 0 in rows:
        raise InvalidStreamMessage(f"batch.rows: want at least 1 for each of {count} ids, got {_got(rows)}")
    if len(batch.timeouts_us) != count:
        raise InvalidStreamMessage(f"batch.timeouts_us: want one for each of {count} ids, got {len(batch.timeouts_us)}")
    _texts("tenants", batch.tenants, count)
    return Requests(
        ids=ids,
        rows=rows,
        deadlines=[now + timeout_us * _MICROSECOND for timeout_us in batch.timeouts_us],
        criticalities=_criticalities(batch.criticalities, count),
        traceparents=_texts("traceparents", batch.traceparents, count),
        request_ids=_texts("request_ids", batch.request_ids, count),
    )


def _got(rows: Sequence[int]) -> str:
    return "0" if 0 in rows else f"{len(rows)} of them"


def _texts(field: str, texts: Sequence[str], count: int) -> Sequence[str]:
    if not texts:
        return ("",) * count
    if len(texts) != count:
        raise InvalidStreamMessage(f"batch.{field}: want none or one for each of {count} ids, got {len(texts)}")
    if max(map(len, texts)) > TEXT_LIMIT_BYTES:
        raise InvalidStreamMessage(f"batch.{field}: want at most {TEXT_LIMIT_BYTES} bytes each, got more")
    return texts


def _criticalities(numbers: Sequence[int], count: int) -> Sequence[Criticality]:
    """Return the criticalities; what is not given, or not known yet, is ordinary traffic."""
    if not numbers:
        return (Criticality.DEFAULT,) * count
    if len(numbers) != count:
        raise InvalidStreamMessage(f"batch.criticalities: want none or one for each of {count} ids, got {len(numbers)}")
    return [_CRITICALITIES.get(number, Criticality.DEFAULT) for number in numbers]


def payload_from_proto(batch: pb.InferBatch, rows: int, version: VersionSpec) -> Payload:
    """Return the tensors in the order of the signature; raises `InvalidTensors` when they do not fit it."""
    plain = _at_first_sight(batch, rows, version)
    if plain is not None:
        return plain
    violations = Violations()
    if len(batch.outputs) > TENSOR_LIMIT:
        violations.add("outputs", f"want at most {TENSOR_LIMIT}, got {len(batch.outputs)}")
        violations.raise_if_any()
    outputs = output_positions(batch.outputs, version.outputs, violations)
    if len(batch.tensors) != len(version.inputs):
        violations.add("tensors", f"want {names(version.inputs)}, got {len(batch.tensors)} tensors")
        violations.raise_if_any()
    given = {tensor.name: tensor for tensor in batch.tensors}
    for spec in version.inputs:
        tensor = given.get(spec.name)
        if tensor is None:
            violations.add(f"inputs.{spec.name}", "want this tensor, got none of that name")
        else:
            _check_tensor(spec, tensor, rows, violations)
    violations.raise_if_any()
    ordered = [given[spec.name] for spec in version.inputs]
    return Payload(
        key=BatchKey(outputs, tuple(tuple(tensor.shape[1:]) for tensor in ordered)),
        tensors=[tensor.data for tensor in ordered],
        borders=[
            row_borders(spec.datatype, tensor.shape, tensor.data)
            for spec, tensor in zip(version.inputs, ordered, strict=True)
        ],
    )


def _at_first_sight(batch: pb.InferBatch, rows: int, version: VersionSpec) -> Payload | None:
    """Return tensors with which nothing can be wrong: every input in its place, of fixed size, and all outputs wanted.

    None says nothing about right or wrong: whoever looks closely tells.
    """
    specs = version.inputs
    if batch.outputs or len(batch.tensors) != len(specs):
        return None
    values = []
    for spec, tensor in zip(specs, batch.tensors, strict=True):
        data = tensor.data
        datatype = datatype_from_proto(tensor.data_type)
        if tensor.name != spec.name or not is_plain(spec, datatype, tensor.shape, len(data), rows):
            return None
        values.append(data)
    borders = [range(0, len(data) + 1, spec.row_bytes) for spec, data in zip(specs, values, strict=True)]
    return Payload(plain_key(version), values, borders)


def _check_tensor(spec: TensorSpec, tensor: types_pb.Tensor, rows: int, violations: Violations) -> None:
    datatype = datatype_from_proto(tensor.data_type)
    if datatype != spec.datatype:
        violations.add(
            f"inputs.{spec.name}", f"want {spec.datatype}, got {datatype or f'data type {tensor.data_type}'}"
        )
        return
    defect = shape_defect(spec, tensor.shape)
    if not defect and tensor.shape[0] != rows:
        defect = f"want the {rows} rows of the items, got {tensor.shape[0]}"
    defect = defect or data_defect(spec, tensor.shape, tensor.data)
    if defect:
        violations.add(f"inputs.{spec.name}", defect)


def results_to_proto(answer: BatchAnswer, places: Sequence[Place], queue_time_s: float) -> pb.InferResults:
    """Return the answers of some items of one batch."""
    return pb.InferResults(
        ids=[place.item.tag for place in places],
        rows=[place.item.rows for place in places],
        queues_us=[micros(place.item.started - place.item.arrived) for place in places],
        tensors=[tensor_to_proto(tensor) for tensor in answer.tensors(merge_spans(places))],
        compute_us=micros(answer.compute_s),
        batch_size=answer.rows,
        queue_time_us=micros(queue_time_s),
    )


def split_by_size(answer: BatchAnswer, places: Sequence[Place], limit_bytes: int) -> Iterator[Sequence[Place]]:
    """Yield the places in groups whose outputs have at most about `limit_bytes`; one that has more stands alone."""
    group: list[Place] = []
    size_bytes = 0
    for place in places:
        own_bytes = size_of(answer, place)
        if group and size_bytes + own_bytes > limit_bytes:
            yield group
            group, size_bytes = [], 0
        group.append(place)
        size_bytes += own_bytes
    yield group


def size_of(answer: BatchAnswer, place: Place) -> int:
    """Return the bytes of one item's outputs."""
    return sum(len(tensor.data) for tensor in answer.tensors(merge_spans([place])))


def failures_to_proto(failed: Iterable[tuple[Sequence[int], Status]], queue_time_s: float) -> pb.InferResults:
    """Return the failures of some items; those that are told the same go together."""
    failures = [pb.InferFailure(id=ids[0], error=status, further_ids=ids[1:]) for ids, status in failed]
    return pb.InferResults(failures=failures, queue_time_us=micros(queue_time_s))


def micros(seconds: float) -> int:
    """Return whole microseconds, as far as 32 bits go."""
    return min(max(0, round(seconds / _MICROSECOND)), _MOST)


def open_from_proto(message: pb.CoalescedInferRequest) -> pb.InferOpen:
    """Return the first message's content; raises `InvalidStreamMessage` when it is another kind."""
    kind = message.WhichOneof("message")
    if kind != "open":
        raise InvalidStreamMessage(f"want open as the first message, got {kind or 'an empty message'}")
    if len(message.open.client_id) > TEXT_LIMIT_BYTES:
        raise InvalidStreamMessage(f"open.client_id: want at most {TEXT_LIMIT_BYTES} bytes")
    if not message.open.version:
        raise InvalidStreamMessage(f"open.version: want a version id for model {echo(message.open.model)}, got none")
    return message.open
