"""Memory that the front end and a model process both map: large batches cross it without going through the kernel.

Each direction has as many segments as batches may be out. The n-th batch and its answer use segment n modulo that, so a
segment is written again only after what it held was answered, and neither side has to say which it means. A segment grows
to its largest batch and stays so until the process ends. This module is shared with the worker process.
"""

import mmap
import os
from collections.abc import Sequence
from typing import Final

BATCHES_OUT: Final = 2
"""Batches at a worker at a time."""
SHARED_FROM_BYTES: Final = 8 * 1024
"""Below this the tensors follow in the frame: one more copy costs less than the segment's book-keeping."""


class Segment:
    """One file in memory, mapped as far as it was needed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._view = memoryview(b"")

    def view(self, size: int) -> memoryview:
        """Return the first bytes, as the other side wrote them."""
        if size > len(self._view):
            # What still looks at the old mapping keeps it; both show the same memory.
            self._view = memoryview(mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size))
        return self._view[:size]

    def room(self, size: int) -> memoryview:
        """Return the first bytes to write to; the file grows when it must. Raises `OSError` when memory is short."""
        if size > len(self._view) and size > os.fstat(self._descriptor).st_size:
            wanted = 1 << max(size - 1, mmap.PAGESIZE).bit_length()
            os.posix_fallocate(self._descriptor, 0, wanted)
        return self.view(size)


class Segments:
    """The segments of one direction, used in turn."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._segments = [Segment(descriptor) for descriptor in descriptors]

    def of(self, turn: int) -> Segment:
        """Return the segment of the n-th batch."""
        return self._segments[turn % len(self._segments)]


def create_descriptors(count: int) -> list[int]:
    """Return files in memory that live as long as somebody holds them open or mapped."""
    return [os.memfd_create("interlock-batch") for _ in range(count)]
