"""The loop of a model process that several versions share.

Each version has a connection of its own, with the frames of any model process, and a thread that answers them. Batches run
one at a time, in the order in which the versions ask. A version is loaded and warmed in its own thread beside them, one
version at a time and behind the batches: the runtime gives the interpreter free while it works.
"""

import contextlib
import ctypes
import mmap
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from services.inference.adapters.heartbeat import LOADING, RUNNING
from services.inference.adapters.load_plan import LoadPlan, LoadRefused
from services.inference.adapters.onnx_model import OnnxModel, RunInterrupted
from services.inference.adapters.rehearsal import rehearse
from services.inference.domain.frame import LEAVE, Frame
from services.inference.domain.shared_memory import BATCHES_OUT
from services.inference.worker.limits import background_priority, thread_ids
from services.inference.worker.loop import WorkerLoop, listen

_DESCRIPTORS: Final = 1 + 2 * BATCHES_OUT
_MESSAGE_BYTES: Final = 64
# A batch that has run wants the interpreter back from a load soon; usual are 5 ms.
_SWITCH_S: Final = 0.0005
_STOP_S: Final = 0.05


class Turns:
    """A lock that is given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._gates: deque[threading.Lock] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._gates)

    def take(self) -> None:
        """Wait for the turn."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._gates.append(gate)
        gate.acquire()

    def give(self) -> None:
        """Pass it on."""
        with self._guard:
            if self._gates:
                self._gates.popleft().release()
            else:
                self._taken = False


class Marks:
    """Where the process writes which version is at work: the front end reads it when the process has ended."""

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        self._turns = Turns()
        self._loads = threading.Lock()

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        """Hold the turn to run a batch. An error that leaves this ends the process: turn and mark stay."""
        self._turns.take()
        self._page[RUNNING] = _mark(number)
        yield
        self._page[RUNNING] = _mark(0)
        self._turns.give()

    @contextmanager
    def loading(self, number: int) -> Iterator[None]:
        """Load or warm, one version at a time and behind the batches. Of errors only these do not end the process."""
        with self._loads:
            self._page[LOADING] = _mark(number)
            try:
                yield
            except (LoadRefused, MemoryError):
                self._page[LOADING] = _mark(0)
                raise
            self._page[LOADING] = _mark(0)


class _Tenant(WorkerLoop):
    """One version of the process."""

    def __init__(self, number: int, descriptors: Sequence[int], heartbeat: int, marks: Marks) -> None:
        self._number = number
        self._marks = marks
        self._segments = descriptors[1:]
        self._leaving = False
        self._gone = threading.Event()
        self._opened: OnnxModel | None = None
        super().__init__(socket.socket(fileno=descriptors[0]), heartbeat, self._segments)

    def live(self) -> None:
        """Answer frames until the version is let go, then leave nothing behind."""
        with contextlib.suppress(ConnectionError):
            self._answer_frames()
        self._gone.set()
        self._plan, self._model, self._opened, self._golden, self._body = None, None, None, [], bytearray()
        self._connection.close()
        self._heartbeat.close()
        for descriptor in self._segments:
            os.close(descriptor)

    def take_line(self, number: int) -> None:
        """Stop a batch, or everything: then the version is about to leave."""
        if number == LEAVE:
            self._leaving = True
            threading.Thread(target=self._stop, name=f"stop-{self._number}", daemon=True).start()
        else:
            self._interrupt(number)

    def _stop(self) -> None:
        """Interrupt whatever the model runs until the version has left: those that wait must not wait for it."""
        while not self._gone.wait(_STOP_S):
            model = self._opened
            if model is not None:
                model.interrupt()

    def _run(self, frame: Frame) -> None:
        with self._marks.running(self._number):
            if not self._leaving:
                # A connection that ends in the middle is seen at the next look for a frame.
                with contextlib.suppress(ConnectionError):
                    super()._run(frame)

    def _prepare(self, plan: LoadPlan) -> tuple[OnnxModel, list[tuple[int, float]]]:
        with self._marks.loading(self._number):
            before = thread_ids() - {threading.get_native_id()}
            # Opening holds the interpreter now and then: at low priority it would do so for long.
            model = self._opened = OnnxModel(plan)
            with background_priority(spared=before):
                try:
                    return model, rehearse(model, self._golden, plan.batch_sizes)
                except RunInterrupted:
                    raise LoadRefused("it was let go before it was loaded") from None

    def _warm(self, sizes: Sequence[int]) -> dict[str, Any]:
        spared = thread_ids() - {threading.get_native_id()}
        with self._marks.loading(self._number), background_priority(spared):
            return super()._warm(sizes)


class SharedLoop:
    """Takes versions in over a control socket until that or standard input ends."""

    def __init__(self, control: socket.socket, heartbeat: int) -> None:
        self._control = control
        self._heartbeat = heartbeat
        self._page = mmap.mmap(heartbeat, mmap.PAGESIZE)
        self._marks = Marks(self._page)
        self._tenants: dict[int, _Tenant] = {}

    def serve(self) -> None:
        """Take versions in. Each message is the number of one, with its connection and its segments."""
        threading.excepthook = _end
        sys.setswitchinterval(_SWITCH_S)
        threading.Thread(target=listen, args=(self._page, self._take_line), name="interrupts", daemon=True).start()
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, _DESCRIPTORS)
            if not message:
                os._exit(0)
            number = int(message)
            tenant = self._tenants[number] = _Tenant(number, descriptors, self._heartbeat, self._marks)
            threading.Thread(target=self._house, args=(number, tenant), name=f"version-{number}", daemon=True).start()

    def _house(self, number: int, tenant: _Tenant) -> None:
        tenant.live()
        del self._tenants[number]
        _give_memory_back()

    def _take_line(self, line: bytes) -> None:
        """Take "<version> <batch>"."""
        version, batch = map(int, line.split())
        tenant = self._tenants.get(version)
        if tenant is not None:
            tenant.take_line(batch)


def _mark(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _give_memory_back() -> None:
    """Return freed memory to the machine; the allocator would keep it for what this process loads next."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # only the GNU library keeps so much
        libc.malloc_trim(0)


def _end(arguments: threading.ExceptHookArgs) -> None:
    """An error that nobody expected ends the process, as it does where a version has one of its own."""
    threading.__excepthook__(arguments)
    sys.stderr.flush()
    os._exit(1)
