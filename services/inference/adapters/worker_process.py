"""Model processes: started with exec, fed with frames over a Unix socket pair.

A worker is told to go by closing its socket, and is killed when it does not. Its standard input carries interruptions,
and its end tells the worker that nobody is left.
"""

import asyncio
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import structlog

import services
from services.common.child_process import ChildProcess
from services.common.tasks import spawn
from services.inference.adapters.batch_answer import batch_answer
from services.inference.adapters.heartbeat import Heartbeat, resident_bytes
from services.inference.domain.frame import (
    HEADER,
    Frame,
    FrameTensor,
    Kind,
    RunFailure,
    body_size_bytes,
    decode_frame,
    encode_frame,
    encode_shared,
    parse_done_meta,
    parse_failed_meta,
    run_meta,
    tensor_bytes,
)
from services.inference.domain.item import BatchAnswer
from services.inference.domain.ports import (
    LoadFailure,
    LoadReport,
    ModelBundle,
    ModelProcess,
    OnResult,
    WorkerExit,
)
from services.inference.domain.shared_memory import BATCHES_OUT, SHARED_FROM_BYTES, Segments, create_descriptors
from services.inference.domain.tensor import Tensor
from services.inference.domain.version import BatchingPolicy, GoldenRow, VersionKey, VersionSpec

_LOG: Final = structlog.get_logger(part="worker")
ROOT: Final = Path(services.__path__[0]).parent
_LOAD_IDENT: Final = 0
LOOKS: Final = 5
_LINES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one model process may take."""

    intra_op_threads: int = 1
    """Threads of one run; 0 = as many as the machine allows the process."""
    memory_limit_bytes: int = 0
    """Address space; 0 = no limit."""
    load_timeout_s: float = 120.0
    """From the start to READY."""
    close_timeout_s: float = 2.0
    """For a process that was told to go."""
    hung_s: float = 5.0
    """Without a heartbeat for so long a process that serves is ended."""


class Lifeline(Protocol):
    """The process of a `WorkerProcess`: a `ChildProcess`, or a place in one."""

    lines: deque[str]
    ended: asyncio.Future[int]

    @property
    def pid(self) -> int:
        """The process id."""

    def write(self, line: bytes) -> None:
        """Write a line to its standard input."""

    def close_input(self) -> None:
        """Tell it to go."""

    def kill(self) -> None:
        """End it now."""


@dataclass(frozen=True, slots=True)
class Links:
    """What leads to a process beside its socket."""

    process: Lifeline
    heartbeat: Heartbeat
    shared: Sequence[int]
    """Descriptors of the segments: those to the worker, then those from it."""


class WorkerLauncher:
    """Starts processes with the limits of the settings."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits

    async def start(self, spec: VersionSpec, on_result: OnResult) -> ModelProcess:
        """Start an empty process for a version. Raises `LoadFailure` when the machine cannot."""
        ours, theirs = socket.socketpair()
        heartbeat = Heartbeat()
        shared = create_descriptors(2 * BATCHES_OUT)
        try:
            descriptors = [theirs.fileno(), heartbeat.descriptor, *shared]
            process = ChildProcess(_command(spec.key, *descriptors), ROOT, descriptors)
        except OSError as error:
            ours.close()
            heartbeat.close()
            close_all(shared)
            raise LoadFailure(f"no process could be started: {error.strerror}") from None
        finally:
            theirs.close()
        links = Links(process, heartbeat, shared)
        worker = WorkerProcess(spec, links, self._limits, on_result)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        worker.watch()
        return worker


