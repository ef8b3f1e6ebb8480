"""Requests of variable length, filled up to a few lengths so that they can share batches.

Zeros, and empty texts, go behind the values of each variable dimension. Only for models that ignore such filling: a
version's policy says so.
"""

from bisect import bisect_left
from collections.abc import Sequence

from services.inference.domain.item import BatchKey, Item
from services.inference.domain.tensor import BYTES, ITEM_SIZE, LENGTH_PREFIX_BYTES, TensorSpec, row_borders


def fill_lengths(item: Item, inputs: Sequence[TensorSpec], buckets: Sequence[int]) -> None:
    """Fill every variable dimension of a request up to the next bucket. What is longer than the last stays as it is."""
    shapes = [_filled(spec, shape, buckets) for spec, shape in zip(inputs, item.key.trailing, strict=True)]
    if tuple(shapes) == item.key.trailing:
        return
    item.inputs = [
        _fill(spec, (item.rows, *shape), (item.rows, *wanted), data)
        for spec, shape, wanted, data in zip(inputs, item.key.trailing, shapes, item.inputs, strict=True)
    ]
    item.size_bytes = sum(map(len, item.inputs))
    item.key = BatchKey(item.key.outputs, tuple(shapes), item.key.solo)


def _filled(spec: TensorSpec, shape: Sequence[int], buckets: Sequence[int]) -> tuple[int, ...]:
    if spec.datatype == BYTES and len(shape) != 1:
        return tuple(shape)  # elements of many dimensions would have to be walked one by one
    return tuple(
        _next(size, buckets) if declared == -1 else size for declared, size in zip(spec.trailing, shape, strict=True)
    )


def _next(size: int, buckets: Sequence[int]) -> int:
    index = bisect_left(buckets, size)
    return buckets[index] if index < len(buckets) else size


def _fill(spec: TensorSpec, shape: tuple[int, ...], wanted: tuple[int, ...], data: bytes) -> bytes:
    if shape == wanted:
        return data
    if spec.datatype == BYTES:
        filling = bytes(LENGTH_PREFIX_BYTES * (wanted[1] - shape[1]))
        edge = row_borders(BYTES, shape, data)
        return b"".join(data[edge[row] : edge[row + 1]] + filling for row in range(shape[0]))
    # A sixth of a second of every start, and few versions have length buckets.
    import numpy as np  # noqa: PLC0415

    element = np.dtype((np.void, ITEM_SIZE[spec.datatype]))
    array = np.zeros(wanted, element)
    array[tuple(slice(size) for size in shape)] = np.frombuffer(data, element).reshape(shape)
    return array.tobytes()
