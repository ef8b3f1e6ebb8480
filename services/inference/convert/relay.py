"""Frames of the relay: what waits for one turn of the loop leaves together, in messages of bounded size."""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from interlock.inference.v1 import relay_pb2 as pb

# Beside the message itself: ids, metadata, the status of a failure.
FRAME_OVERHEAD_BYTES: Final = 1024 * 1024
_JOINED_BYTES: Final = 256 * 1024
_Each = TypeVar("_Each", pb.RelayedCall, pb.RelayedAnswer)


def joined(waiting: Sequence[_Each]) -> Iterator[list[_Each]]:
    """Yield what waits in groups, each of which one frame may hold."""
    group: list[_Each] = []
    size_bytes = 0
    for each in waiting:
        own_bytes = each.ByteSize()
        if group and size_bytes + own_bytes > _JOINED_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(each)
        size_bytes += own_bytes
    if group:
        yield group
