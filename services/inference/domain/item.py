"""One request on its way through the batcher, and the answer of the batch that it was in."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from services.common.criticality import Criticality
from services.common.errors import ServiceError
from services.inference.domain.tensor import Tensor, TensorSpec, row_borders


class Stage(IntEnum):
    """Where an item is."""

    NEW = 0
    WAITING = 1
    RUNNING = 2
    DONE = 3


# A tuple: it is made, hashed and compared for each request, and a frozen dataclass does all that in Python.
class BatchKey(NamedTuple):
    """What requests must share to run together: outputs by position, and the shape of a row of each input.

    Datatypes and names are the signature's. A `solo` number other than 0 keeps a request to itself.
    """

    outputs: tuple[int, ...]
    trailing: tuple[tuple[int, ...], ...]
    solo: int = 0


class Sink(Protocol):
    """Who waits for items. Called on the event loop, must not raise."""

    def deliver(self, answer: "BatchAnswer", places: Sequence["Place"]) -> None:
        """Take the answers of some items of one batch, in the order of their rows."""

    def fail(self, items: Sequence["Item"], error: ServiceError) -> None:
        """Take the common failure of some items."""


class ItemTrace(Protocol):
    """The trace of one item, from its arrival to its answer."""

    @property
    def traceparent(self) -> str:
        """The W3C context of the phase under way."""

    def started(self, batch_size: int, reason: str) -> None:
        """The item left the queue in a batch of so many rows that left for a reason."""

    def ended(self, error: str) -> None:
        """The item was answered; `error` is a reason or empty."""


class Item:
    """One request: its rows, its deadline, and who waits for it. Times are monotonic seconds."""

    __slots__ = (
        "arrived",
        "criticality",
        "deadline",
        "inputs",
        "key",
        "parts",
        "request_id",
        "rows",
        "sink",
        "size_bytes",
        "stage",
        "started",
        "tag",
        "trace",
        "unwanted",
    )

    def __init__(
        self,
        *,
        rows: int,
        inputs: Sequence[bytes],
        key: BatchKey,
        deadline: float,
        sink: Sink,
        tag: Any = None,
        criticality: Criticality = Criticality.DEFAULT,
        request_id: str = "",
        trace: ItemTrace | None = None,
    ) -> None:
        self.rows = rows
        self.inputs = inputs
        self.key = key
        self.deadline = deadline
        self.sink = sink
        self.tag = tag
        self.criticality = criticality
        self.request_id = request_id
        self.trace = trace
        self.size_bytes = sum(map(len, inputs))
        self.arrived = 0.0
        self.started = 0.0
        self.stage = Stage.NEW
        self.unwanted = False
        self.parts: Any = None
        """What collects the parts of a request that is larger than a batch; None for an ordinary one."""


class Place(NamedTuple):
    """Where an item's rows are in its batch."""

    item: Item
    first_row: int


class OutputData(NamedTuple):
    """One output of a batch: what it is, its shape with the batch's rows, its bytes."""

    spec: TensorSpec
    shape: tuple[int, ...]
    data: bytes


class BatchAnswer:
    """What the model gave for one batch: `rows` rows in `compute_s` seconds, finished at `finished`."""

    __slots__ = ("_borders", "compute_s", "finished", "heads", "outputs", "rows")

    def __init__(self, rows: int, outputs: Sequence[OutputData], compute_s: float, finished: float = 0.0) -> None:
        self.rows = rows
        self.outputs = outputs
        self.compute_s = compute_s
        self.finished = finished
        self.heads: dict[int, bytes] = {}
        """Of those who encode it: what all of its answers of so many rows have in common."""
        self._borders: dict[int, Sequence[int]] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all outputs."""
        return sum([len(output.data) for output in self.outputs])

    def contents(self, first: int, rows: int) -> list[bytes]:
        """Return the bytes of some rows of each output."""
        if rows == self.rows:
            return [output.data for output in self.outputs]
        edges = map(self._borders_of, range(len(self.outputs)))
        return [output.data[edge[first] : edge[first + rows]] for output, edge in zip(self.outputs, edges, strict=True)]

    def tensors(self, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the outputs of some runs of rows, each (first, count), joined in this order."""
        if len(spans) == 1 and spans[0] == (0, self.rows):
            return [
                Tensor(output.spec.name, output.spec.datatype, output.shape, output.data) for output in self.outputs
            ]
        return [self._cut(index, spans) for index in range(len(self.outputs))]

    def _cut(self, index: int, spans: Sequence[tuple[int, int]]) -> Tensor:
        output, borders = self.outputs[index], self._borders_of(index)
        data = b"".join([output.data[borders[first] : borders[first + count]] for first, count in spans])
        rows = sum(count for _, count in spans)
        return Tensor(output.spec.name, output.spec.datatype, (rows, *output.shape[1:]), data)

    def _borders_of(self, index: int) -> Sequence[int]:
        if index not in self._borders:
            output = self.outputs[index]
            self._borders[index] = row_borders(output.spec.datatype, output.shape, output.data)
        return self._borders[index]


def merge_spans(places: Sequence[Place]) -> list[tuple[int, int]]:
    """Return the rows of `places` as (first, count), neighbours merged into one."""
    spans: list[tuple[int, int]] = []
    for place in places:
        if spans and sum(spans[-1]) == place.first_row:
            spans[-1] = (spans[-1][0], spans[-1][1] + place.item.rows)
        else:
            spans.append((place.first_row, place.item.rows))
    return spans


def group_by_sink(items: Sequence[Item]) -> Mapping[int, list[Item]]:
    """Return the items by the identity of who waits for them, in their order."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(id(item.sink), []).append(item)
    return groups
