"""One model process of a version, for ever: load, warm, check, serve, and again when it ends.

A version that cannot be loaded is tried again with growing pauses; a process that dies is replaced, the first time at
once. One that has outgrown its memory, or should run elsewhere, goes when its successor answers.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from services.common.errors import ServiceError
from services.common.tasks import spawn
from services.inference.domain.admission import QueueLimits
from services.inference.domain.dispatch import Dispatcher
from services.inference.domain.failure import VersionNotReady
from services.inference.domain.ports import (
    ArtifactStore,
    ArtifactsUnavailable,
    Clock,
    LoadFailure,
    LoadReport,
    ModelBundle,
    ModelProcess,
    Observer,
    ProcessLauncher,
    WorkerExit,
)
from services.inference.domain.version import BatchingPolicy, LoadState, Placement, VersionSpec

# A process that has served this long did not die of being started: the next death is a first one again.
_STABLE_S: Final = 60.0
MESSAGE_LIMIT_CHARS: Final = 2_000
# Loading and running stop everybody else in the same process: only models this small and this fast may have company.
SMALL_BYTES: Final = 16 * 1024 * 1024
INLINE_LIMIT_S: Final = 0.002
SHARED_LIMIT_S: Final = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds between tries: the first, and the longest; each is twice the one before."""

    load_first_s: float = 1.0
    load_longest_s: float = 60.0
    restart_first_s: float = 0.5
    restart_longest_s: float = 30.0
    drain_s: float = 30.0
    """How long a version that is unloaded may take for what it has accepted."""

    def after_failures(self, failures: int) -> float:
        """Return the pause after so many loads failed in a row, from 1."""
        return min(self.load_first_s * float(1 << min(failures - 1, 30)), self.load_longest_s)

    def after_deaths(self, deaths: int) -> float:
        """Return the pause after so many processes died in a row, from 1: the first is replaced at once."""
        if deaths <= 1:
            return 0.0
        return min(self.restart_first_s * float(1 << min(deaths - 2, 30)), self.restart_longest_s)


@dataclass(frozen=True, slots=True)
class HostParts:
    """What every host is made of."""

    artifacts: ArtifactStore
    launcher: ProcessLauncher
    clock: Clock
    observer: Observer
    limits: QueueLimits
    pauses: Pauses
    loads: asyncio.Semaphore
    """As many versions load at once: loading takes the processor from those that serve."""
    arriving: Callable[[], int]
    """Counts the calls that are on their way in."""


class _Ended(Exception):
    """The process that was serving has ended."""

    def __init__(self, how: WorkerExit) -> None:
        self.how = how


