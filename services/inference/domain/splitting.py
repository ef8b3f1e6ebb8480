"""A request with more rows than a batch may hold: run in parts, answered as one.

Splitting was chosen over refusing: a caller of the Open Inference Protocol need not know the batch size. The parts are
ordinary requests of the queue, so they share batches with others; the first that fails fails the whole.
"""

from collections.abc import Callable, Sequence

from services.common.errors import ServiceError
from services.inference.domain.item import BatchAnswer, BatchKey, Item, OutputData, Place, Sink, merge_spans
from services.inference.domain.tensor import TensorSpec, row_borders


class PartsSink:
    """Collects the answers of the parts and hands the joined one on."""

    def __init__(self, whole: Item, specs: Sequence[TensorSpec], cancel: Callable[[Item], None]) -> None:
        self.parts: list[Item] = []
        self._whole = whole
        self._specs = specs
        self._cancel = cancel
        self._answers: dict[int, tuple[BatchAnswer, Place]] = {}
        self._ended = False

    def deliver(self, answer: BatchAnswer, places: Sequence[Place]) -> None:
        """Keep the parts' answers; with the last one the whole is answered."""
        for place in places:
            self._answers[place.item.tag] = (answer, place)
        if len(self._answers) == len(self.parts) and not self._ended:
            self._ended = True
            self._whole.started = min(part.started for part in self.parts)
            self._whole.sink.deliver(self._join(), [Place(self._whole, 0)])

    def fail(self, items: Sequence[Item], error: ServiceError) -> None:
        """Fail the whole once, and take the other parts back."""
        if self._ended:
            return
        self._ended = True
        for part in self.parts:
            self._cancel(part)
        self._whole.sink.fail([self._whole], error)

    def cancel(self) -> None:
        """Take all parts back."""
        self._ended = True
        for part in self.parts:
            self._cancel(part)

    def _join(self) -> BatchAnswer:
        ordered = [self._answers[index] for index in range(len(self.parts))]
        pieces = [answer.tensors(merge_spans([place])) for answer, place in ordered]
        by_name = {spec.name: spec for spec in self._specs}
        outputs = []
        for same in zip(*pieces, strict=True):
            shape = (self._whole.rows, *same[0].shape[1:])
            data = b"".join(tensor.data for tensor in same)
            outputs.append(OutputData(by_name[same[0].name], shape, data))
        compute_s = sum(answer.compute_s for answer, _ in ordered)
        return BatchAnswer(self._whole.rows, outputs, compute_s, max(answer.finished for answer, _ in ordered))


def split_item(item: Item, inputs: Sequence[TensorSpec], max_rows: int, sink: Sink) -> list[Item]:
    """Return parts of at most `max_rows` rows each, tagged 0, 1, 2 and so on, that answer to `sink`."""
    borders = [
        row_borders(spec.datatype, (item.rows, *trailing), data)
        for spec, trailing, data in zip(inputs, item.key.trailing, item.inputs, strict=True)
    ]
    key = BatchKey(item.key.outputs, item.key.trailing)
    parts = []
    for tag, first in enumerate(range(0, item.rows, max_rows)):
        stop = min(first + max_rows, item.rows)
        data = [whole[edge[first] : edge[stop]] for whole, edge in zip(item.inputs, borders, strict=True)]
        part = Item(
            rows=stop - first,
            inputs=data,
            key=key,
            deadline=item.deadline,
            sink=sink,
            tag=tag,
            criticality=item.criticality,
            request_id=item.request_id,
            trace=item.trace,
        )
        parts.append(part)
    return parts


def last_row(spec: TensorSpec, trailing: Sequence[int], rows: int, data: bytes) -> bytes:
    """Return the bytes of the last of a tensor's rows."""
    edge = row_borders(spec.datatype, (rows, *trailing), data)
    return data[edge[rows - 1] :]
