"""A model process that several small versions share, and each version's place in it.

A place has a socket and shared memory of its own, so that it is used, and fails, like a process of one version. What they
have in common is here: the process, its heartbeat, its memory, and who is to blame when it ends.

A process that has outgrown its memory, or in which something hangs that disturbs nobody yet, takes nobody in any more: all
its versions are asked to move, serve from the next process as soon as they are loaded there, and the last one that leaves
ends it.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from services.common.child_process import ChildProcess
from services.common.tasks import spawn, to_the_end
from services.inference.adapters.heartbeat import Heartbeat, resident_bytes
from services.inference.adapters.worker_process import (
    LOOKS,
    ROOT,
    Links,
    WorkerLimits,
    WorkerProcess,
    close_all,
    ignore,
    no_sign_of_life,
)
from services.inference.domain.frame import LEAVE
from services.inference.domain.ports import LoadFailure, ModelProcess, OnResult, WorkerExit
from services.inference.domain.shared_memory import BATCHES_OUT, create_descriptors
from services.inference.domain.sharing import MOST_VERSIONS, Offenders, outgrown
from services.inference.domain.version import VersionKey, VersionSpec

_LOG: Final = structlog.get_logger(part="worker")
# A batch of a version that has left may run this long, in looks at the process; then it is ended.
_LEAVING_LOOKS: Final = 2 * LOOKS


class SharedProcesses:
    """Finds each version a place, in as few processes as may be."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._offenders = Offenders()
        self._processes: list[SharedProcess] = []

    def welcomes(self, key: VersionKey) -> bool:
        """Return whether a version may share."""
        return not self._offenders.proven(key)

    async def start(self, spec: VersionSpec, on_result: OnResult) -> ModelProcess:
        """Give a version an empty place. Raises `LoadFailure` when the machine cannot."""
        self._processes = [process for process in self._processes if process.open]
        fitting = [process for process in self._processes if process.has_room_for(spec.key)]
        ours, theirs = socket.socketpair()
        shared = create_descriptors(2 * BATCHES_OUT)
        try:
            process = fitting[0] if fitting else self._new()
            place = process.take_in(spec.key, [theirs.fileno(), *shared])
        except OSError as error:
            ours.close()
            close_all(shared)
            raise LoadFailure(f"no process could be started: {error.strerror}") from None
        finally:
            theirs.close()
        worker = SharedWorker(spec, place, shared, self._limits, on_result)
        place.worker = worker
        worker.watch()
        try:
            await to_the_end(asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours))
        except asyncio.CancelledError:
            await worker.close()
            raise
        return worker

    def _new(self) -> "SharedProcess":
        process = SharedProcess(self._limits, self._blame)
        self._processes.append(process)
        return process

    def _blame(self, key: VersionKey) -> None:
        self._offenders.blame(key, asyncio.get_running_loop().time())


class SharedProcess:
    """The process: versions come and go, the last one ends it."""

    def __init__(self, limits: WorkerLimits, blame: Callable[[VersionKey], None]) -> None:
        """Start it, empty. Raises `OSError`."""
        self.open = True
        """Whether it takes versions in."""
        self.cause = ""
        """Why it was ended from here."""
        self._limits = limits
        self._blame = blame
        self._places: dict[int, Place] = {}
        self._given = 0
        self.heartbeat = Heartbeat()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        descriptors = [theirs.fileno(), self.heartbeat.descriptor]
        try:
            self.process = ChildProcess(_command(*descriptors), ROOT, descriptors)
        except OSError:
            self._control.close()
            self.heartbeat.close()
            raise
        finally:
            theirs.close()
        self._watching = spawn(self._look_after(), name="heartbeat of a shared process")
        self._following = spawn(self._follow(), name="shared process")

    def has_room_for(self, key: VersionKey) -> bool:
        """Return whether a version may come: a second instance of it belongs elsewhere."""
        return len(self._places) < MOST_VERSIONS and all(place.key != key for place in self._places.values())

    def take_in(self, key: VersionKey, descriptors: Sequence[int]) -> "Place":
        """Give a version a place. Raises `OSError` when the process does not listen any more."""
        self._given += 1
        place = Place(self, self._given, key)
        try:
            socket.send_fds(self._control, [b"%d" % place.number], descriptors)
        except OSError:
            self.empty()
            raise
        self._places[place.number] = place
        return place

    def let_go(self, number: int) -> None:
        """A version leaves, and the process with the last one."""
        if self._places.pop(number, None) is None:
            return
        self.process.write(b"%d %d\n" % (number, LEAVE))
        self._end_when_empty()

    def empty(self) -> None:
        """Take nobody in any more, and ask those inside to move."""
        self.open = False
        for place in self._places.values():
            if place.worker is not None:
                place.worker.move()
        self._end_when_empty()

    def end_for(self, number: int) -> None:
        """Something that a version waits for does not end.

        When that is its own batch, which holds up all others, the process is ended. When it is its load, or another
        version's batch, nobody is failed for it: who can, moves.
        """
        running, loading = self.heartbeat.at_work() if self._alive else (0, 0)
        if running == number:
            self.process.kill()
            return
        if loading == number:
            self._blame_place(number)
        self.empty()

    def end(self) -> None:
        """End it now."""
        self.process.kill()

    async def gone(self) -> None:
        """Wait until a process that nobody is in has ended; it is helped when it does not."""
        if self._places:
            return
        try:
            async with asyncio.timeout(self._limits.close_timeout_s):
                await asyncio.shield(self.process.ended)
        except TimeoutError:
            self.process.kill()
        await asyncio.shield(self._following)

    def _end_when_empty(self) -> None:
        if not self._places:
            self.open = False
            self.process.close_input()

    @property
    def _alive(self) -> bool:
        return not self._following.done()

    async def _follow(self) -> None:
        code = await self.process.ended
        self.open = False
        self._watching.cancel()
        guilty = {number for number in self.heartbeat.at_work() if number in self._places}
        self.heartbeat.close()
        self._control.close()
        if self._places:
            names = {number: str(place.key) for number, place in self._places.items()}
            at_work = [names[number] for number in sorted(guilty)]
            _LOG.warning("shared_worker_ended", pid=self.process.pid, at_work=at_work, versions=list(names.values()))
        for number in guilty:
            self._blame_place(number)
        for number, place in self._places.items():
            place.innocent = bool(guilty) and number not in guilty
            if not place.ended.done():
                place.ended.set_result(code)

    def _blame_place(self, number: int) -> None:
        place = self._places.get(number)
        if place is not None:
            self._blame(place.key)

    async def _look_after(self) -> None:
        """Look at heartbeat, memory and leavers now and then; what counts is how often we looked, not the clock."""
        missed = leaving = 0
        while True:
            await asyncio.sleep(self._limits.hung_s / LOOKS)
            workers = [place.worker for place in self._places.values() if place.worker is not None]
            serving = any(worker.serving for worker in workers)
            missed = 0 if self.heartbeat.beaten() or not serving else missed + 1
            running, _ = self.heartbeat.at_work()
            leaving = leaving + 1 if running and running not in self._places else 0
            if missed == LOOKS:
                self._kill(no_sign_of_life(self._limits.hung_s))
            elif leaving == _LEAVING_LOOKS:
                self._kill("did not stop the batch of a version that had left and was ended")
            self._look_at_memory(workers)

    def _kill(self, cause: str) -> None:
        self.cause = cause
        self.process.kill()

    def _look_at_memory(self, workers: Sequence["SharedWorker"]) -> None:
        """The process may hold what its versions may hold together. Where one of them has no limit, there is none."""
        resident = resident_bytes(self.process.pid)
        if not resident:
            return
        for worker in workers:
            worker.memory_bytes = resident
        limits = [worker.memory_limit_bytes for worker in workers]
        at_load = max((worker.memory_at_load_bytes for worker in workers), default=0)
        if self.open and outgrown(resident, limits, at_load):
            self.empty()