class WorkerProcess(asyncio.Protocol):
    """One model process, as a socket and a process id."""

    def __init__(
        self,
        spec: VersionSpec,
        links: Links,
        limits: WorkerLimits,
        on_result: OnResult,
    ) -> None:
        self.memory_bytes = 0
        self._key = spec.key
        self._outputs = spec.outputs
        self._process = links.process
        self._heartbeat = links.heartbeat
        self._shared = links.shared
        self._to_worker = Segments(links.shared[:BATCHES_OUT])
        self._from_worker = Segments(links.shared[BATCHES_OUT:])
        self._sent = self._answered = 0
        self._limits = limits
        self._on_result = on_result
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._batches: dict[int, tuple[int, Sequence[int]]] = {}
        self._answer: asyncio.Future[Frame] | None = None
        self._lost = asyncio.Event()
        self._ended: asyncio.Future[WorkerExit] = asyncio.get_running_loop().create_future()
        self._watching: asyncio.Task[None] | None = None
        self._serving = False
        self._memory_limit = 0
        self._memory_at_load = 0
        self._outgrown = asyncio.Event()
        self._cause = ""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def watch(self) -> None:
        """Follow the process to its end."""
        spawn(self._follow(), name=f"worker {self._key}")
        self._watching = spawn(self._look_after(), name=f"heartbeat of {self._key}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        # uvloop's transports have the methods without the base class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Collect bytes and handle every whole frame."""
        self._received += data
        while len(self._received) >= HEADER.size:
            header = bytes(self._received[: HEADER.size])
            end = HEADER.size + body_size_bytes(header)
            if len(self._received) < end:
                return
            body = bytes(memoryview(self._received)[HEADER.size : end])
            del self._received[:end]
            self._handle(decode_frame(header, memoryview(body), self._answer_memory))

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker is gone, or was told to go."""
        self._lost.set()

    async def load(self, spec: VersionSpec, bundle: ModelBundle, batching: BatchingPolicy) -> LoadReport:
        """Load, warm and check the version. Raises `LoadFailure`."""
        self._send(Frame(Kind.LOAD, _LOAD_IDENT, _plan(spec, bundle, batching, self._limits), ()))
        for row in spec.golden_rows:
            self._send(_golden_frame(row))
        document = await self._ask(Frame(Kind.START, _LOAD_IDENT, b"", ()))
        self.memory_bytes = self._memory_at_load = document["memory_bytes"]
        self._serving = True
        measured = tuple((int(rows), float(seconds)) for rows, seconds in document["measured"])
        return LoadReport(measured=measured, memory_bytes=document["memory_bytes"])

    async def warm(self, sizes: Sequence[int]) -> None:
        """Warm more batch sizes. Raises `LoadFailure`."""
        await self._ask(Frame(Kind.WARM, _LOAD_IDENT, json.dumps({"sizes": list(sizes)}).encode(), ()))

    def run(self, ident: int, outputs: Sequence[int], tensors: Sequence[FrameTensor], traceparent: str) -> None:
        """Send a batch."""
        self._batches[ident] = (tensors[0].shape[0], outputs)
        frame = Frame(Kind.RUN, ident, run_meta(outputs, traceparent), tensors)
        turn, self._sent = self._sent, self._sent + 1
        memory = self._room(turn, tensor_bytes(tensors))
        if memory is None:
            self._send(frame)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_shared(frame, memory))

    def interrupt(self, ident: int) -> None:
        """Ask the worker to stop a batch."""
        self._process.write(b"%d\n" % ident)

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()

    def limit_memory(self, limit_bytes: int) -> None:
        """Let `outgrown` return above so much resident memory; 0: never."""
        self._memory_limit = limit_bytes

    async def outgrown(self) -> None:
        """Wait until the process holds more than its limit and more than when it was loaded.

        A limit below what the version needs from the start would replace processes for ever.
        """
        await self._outgrown.wait()

    async def ended(self) -> WorkerExit:
        """Wait for the end and say how it ended."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Let the process go."""
        self._on_result = ignore
        if self._transport is not None:
            self._transport.close()
        self._process.close_input()
        try:
            async with asyncio.timeout(self._limits.close_timeout_s):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()

    async def _follow(self) -> None:
        await self._lost.wait()
        # The socket may be lost with the process alive: then nobody can use it any more.
        try:
            async with asyncio.timeout(self._limits.close_timeout_s):
                await asyncio.shield(self._process.ended)
        except TimeoutError:
            self.kill()
        code = await self._process.ended
        how = self._exit(code)
        if code != 0:
            _LOG.warning("worker_ended", version=str(self._key), pid=self.pid, how=str(how), lines=how.lines)
        self._let_links_go()
        if self._transport is not None:
            self._transport.close()
        self._ended.set_result(how)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LoadFailure(f"its process {how} while it was loaded"))

    def _let_links_go(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._heartbeat.close()
        close_all(self._shared)

    def _exit(self, code: int) -> WorkerExit:
        lines = tuple(self._process.lines)[-_LINES_SHOWN:]
        return WorkerExit(max(code, 0), max(-code, 0), self.memory_bytes, lines, time.time(), self._cause, self.pid)

    async def _look_after(self) -> None:
        """Look at heartbeat and memory now and then.

        What counts is how often we looked and saw no beat, not the clock: when this process was frozen itself, the
        worker is not to blame.
        """
        missed, pause_s = 0, self._limits.hung_s / LOOKS
        while True:
            await asyncio.sleep(pause_s)
            missed = 0 if self._heartbeat.beaten() or not self._serving else missed + 1
            if missed == LOOKS:
                self._cause = no_sign_of_life(self._limits.hung_s)
                self.kill()
                return
            self.memory_bytes = resident_bytes(self.pid) or self.memory_bytes
            limit = self._memory_limit
            if limit and self.memory_bytes > max(limit, self._memory_at_load):
                self._outgrown.set()

    async def _ask(self, frame: Frame) -> Mapping[str, Any]:
        """Send a control frame and return the answer's document. Raises `LoadFailure`."""
        waiting = self._answer = asyncio.get_running_loop().create_future()
        self._send(frame)
        try:
            async with asyncio.timeout(self._limits.load_timeout_s):
                answer = await waiting
        except TimeoutError:
            self.kill()
            raise LoadFailure(f"it was not ready within {self._limits.load_timeout_s:g} s") from None
        document: Mapping[str, Any] = json.loads(answer.meta)
        if answer.kind is Kind.REFUSED:
            raise LoadFailure(document["message"], corrupt_digest=document["corrupt_digest"])
        return document

    def _send(self, frame: Frame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(encode_frame(frame))

    def _room(self, turn: int, size: int) -> memoryview | None:
        """Return shared memory for a batch; None where the socket is better, or all that is left."""
        if size < SHARED_FROM_BYTES:
            return None
        try:
            return self._to_worker.of(turn).room(size)
        except OSError:
            return None

    def _answer_memory(self, size: int) -> memoryview:
        return self._from_worker.of(self._answered).view(size)

    def _handle(self, frame: Frame) -> None:
        if frame.kind in {Kind.DONE, Kind.FAILED}:
            self._answered += 1
        if frame.kind is Kind.DONE:
            rows, positions = self._batches.pop(frame.ident)
            specs = [self._outputs[position] for position in positions]
            self._on_result(frame.ident, batch_answer(specs, frame.tensors, rows, parse_done_meta(frame.meta) / 1e9))
        elif frame.kind is Kind.FAILED:
            self._batches.pop(frame.ident)
            self._on_result(frame.ident, RunFailure(*parse_failed_meta(frame.meta)))
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(frame)


def close_all(descriptors: Sequence[int]) -> None:
    """Close the segments of a process."""
    for descriptor in descriptors:
        os.close(descriptor)


def no_sign_of_life(hung_s: float) -> str:
    """Return why a process was ended that froze."""
    return f"gave no sign of life for {hung_s:g} s and was ended"


def _command(key: VersionKey, connection: int, heartbeat: int, *shared: int) -> list[str]:
    numbers = ",".join(map(str, shared))
    descriptors = [f"--socket={connection}", f"--heartbeat={heartbeat}", f"--shared={numbers}"]
    return [sys.executable, "-m", "services.inference.worker", str(key), *descriptors, f"--parent={os.getpid()}"]


def ignore(ident: int, result: BatchAnswer | RunFailure) -> None:
    """Take results that nobody waits for any more."""


def _plan(spec: VersionSpec, bundle: ModelBundle, batching: BatchingPolicy, limits: WorkerLimits) -> bytes:
    files = [{"path": file.path, "local": str(bundle.paths[file.path]), "digest": file.digest} for file in spec.files]
    document = {
        "files": files,
        "inputs": [(tensor.name, tensor.datatype, tensor.shape) for tensor in spec.inputs],
        "outputs": [(tensor.name, tensor.datatype, tensor.shape) for tensor in spec.outputs],
        "batch_sizes": batching.sizes(),
        "intra_op_threads": limits.intra_op_threads,
        "memory_limit_bytes": limits.memory_limit_bytes,
    }
    return json.dumps(document).encode()


def _golden_frame(row: GoldenRow) -> Frame:
    document = {
        "inputs": [tensor.name for tensor in row.inputs],
        "outputs": [tensor.name for tensor in row.outputs],
        "absolute": row.absolute_tolerance,
        "relative": row.relative_tolerance,
    }
    tensors = [_frame_tensor(tensor) for tensor in (*row.inputs, *row.outputs)]
    return Frame(Kind.GOLDEN, _LOAD_IDENT, json.dumps(document).encode(), tensors)


def _frame_tensor(tensor: Tensor) -> FrameTensor:
    return FrameTensor(tensor.datatype, tensor.shape, (tensor.data,))
