"""The messages between the front end and a model's worker process: one frame per batch, raw tensor bytes.

A frame is a fixed header, a small meta part, tensor headers, and the tensors' bytes. Small tensors follow in the frame;
large ones lie in a piece of memory that both processes map, and only the rest of the frame is sent. Each tensor starts at
a multiple of 64 bytes, so that the worker hands the memory to the runtime without a copy. Nothing is pickled.
This module is shared with the worker process and imports no transport.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from services.inference.domain.tensor import DATATYPES

ALIGNMENT_BYTES: Final = 64
HEADER: Final = struct.Struct("<QBQIHB4x")
"""Bytes of the body, kind, id, bytes of meta, number of tensors, and whether these lie in shared memory."""
MAX_BODY_BYTES: Final = 1 << 31
_RUN: Final = struct.Struct("<IH")
_DONE: Final = struct.Struct("<Q")
_FAILED: Final = struct.Struct("<B")
_NUMBER: Final = {name: number for number, name in enumerate(DATATYPES)}

LEAVE: Final = 0
"""In place of the number of a batch that is to stop: the version leaves the process that it shares."""

Buffer = bytes | bytearray | memoryview
Shared = Callable[[int], memoryview]
"""Gives so many bytes of the shared memory that the frame's tensors lie in."""


class Kind(IntEnum):
    """What a frame says. The first group goes to the worker, the second comes back."""

    LOAD = 1
    """Load the model; meta is the plan as JSON."""
    GOLDEN = 2
    """A golden row; meta is JSON, tensors are the inputs and then the outputs."""
    START = 3
    """The plan is complete: load, warm, check."""
    RUN = 4
    """Run a batch; meta names the outputs."""
    WARM = 5
    """Warm one more batch size; meta is JSON."""

    LOADED = 16
    """The model is ready; meta is JSON."""
    REFUSED = 17
    """The model cannot be loaded; meta is JSON."""
    DONE = 18
    """The answer to a batch; meta holds the nanoseconds in the model."""
    FAILED = 19
    """The batch failed; meta is a failure number and a text."""
    WARMED = 20
    """The batch size is warm."""


class Failure(IntEnum):
    """Why a batch failed."""

    MODEL_REFUSED = 1
    """The model raised on these values."""
    INTERRUPTED = 2
    """Nobody waited any more, the run was stopped."""
    BAD_OUTPUT = 3
    """The model gave something that is no tensor of the signature."""
    OUT_OF_MEMORY = 4
    """There was no memory for a batch of this size."""


@dataclass(frozen=True, slots=True)
class RunFailure:
    """Why a batch has no answer; the text is for people and names no path and no class."""

    failure: Failure
    text: str


# Made for each batch, as the frames are; frozen dataclasses cost several times as much.
class FrameTensor(NamedTuple):
    """One tensor of a frame, by position; names are in the plan."""

    datatype: str
    shape: tuple[int, ...]
    parts: Sequence[Buffer]
    """The bytes, in pieces that are to be joined."""


class Frame(NamedTuple):
    """One message."""

    kind: Kind
    ident: int
    meta: bytes
    tensors: Sequence[FrameTensor]


def no_shared_memory(size: int) -> memoryview:
    """Refuse: this side has none."""
    raise ValueError(f"the frame wants {size} bytes of shared memory, and there is none")


def tensor_bytes(tensors: Sequence[FrameTensor]) -> int:
    """Return the room that tensors need, each at a multiple of 64 bytes."""
    return sum(_room(sum(map(len, tensor.parts))) for tensor in tensors)


def encode_shared(frame: Frame, memory: memoryview) -> bytes:
    """Put the tensors into shared memory, which has room for them, and return the frame without them."""
    offset = 0
    for tensor in frame.tensors:
        start = offset
        for part in tensor.parts:
            memory[offset : offset + len(part)] = part
            offset += len(part)
        offset = start + _room(offset - start)
    shapes = b"".join(_tensor_header(tensor) for tensor in frame.tensors)
    size = len(frame.meta) + len(shapes)
    header = HEADER.pack(size, frame.kind, frame.ident, len(frame.meta), len(frame.tensors), 1)
    return b"".join((header, frame.meta, shapes))


