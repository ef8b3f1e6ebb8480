"""The loop of the model process: a frame in, the model runs, a frame out.

One thread reads, runs and writes, so a batch costs no hand-over between threads. A second one sleeps on standard input,
over which the front end asks to stop a run; its end means that the front end is gone. It also shows that the process
lives, by counting up in a page that the front end looks at.
"""

import json
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from services.inference.adapters.load_plan import LoadPlan, LoadRefused, parse_plan
from services.inference.adapters.onnx_model import OnnxModel
from services.inference.adapters.rehearsal import Golden, rehearse, warm
from services.inference.adapters.run_batch import run_batch
from services.inference.adapters.values import array_from_bytes
from services.inference.domain.frame import (
    HEADER,
    Failure,
    Frame,
    FrameTensor,
    Kind,
    RunFailure,
    body_size_bytes,
    decode_frame,
    done_meta,
    encode_frame,
    encode_shared,
    failed_meta,
    parse_run_meta,
    tensor_bytes,
)
from services.inference.domain.shared_memory import BATCHES_OUT, SHARED_FROM_BYTES, Segments
from services.inference.worker.limits import background_priority, limit_memory, memory_bytes

_STDIN: Final = 0
_JOIN_BYTES: Final = 1 << 16
_REMEMBERED: Final = 64
_COUNTER: Final = struct.Struct("<Q")
_BEAT_S: Final = 0.2