class Place:
    """A version's place in a process, in the form of a process of its own."""

    def __init__(self, process: SharedProcess, number: int, key: VersionKey) -> None:
        self.key = key
        self.number = number
        self.innocent = False
        """Whether the process ended while another version was at work."""
        self.worker: SharedWorker | None = None
        self.lines = process.process.lines
        self.heartbeat = process.heartbeat
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._process = process

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.process.pid

    @property
    def cause(self) -> str:
        """Why the process was ended from here."""
        return self._process.cause

    def write(self, line: bytes) -> None:
        """Write a line to the process, in the name of the version."""
        self._process.process.write(b"%d %s" % (self.number, line))

    def close_input(self) -> None:
        """Leave. What the version still does there ends by itself; nobody has to wait for it."""
        self._process.let_go(self.number)
        if not self.ended.done():
            self.ended.set_result(0)

    def kill(self) -> None:
        """End what does not end, at the least cost for the neighbours."""
        self._process.end_for(self.number)

    def end(self) -> None:
        """End the process."""
        self._process.end()

    async def gone(self) -> None:
        """Wait for the end of the process, when the version was the last in it."""
        await self._process.gone()


class SharedWorker(WorkerProcess):
    """A version in a process that it shares."""

    def __init__(
        self, spec: VersionSpec, place: Place, shared: Sequence[int], limits: WorkerLimits, on_result: OnResult
    ) -> None:
        super().__init__(spec, Links(place, place.heartbeat, shared), limits, on_result)
        self._place = place

    @property
    def serving(self) -> bool:
        """Whether it is loaded."""
        return self._serving

    @property
    def memory_limit_bytes(self) -> int:
        """What its policy allows; 0: no limit."""
        return self._memory_limit

    @property
    def memory_at_load_bytes(self) -> int:
        """What the process held when the version was loaded."""
        return self._memory_at_load

    def watch(self) -> None:
        """Follow the version to its end; the process is looked after once for all its versions."""
        spawn(self._follow(), name=f"shared worker {self._key}")

    def move(self) -> None:
        """Let `outgrown` return."""
        self._outgrown.set()

    def kill(self) -> None:
        """End what does not end; a process that has closed the version's socket unasked is not one any more."""
        if self._lost.is_set():
            self._place.end()
        else:
            self._place.kill()

    async def close(self) -> None:
        """Leave the process; the last version ends it."""
        self._on_result = ignore
        if self._transport is not None:
            self._transport.abort()
        self._place.close_input()
        await self.ended()
        await self._place.gone()

    def _let_links_go(self) -> None:
        close_all(self._shared)

    def _exit(self, code: int) -> WorkerExit:
        self._cause = self._place.cause
        return replace(super()._exit(code), innocent=self._place.innocent)


def _command(control: int, heartbeat: int) -> list[str]:
    descriptors = [f"--socket={control}", f"--heartbeat={heartbeat}"]
    return [sys.executable, "-m", "services.inference.worker", "shared", *descriptors, f"--parent={os.getpid()}"]
