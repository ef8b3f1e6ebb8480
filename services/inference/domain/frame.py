"""The messages between the front end and a model's worker process: one frame per batch, raw tensor bytes.

A frame is a fixed header, a small meta part, tensor headers, and the tensors' bytes. Each tensor starts at a multiple
of 64 bytes of the frame's body, so that the worker hands the memory to the runtime without a copy. Nothing is pickled.
This module is shared with the worker process and imports no transport.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.inference.domain.tensor import DATATYPES

ALIGNMENT_BYTES: Final = 64
HEADER: Final = struct.Struct("<QBQIH5x")
"""Bytes of the body, kind, id, bytes of meta, number of tensors."""
MAX_BODY_BYTES: Final = 1 << 31
_RUN: Final = struct.Struct("<IH")
_DONE: Final = struct.Struct("<Q")
_FAILED: Final = struct.Struct("<B")
_NUMBER: Final = {name: number for number, name in enumerate(DATATYPES)}

Buffer = bytes | bytearray | memoryview


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
class FrameTensor:
    """One tensor of a frame, by position; names are in the plan."""

    datatype: str
    shape: tuple[int, ...]
    parts: Sequence[Buffer]
    """The bytes, in pieces that are to be joined."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: Kind
    ident: int
    meta: bytes
    tensors: Sequence[FrameTensor]


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
    pieces[0] = HEADER.pack(offset, frame.kind, frame.ident, len(frame.meta), len(frame.tensors))
    return pieces


def decode_frame(header: Buffer, body: memoryview) -> Frame:
    """Return the frame; its tensors are views into `body`. Raises `ValueError` when the bytes are no frame."""
    _, kind, ident, meta_bytes, count = HEADER.unpack(header)
    meta = bytes(body[:meta_bytes])
    try:
        return Frame(Kind(kind), ident, meta, tuple(_tensors(body, meta_bytes, count)))
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
    size = sum(map(len, tensor.parts))
    return struct.pack(f"<BBQ{rank}q", _NUMBER[tensor.datatype], rank, size, *tensor.shape)


def _tensors(body: memoryview, offset: int, count: int) -> Iterator[FrameTensor]:
    headers = []
    for _ in range(count):
        number, rank, size = struct.unpack_from("<BBQ", body, offset)
        shape = struct.unpack_from(f"<{rank}q", body, offset + 10)
        headers.append((DATATYPES[number], shape, size))
        offset += 10 + 8 * rank
    for datatype, shape, size in headers:
        offset += -offset % ALIGNMENT_BYTES
        yield FrameTensor(datatype, shape, (body[offset : offset + size],))
        offset += size
