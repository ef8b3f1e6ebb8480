"""Messages of the coalescing stream: requests joined along the batch dimension, answers split by slicing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, cast

from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.types.v1 import tensor_pb2 as types_pb

from services.common.criticality import Criticality
from services.common.errors import ServiceError
from services.common.wire_pieces import field_pieces, tag_of
from services.router.adapters.inference_client.failure import errors_of
from services.router.domain.failure import InvalidModelOutput
from services.router.domain.ports import Job
from services.router.domain.rejection import Reject
from services.router.domain.tensor import Tensor, row_offsets, slice_rows

ITEMS_PER_MESSAGE: Final = 1024
# What a replica keeps for the way back, so that its own refusal arrives before our caller's deadline.
_RETURN_S: Final = 0.005
_LEAST_TIMEOUT_US: Final = 1000
# Far more than the descriptions of an item's row take.
_ITEM_OVERHEAD_BYTES: Final = 1024

_BATCH_TAG: Final = tag_of(inference_pb.CoalescedInferRequest, "batch")
_TENSORS_TAG: Final = tag_of(inference_pb.InferBatch, "tensors")
_DATA_TAG: Final = tag_of(types_pb.Tensor, "data")
_PREFIX: Final = "DATA_TYPE_"
_WIRE_TYPE: Final = {name.removeprefix(_PREFIX): number for name, number in types_pb.DataType.items()}
_TYPE_NAME: Final = {number: name for name, number in _WIRE_TYPE.items()}

Outcome = tuple[Tensor, ...] | ServiceError


class Waiter(Protocol):
    """Who waits for an item: a future, or what does with less."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, result: tuple[Tensor, ...], /) -> None:
        """Take the outputs of the item's rows."""

    def set_exception(self, exception: ServiceError, /) -> None:
        """Take what failed."""


@dataclass(eq=False, slots=True)
class Item:
    """One request on its way; `deadline` in seconds of `time.monotonic()`."""

    id: int
    job: Job
    deadline: float
    traceparent: str
    request_id: str
    tenant: str
    criticality: Criticality
    attempt: int
    outcome: Waiter
    size_bytes: int = 0
    """About what it takes in a message, never less."""
    left: bool = False
    """Whether it waits for others no more."""
    sent: bool = False
    """Whether it may have reached the replica."""

    def __post_init__(self) -> None:
        """Work out the size once; it is asked for several times."""
        self.size_bytes = _ITEM_OVERHEAD_BYTES + sum(len(tensor.data) for tensor in self.job.inputs)

    @property
    def group(self) -> tuple[object, ...]:
        """What requests must share to travel in one batch: trailing shapes and wanted outputs."""
        return (*(tensor.shape[1:] for tensor in self.job.inputs), self.job.outputs)


def batches(items: Sequence[Item], limit_bytes: int) -> Iterator[list[Item]]:
    """Yield the items in groups that one message may hold; an item that fills a message alone goes alone."""
    if len(items) == 1:
        yield list(items)
        return
    groups: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    for group in groups.values():
        yield from _cut(group, limit_bytes)


def open_message(model: str, version: str, client_id: str) -> inference_pb.CoalescedInferRequest:
    """Return the first message of a stream."""
    opening = inference_pb.InferOpen(model=model, version=version, client_id=client_id)
    return inference_pb.CoalescedInferRequest(open=opening)