class Instance:
    """A process, or the way to one. `changed` hears of every change of `state` and `message`."""

    def __init__(
        self,
        spec: VersionSpec,
        parts: HostParts,
        dispatcher: Dispatcher,
        policy: Callable[[], BatchingPolicy],
        changed: Callable[[], None],
    ) -> None:
        self.state = LoadState.FETCHING
        self.message = ""
        self.tried = False
        """Whether it was READY or has failed once."""
        self.process: ModelProcess | None = None
        self.last_exit: WorkerExit | None = None
        self._spec = spec
        self._parts = parts
        self._dispatcher = dispatcher
        self._policy = policy
        self._changed = changed
        self._renew = asyncio.Event()
        self._task = spawn(self._run(), name=f"instance of {spec.key}")

    def renew(self) -> None:
        """Load a successor, then let the process go."""
        self._renew.set()

    async def retire(self) -> None:
        """Take nothing more, and return once what the process holds is answered."""
        if self.process is not None:
            await self._retire(self.process)

    async def close(self, refusal: ServiceError) -> None:
        """Stop at once; what its process holds fails."""
        process = self.process
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if process is not None:
            self._dispatcher.detach(process, "was stopped", refusal)

    async def _run(self) -> None:
        deaths = 0
        while True:
            process, report = await self._load_patiently()
            served_s = await self._serve(process, report)
            if self.last_exit is not None and self.last_exit.innocent:
                continue  # it was a neighbour's fault, who will have to wait
            deaths = 1 if served_s >= _STABLE_S else deaths + 1
            await asyncio.sleep(self._parts.pauses.after_deaths(deaths))

    async def _load_patiently(self) -> tuple[ModelProcess, LoadReport]:
        failures = 0
        while True:
            try:
                return await self._load()
            except LoadFailure as failure:
                failures += 1
                self._set(LoadState.FAILED, failure.message)
            except ArtifactsUnavailable as unavailable:
                failures += 1
                self.tried = True
                self._set(LoadState.FETCHING, str(unavailable))
            await asyncio.sleep(self._parts.pauses.after_failures(failures))

    async def _load(self) -> tuple[ModelProcess, LoadReport]:
        """Return a process that is ready to serve. A file that turns out corrupt is fetched again once."""
        if self._spec.defect:
            raise LoadFailure(self._spec.defect)
        try:
            return await self._try_load()
        except LoadFailure as failure:
            if not failure.corrupt_digest:
                raise
            await self._parts.artifacts.discard(failure.corrupt_digest)
            return await self._try_load()

    async def _try_load(self) -> tuple[ModelProcess, LoadReport]:
        if self.state is not LoadState.LOADING:
            self._set(LoadState.FETCHING, self.message)
        bundle = await self._parts.artifacts.fetch(self._spec.files)
        async with self._parts.loads:
            self._set(LoadState.LOADING, self.message)
            policy = self._policy()
            alone = policy.placement is Placement.PROCESS
            if not alone and sum(file.size_bytes for file in self._spec.files) <= SMALL_BYTES:
                process, report = await self._start(bundle, policy)
                if _is_short(report, policy):
                    return process, report
                await process.close()
            return await self._start(bundle, replace(policy, placement=Placement.PROCESS))

    async def _start(self, bundle: ModelBundle, policy: BatchingPolicy) -> tuple[ModelProcess, LoadReport]:
        process = await self._parts.launcher.start(self._spec, policy, self._dispatcher.take_result)
        try:
            report = await process.load(self._spec, bundle, policy)
            warm = policy.sizes()
            while warm != (wanted := self._policy().sizes()):  # the policy may change meanwhile, more than once
                await process.warm(wanted)
                warm = wanted
        except BaseException:
            await process.close()
            raise
        return process, report

    async def _serve(self, process: ModelProcess, report: LoadReport) -> float:
        """Serve until the process ends, or its successor; return for how many seconds."""
        started = self._parts.clock.now()
        try:
            self._attach(process, report)
            while True:
                await self._unless_ended(process, self._reason_to_renew(process))
                successor = await self._successor(process)
                if successor is not None:
                    outgoing, process = process, successor[0]
                    self._attach(*successor)
                    await self._let_go(outgoing)
        except _Ended as ended:
            self.last_exit = ended.how
            message = f"its process {ended.how}; another one is being started"
            self._dispatcher.detach(process, str(ended.how), self._not_ready(message), blame=not ended.how.innocent)
            self._set(LoadState.LOADING, message)
        finally:
            self.process = None
            await process.close()
        return self._parts.clock.now() - started

    def _attach(self, process: ModelProcess, report: LoadReport) -> None:
        self.process = process
        process.limit_memory(self._policy().memory_limit_bytes)
        self._dispatcher.attach(process, report.measured)
        self._set(LoadState.READY)

    async def _reason_to_renew(self, process: ModelProcess) -> None:
        """Wait until the process should be replaced."""
        reasons = [asyncio.ensure_future(process.outgrown()), asyncio.ensure_future(self._renew.wait())]
        await _first_of(reasons)
        # Cleared before the successor is loaded: what is asked for from now on, it may not know.
        self._renew.clear()

    async def _successor(self, process: ModelProcess) -> tuple[ModelProcess, LoadReport] | None:
        """Return a fresh process while the old one serves; None, after a pause, when there is none to be had."""
        try:
            return await self._unless_ended(process, self._load())
        except (LoadFailure, ArtifactsUnavailable) as failure:
            self._set(LoadState.READY, f"its process should be replaced and no other can be loaded: {failure}")
        await self._unless_ended(process, asyncio.sleep(self._parts.pauses.load_longest_s))
        return None

    async def _let_go(self, process: ModelProcess) -> None:
        """Wait until a process has answered what it holds, then end it."""
        try:
            await self._unless_ended(process, self._retire(process))
        except _Ended as ended:
            self.last_exit = ended.how
        finally:
            self._dispatcher.detach(process, "was replaced", self._not_ready(""))
            await process.close()

    async def _retire(self, process: ModelProcess) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._parts.pauses.drain_s):
                await self._dispatcher.retire(process)

    async def _unless_ended(self, process: ModelProcess, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what some work gives beside a serving process; raises `_Ended` when that ends first."""
        doing, ended = asyncio.ensure_future(work), asyncio.ensure_future(process.ended())
        await _first_of([doing, ended])
        if doing.cancelled():
            raise _Ended(ended.result())
        return doing.result()

    def _not_ready(self, message: str) -> VersionNotReady:
        return VersionNotReady(self._spec.key, LoadState.LOADING.name, message)

    def _set(self, state: LoadState, message: str = "") -> None:
        self.state = state
        self.message = message[:MESSAGE_LIMIT_CHARS]
        self.tried = self.tried or state in {LoadState.READY, LoadState.FAILED}
        self._changed()


def _is_short(report: LoadReport, policy: BatchingPolicy) -> bool:
    """Return whether even the largest batch is over before those beside it could miss their turn."""
    limit_s = INLINE_LIMIT_S if policy.placement is Placement.INLINE else SHARED_LIMIT_S
    return any(rows == policy.max_batch_size and seconds < limit_s for rows, seconds in report.measured)


async def _first_of(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Wait for the first of some tasks, and take back the others."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