class WorkerLoop:
    """Serves one socket until the other side closes it."""

    def __init__(self, connection: socket.socket, heartbeat: int, shared: Sequence[int]) -> None:
        self._connection = connection
        self._heartbeat = mmap.mmap(heartbeat, mmap.PAGESIZE)
        self._from_front = Segments(shared[:BATCHES_OUT])
        self._to_front = Segments(shared[BATCHES_OUT:])
        self._answered = 0
        self._plan: LoadPlan | None = None
        self._golden: list[Golden] = []
        self._model: OnnxModel | None = None
        self._body = bytearray(_JOIN_BYTES)
        self._current = 0
        self._interrupted: list[int] = []

    def serve(self) -> None:
        """Answer frames until the socket is closed."""
        threading.Thread(target=listen, args=(self._heartbeat, self._take_line), name="interrupts", daemon=True).start()
        self._answer_frames()

    def _answer_frames(self) -> None:
        while (frame := self._receive()) is not None:
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.RUN:
            self._run(frame)
        elif frame.kind is Kind.LOAD:
            self._plan = parse_plan(frame.meta)
        elif frame.kind is Kind.GOLDEN:
            self._golden.append(_golden(frame))
        elif frame.kind is Kind.START:
            self._answer_load(frame.ident, Kind.LOADED, self._load)
        elif frame.kind is Kind.WARM:
            sizes = json.loads(frame.meta)["sizes"]
            self._answer_load(frame.ident, Kind.WARMED, lambda: self._warm(sizes))

    def _answer_load(self, ident: int, kind: Kind, work: Any) -> None:
        try:
            document, answer = work(), kind
        except LoadRefused as refused:
            document = {"message": refused.message, "corrupt_digest": refused.corrupt_digest}
            answer = Kind.REFUSED
        except MemoryError:
            document, answer = {"message": "the model needs more memory than a worker may have"}, Kind.REFUSED
        self._send(Frame(answer, ident, json.dumps(document).encode(), ()))

    def _load(self) -> dict[str, Any]:
        plan = self._plan
        if plan is None:
            raise LoadRefused("there is nothing to load")
        limit_memory(plan.memory_limit_bytes)
        self._model, measured = self._prepare(plan)
        return {"measured": measured, "memory_bytes": memory_bytes()}

    def _prepare(self, plan: LoadPlan) -> tuple[OnnxModel, list[tuple[int, float]]]:
        with background_priority():
            model = OnnxModel(plan)
            return model, rehearse(model, self._golden, plan.batch_sizes)

    def _warm(self, sizes: Sequence[int]) -> dict[str, Any]:
        if self._model is None:
            raise LoadRefused("there is nothing to warm")
        return {"measured": warm(self._model, self._golden, sizes)}

    def _run(self, frame: Frame) -> None:
        model = self._model
        # Set before the look at the list, so that an interruption is seen there or finds the run.
        self._current = frame.ident
        if model is None or frame.ident in self._interrupted:
            self._fail(frame.ident, Failure.INTERRUPTED, "")
            return
        positions, _ = parse_run_meta(frame.meta)
        done = run_batch(model, positions, frame.tensors)
        self._current = 0
        if isinstance(done, RunFailure):
            self._fail(frame.ident, done.failure, done.text)
        else:
            self._answer(frame.ident, *done)

    def _answer(self, ident: int, tensors: Sequence[FrameTensor], compute_ns: int) -> None:
        frame, size = Frame(Kind.DONE, ident, done_meta(compute_ns), tensors), tensor_bytes(tensors)
        if size < SHARED_FROM_BYTES:
            self._send(frame)
        else:
            try:
                memory = self._to_front.of(self._answered).room(size)
            except OSError:
                self._fail(ident, Failure.OUT_OF_MEMORY, "")
                return
            self._connection.sendall(encode_shared(frame, memory))
        self._answered += 1

    def _fail(self, ident: int, failure: Failure, text: str) -> None:
        self._send(Frame(Kind.FAILED, ident, failed_meta(failure, text), ()))
        self._answered += 1

    def _take_line(self, line: bytes) -> None:
        """Stop the batch that the front end names."""
        self._interrupt(int(line))

    def _interrupt(self, ident: int) -> None:
        self._interrupted = [*self._interrupted[-_REMEMBERED:], ident]
        model = self._model
        if self._current == ident and model is not None:
            model.interrupt()

    def _receive(self) -> Frame | None:
        header = bytearray(HEADER.size)
        if not self._fill(memoryview(header)):
            return None
        size = body_size_bytes(header)
        if size > len(self._body):
            self._body = bytearray(size)
        body = memoryview(self._body)[:size]
        return decode_frame(header, body, self._batch_memory) if self._fill(body) else None

    def _batch_memory(self, size: int) -> memoryview:
        return self._from_front.of(self._answered).view(size)

    def _fill(self, view: memoryview) -> bool:
        while view:
            count = self._connection.recv_into(view)
            if count == 0:
                return False
            view = view[count:]
        return True

    def _send(self, frame: Frame) -> None:
        pieces = encode_frame(frame)
        if sum(map(len, pieces)) <= _JOIN_BYTES:
            self._connection.sendall(b"".join(pieces))
            return
        for piece in pieces:
            self._connection.sendall(piece)


def listen(heartbeat: mmap.mmap, take_line: Callable[[bytes], None]) -> None:
    """Take lines from standard input; the end of the stream ends the process. Count up between them."""
    rest, beats = b"", 0
    while True:
        beats += 1
        heartbeat[: _COUNTER.size] = _COUNTER.pack(beats)
        readable, _, _ = select.select([_STDIN], [], [], _BEAT_S)
        if not readable:
            continue
        chunk = os.read(_STDIN, 4096)
        if not chunk:
            os._exit(0)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            take_line(line)


def _golden(frame: Frame) -> Golden:
    """Copy the values: the frame's memory is used again by the next one."""
    document = json.loads(frame.meta)
    names = [*document["inputs"], *document["outputs"]]
    arrays = {}
    for number, (name, tensor) in enumerate(zip(names, frame.tensors, strict=True)):
        array = np.array(array_from_bytes(tensor.datatype, tensor.shape, tensor.parts[0]))
        arrays[number < len(document["inputs"]), name] = array
    return Golden(
        inputs={name: arrays[True, name] for name in document["inputs"]},
        outputs={name: arrays[False, name] for name in document["outputs"]},
        absolute=document["absolute"],
        relative=document["relative"],
    )