def batch_message(items: Sequence[Item], now: float) -> list[bytes]:
    """Return the message of one batch that leaves at `now`, in pieces: the bytes of tensors as they are, not copied."""
    first = items[0].job
    levels = _unless_all([item.criticality for item in items], Criticality.DEFAULT)
    columns = inference_pb.InferBatch(
        ids=[item.id for item in items],
        rows=[item.job.rows for item in items],
        timeouts_us=[max(int((item.deadline - now - _RETURN_S) * 1e6), _LEAST_TIMEOUT_US) for item in items],
        outputs=first.outputs,
        # None of a column is less than a column of nothing.
        criticalities=cast("list[inference_pb.Criticality.ValueType]", levels),
        attempts=_unless_all([item.attempt for item in items], 1),
        traceparents=_unless_all([item.traceparent for item in items], ""),
        tenants=_unless_all([item.tenant for item in items], ""),
        request_ids=_unless_all([item.request_id for item in items], ""),
    )
    pieces = [columns.SerializeToString()]
    rows = sum([item.job.rows for item in items])
    for index, tensor in enumerate(first.inputs):
        description = types_pb.Tensor(
            name=tensor.name, data_type=_WIRE_TYPE[tensor.data_type], shape=(rows, *tensor.shape[1:])
        )
        data = field_pieces(_DATA_TAG, [item.job.inputs[index].data for item in items])
        pieces += field_pieces(_TENSORS_TAG, [description.SerializeToString(), *data])
    return field_pieces(_BATCH_TAG, pieces)


def cancel_message(ids: Sequence[int]) -> list[bytes]:
    """Return the message that takes requests back."""
    return [inference_pb.CoalescedInferRequest(cancel=inference_pb.InferCancel(ids=ids)).SerializeToString()]


def split_results(results: inference_pb.InferResults) -> list[tuple[int, int, Outcome]]:
    """Return id, rows and outcome of each item: its slice of the tensors, or its error.

    Tensors that do not have the rows that the items claim make every answer of the message unusable: nobody gets
    another's rows.
    """
    failed: list[tuple[int, int, Outcome]] = []
    for failure in results.failures:
        new_error = errors_of(failure.error)
        failed += [(ident, 0, new_error()) for ident in (failure.id, *failure.further_ids)]
    if not results.ids:
        return failed
    ids, rows = list(results.ids), list(results.rows)
    try:
        return failed + _slices(ids, rows, results.tensors)
    except Reject as reject:
        return failed + [(ident, 0, InvalidModelOutput(str(reject))) for ident in ids]


def _cut(group: list[Item], limit_bytes: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size_bytes = 0
    for item in group:
        if batch and (size_bytes + item.size_bytes > limit_bytes or len(batch) == ITEMS_PER_MESSAGE):
            yield batch
            batch, size_bytes = [], 0
        batch.append(item)
        size_bytes += item.size_bytes
    if batch:
        yield batch


_ValueT = TypeVar("_ValueT")


def _unless_all(column: list[_ValueT], usual: _ValueT) -> list[_ValueT]:
    return [] if column.count(usual) == len(column) else column


def _slices(
    ids: Sequence[int], rows: Sequence[int], wire_tensors: Sequence[types_pb.Tensor]
) -> list[tuple[int, int, Outcome]]:
    tensors = [_tensor(tensor) for tensor in wire_tensors]
    total = sum(rows)
    if len(ids) != len(rows):
        raise Reject(f"want the rows of {len(ids)} requests, got {len(rows)}")
    if any(not tensor.shape or tensor.shape[0] != total for tensor in tensors):
        raise Reject(f"want {total} rows in every output, got another number")
    offsets = [row_offsets(tensor) for tensor in tensors]
    if len(ids) == 1:
        return [(ids[0], total, tuple(tensors))]
    found: list[tuple[int, int, Outcome]] = []
    first = 0
    for ident, count in zip(ids, rows, strict=True):
        last = first + count
        mine = tuple(slice_rows(tensor, first, last, ends) for tensor, ends in zip(tensors, offsets, strict=True))
        found.append((ident, count, mine))
        first = last
    return found


def _tensor(tensor: types_pb.Tensor) -> Tensor:
    if tensor.data_type not in _TYPE_NAME or tensor.data_type == types_pb.DATA_TYPE_UNSPECIFIED:
        raise Reject("want a known data type in every output, got another")
    return Tensor(tensor.name, _TYPE_NAME[tensor.data_type], tuple(tensor.shape), tensor.data)
