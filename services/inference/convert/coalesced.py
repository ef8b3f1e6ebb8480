"""Messages of the coalesced stream, to items and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.rpc.status_pb2 import Status
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.types.v1 import tensor_pb2 as types_pb

from services.common.errors import echo
from services.inference.convert.checks import (
    MAX_TENSORS,
    Violations,
    data_defect,
    names,
    output_positions,
    shape_defect,
)
from services.inference.convert.tensors import datatype_from_proto, tensor_to_proto
from services.inference.domain.failure import InvalidStreamMessage
from services.inference.domain.item import BatchAnswer, BatchKey, Criticality, Place, merge_spans
from services.inference.domain.tensor import TensorSpec, row_borders
from services.inference.domain.version import VersionSpec

MAX_ITEMS: Final = 1_024
TEXT_LIMIT_BYTES: Final = 128
_MICROSECOND: Final = 1e-6
_MOST: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Payload:
    """The tensors of a batch message, by input of the signature, with the borders of their rows."""

    key: BatchKey
    tensors: Sequence[bytes]
    borders: Sequence[Sequence[int]]

    def rows(self, first: int, count: int) -> list[bytes]:
        """Return some rows of every input."""
        return [data[edge[first] : edge[first + count]] for data, edge in zip(self.tensors, self.borders, strict=True)]


def check_batch(batch: pb.InferBatch) -> int:
    """Return the rows of all items; raises `InvalidStreamMessage` when the message breaks the rules of the stream."""
    count = len(batch.items)
    if not 1 <= count <= MAX_ITEMS:
        raise InvalidStreamMessage(f"batch.items: want 1 to {MAX_ITEMS}, got {count}")
    rows = 0
    ids = set()
    for item in batch.items:
        _check_item(item)
        ids.add(item.id)
        rows += item.rows
    if len(ids) != count:
        raise InvalidStreamMessage("batch.items: want each id once, got one twice")
    return rows


def _check_item(item: pb.InferItem) -> None:
    if item.rows < 1:
        raise InvalidStreamMessage(f"batch.items: want at least 1 row in item {item.id}, got 0")
    if len(item.tenant) > TEXT_LIMIT_BYTES or len(item.request_id) > TEXT_LIMIT_BYTES:
        raise InvalidStreamMessage(
            f"batch.items: want at most {TEXT_LIMIT_BYTES} bytes of tenant and request_id in item {item.id}"
        )


def payload_from_proto(batch: pb.InferBatch, rows: int, version: VersionSpec) -> Payload:
    """Return the tensors in the order of the signature; raises `InvalidTensors` when they do not fit it."""
    violations = Violations()
    if len(batch.outputs) > MAX_TENSORS:
        violations.add("outputs", f"want at most {MAX_TENSORS}, got {len(batch.outputs)}")
        violations.raise_if_any()
    outputs = output_positions(batch.outputs, version.outputs, violations)
    if len(batch.tensors) != len(version.inputs):
        violations.add("tensors", f"want {names(version.inputs)}, got {len(batch.tensors)} tensors")
        violations.raise_if_any()
    given = {tensor.name: tensor for tensor in batch.tensors}
    for spec in version.inputs:
        tensor = given.get(spec.name)
        if tensor is None:
            violations.add(spec.name, "want this tensor, got none of that name")
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


def _check_tensor(spec: TensorSpec, tensor: types_pb.Tensor, rows: int, violations: Violations) -> None:
    datatype = datatype_from_proto(tensor.data_type)
    if datatype != spec.datatype:
        violations.add(spec.name, f"want {spec.datatype}, got {datatype or f'data type {tensor.data_type}'}")
        return
    defect = shape_defect(spec, tensor.shape)
    if not defect and tensor.shape[0] != rows:
        defect = f"want the {rows} rows of the items, got {tensor.shape[0]}"
    defect = defect or data_defect(spec, tensor.shape, tensor.data)
    if defect:
        violations.add(spec.name, defect)


def criticality_from_proto(number: int) -> Criticality:
    """Return the criticality; what is not given, or not known yet, is ordinary traffic."""
    return Criticality(number) if number in {1, 2, 3} else Criticality.DEFAULT


def deadline_from_proto(item: pb.InferItem, now: float) -> float:
    """Return the item's deadline in monotonic seconds."""
    return now + item.timeout_us * _MICROSECOND


def results_to_proto(answer: BatchAnswer, places: Sequence[Place], queue_time_s: float) -> pb.InferResults:
    """Return the answers of some items of one batch."""
    compute_us = micros(answer.compute_s)
    results = [
        pb.InferItemResult(
            id=place.item.tag,
            rows=place.item.rows,
            queue_us=micros(place.item.started - place.item.arrived),
            compute_us=compute_us,
            batch_size=answer.rows,
        )
        for place in places
    ]
    tensors = [tensor_to_proto(tensor) for tensor in answer.tensors(merge_spans(places))]
    return pb.InferResults(items=results, tensors=tensors, queue_time_us=micros(queue_time_s))


def failures_to_proto(failed: Sequence[tuple[int, Status]], queue_time_s: float) -> pb.InferResults:
    """Return the failures of some items."""
    results = [pb.InferItemResult(id=ident, error=status) for ident, status in failed]
    return pb.InferResults(items=results, queue_time_us=micros(queue_time_s))


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