def encode_frame(frame: Frame) -> list[Buffer]:
    """Return the pieces to write; tensors are not copied. Raises `ValueError` above 2 GiB."""
    shapes = b"".join(_tensor_header(tensor) for tensor in frame.tensors)
    offset = len(frame.meta) + len(shapes)
    pieces: list[Buffer] = [b"", frame.meta, shapes]
    for tensor in frame.tensors:
        padding = -offset % ALIGNMENT_BYTES
        pieces.append(bytes(padding))
        pieces.extend(tensor.parts)
        offset += padding + sum(map(len, tensor.parts))
    if offset > MAX_BODY_BYTES:
        raise ValueError(f"a frame holds at most {MAX_BODY_BYTES} bytes, got {offset}")
    pieces[0] = HEADER.pack(offset, frame.kind, frame.ident, len(frame.meta), len(frame.tensors), 0)
    return pieces


def decode_frame(header: Buffer, body: memoryview, shared: Shared = no_shared_memory) -> Frame:
    """Return the frame; its tensors are views into `body`, or into what `shared` gives.

    Raises `ValueError` when the bytes are no frame.
    """
    _, number, ident, meta_bytes, count, is_shared = HEADER.unpack(header)
    meta = bytes(body[:meta_bytes])
    try:
        kind = Kind(number)
        headers, end = _tensor_headers(body, meta_bytes, count)
        if is_shared:
            return Frame(kind, ident, meta, _tensors(headers, shared(_room_for(headers)), 0))
        return Frame(kind, ident, meta, _tensors(headers, body, end))
    except (struct.error, IndexError) as error:
        raise ValueError("the bytes are not a frame") from error


def body_size_bytes(header: Buffer) -> int:
    """Return how many bytes follow the header. Raises `ValueError` above 2 GiB."""
    size: int = HEADER.unpack(header)[0]
    if size > MAX_BODY_BYTES:
        raise ValueError(f"a frame holds at most {MAX_BODY_BYTES} bytes, got {size}")
    return size


def run_meta(outputs: Sequence[int], traceparent: str) -> bytes:
    """Return the meta of RUN: positions of the outputs to compute, and the trace the batch belongs to."""
    trace = traceparent.encode("ascii", "replace")[:256]
    return _RUN.pack(len(outputs), len(trace)) + bytes(outputs) + trace


def parse_run_meta(meta: bytes) -> tuple[tuple[int, ...], str]:
    """Return what `run_meta` packed."""
    count, trace_bytes = _RUN.unpack_from(meta)
    start = _RUN.size + count
    return tuple(meta[_RUN.size : start]), meta[start : start + trace_bytes].decode("ascii")


def done_meta(compute_ns: int) -> bytes:
    """Return the meta of DONE."""
    return _DONE.pack(compute_ns)


def parse_done_meta(meta: bytes) -> int:
    """Return the nanoseconds that the batch spent in the model."""
    nanoseconds: int = _DONE.unpack(meta)[0]
    return nanoseconds


def failed_meta(failure: Failure, text: str) -> bytes:
    """Return the meta of FAILED; the text is for people."""
    return _FAILED.pack(failure) + text.encode()[:1000]


def parse_failed_meta(meta: bytes) -> tuple[Failure, str]:
    """Return what `failed_meta` packed."""
    return Failure(meta[0]), meta[_FAILED.size :].decode("utf-8", "replace")


def _tensor_header(tensor: FrameTensor) -> bytes:
    rank = len(tensor.shape)
    return _shape_header(rank).pack(_NUMBER[tensor.datatype], rank, sum(map(len, tensor.parts)), *tensor.shape)


@lru_cache
def _shape_header(rank: int) -> struct.Struct:
    return struct.Struct(f"<BBQ{rank}q")


def _tensor_headers(body: memoryview, offset: int, count: int) -> tuple[list[tuple[str, tuple[int, ...], int]], int]:
    """Return datatype, shape and bytes of each tensor, and where the headers end."""
    headers = []
    for _ in range(count):
        number, _, size, *shape = _shape_header(body[offset + 1]).unpack_from(body, offset)
        headers.append((DATATYPES[number], tuple(shape), size))
        offset += 10 + 8 * len(shape)
    return headers, offset


def _tensors(
    headers: Sequence[tuple[str, tuple[int, ...], int]], memory: memoryview, offset: int
) -> tuple[FrameTensor, ...]:
    tensors = []
    for datatype, shape, size in headers:
        offset += -offset % ALIGNMENT_BYTES
        tensors.append(FrameTensor(datatype, shape, (memory[offset : offset + size],)))
        offset += size
    return tuple(tensors)


def _room(size: int) -> int:
    return size + -size % ALIGNMENT_BYTES


def _room_for(headers: Sequence[tuple[str, tuple[int, ...], int]]) -> int:
    return sum(_room(size) for _, _, size in headers)
