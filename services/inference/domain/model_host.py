"""The life of one version on this replica: fetch, load, warm, check, serve, and again when its process dies.

A version that cannot be loaded is tried again with growing pauses; a process that dies is replaced, the first time at
once. Whatever happens here, other versions do not notice.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from services.common.errors import ServiceError
from services.common.tasks import spawn
from services.inference.domain.admission import QueueLimits
from services.inference.domain.dispatch import Dispatcher
from services.inference.domain.failure import ReplicaDraining, VersionNotReady
from services.inference.domain.item import Item
from services.inference.domain.ports import (
    ArtifactStore,
    ArtifactsUnavailable,
    Clock,
    LoadFailure,
    LoadReport,
    ModelProcess,
    Observer,
    ProcessLauncher,
)
from services.inference.domain.splitting import PartsSink, split_item
from services.inference.domain.version import BatchingPolicy, LoadState, VersionKey, VersionSpec

MESSAGE_LIMIT_CHARS: Final = 2_000
# A process that has served this long did not die of being started: the next death is a first one again.
_STABLE_S: Final = 60.0


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


class ModelHost:
    """One version: its state, its process, and the dispatcher that feeds it."""

    def __init__(
        self, spec: VersionSpec, policy: BatchingPolicy, parts: HostParts, changed: Callable[["ModelHost"], None]
    ) -> None:
        self.spec = spec
        self.state = LoadState.FETCHING
        self.message = ""
        self.tried = False
        """Whether it was READY or has failed once: what a replica's readiness waits for."""
        self.parts = parts
        self.dispatcher = Dispatcher(
            spec.key,
            spec.inputs,
            policy,
            clock=parts.clock,
            observer=parts.observer,
            limits=parts.limits,
            refusal=self._not_ready(),
        )
        self._policy = policy
        self._changed = changed
        self._process: ModelProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._adjusting: asyncio.Task[None] | None = None

    @property
    def key(self) -> VersionKey:
        """Model and version."""
        return self.spec.key

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.state is LoadState.READY

    @property
    def max_batch_size(self) -> int:
        """Most rows of a batch."""
        return self.dispatcher.queue.policy.max_batch_size

    @property
    def pid(self) -> int:
        """Process id of the worker; 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Begin to load, in the background."""
        self._task = spawn(self._run(), name=f"host {self.key}")

    def set_policy(self, policy: BatchingPolicy) -> None:
        """Join requests by another policy; a larger batch size counts once it is warm."""
        if policy == self._policy:
            return
        self._policy = policy
        grown = policy.max_batch_size > self.max_batch_size and self._process is not None
        at_once = replace(policy, max_batch_size=self.max_batch_size) if grown else policy
        self.dispatcher.set_policy(at_once)
        if grown and self._process is not None:
            self._adjusting = spawn(self._grow(self._process, policy), name=f"warm {self.key}")

    def check_ready(self) -> None:
        """Raise what a request to this version is told while it does not answer."""
        if self.state is LoadState.UNLOADING:
            raise self._unloading()
        if not self.ready:
            raise self._not_ready()

    def submit(self, item: Item) -> None:
        """Queue a request that the dispatcher has counted as arrived; call `dispatcher.pump` after the last of a group.

        Raises a `ServiceError` when it is refused. More rows than a batch holds run in parts.
        """
        if item.rows <= self.max_batch_size:
            self.dispatcher.offer(item)
            return
        self._submit_parts(item)

    def cancel(self, item: Item) -> None:
        """Take a request back; nobody else notices."""
        if isinstance(item.parts, PartsSink):
            item.parts.cancel()
        else:
            self.dispatcher.cancel(item)

    async def unload(self) -> None:
        """Refuse what comes, answer what was accepted, let the process go."""
        self.dispatcher.refuse(self._unloading())
        self._set(LoadState.UNLOADING)
        await self.idle(self.parts.pauses.drain_s)
        await self.close()

    async def idle(self, limit_s: float) -> None:
        """Wait until every accepted request is answered, at most so long."""
        try:
            async with asyncio.timeout(limit_s):
                await self.dispatcher.idle.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Stop at once; what is accepted and unanswered fails."""
        for task in (self._adjusting, self._task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self.dispatcher.detach("was stopped", self._unloading())

    async def _run(self) -> None:
        failures = deaths = 0
        while True:
            try:
                process, report = await self._load()
            except LoadFailure as failure:
                failures += 1
                self._set(LoadState.FAILED, failure.message)
                await asyncio.sleep(self.parts.pauses.after_failures(failures))
                continue
            except ArtifactsUnavailable as unavailable:
                failures += 1
                self._set(LoadState.FETCHING, str(unavailable), tried=True)
                await asyncio.sleep(self.parts.pauses.after_failures(failures))
                continue
            failures = 0
            served_s = await self._serve(process, report)
            deaths = 1 if served_s >= _STABLE_S else deaths + 1
            await asyncio.sleep(self.parts.pauses.after_deaths(deaths))

    async def _load(self) -> tuple[ModelProcess, LoadReport]:
        """Return a process that is ready to serve. A file that turns out corrupt is fetched again once."""
        if self.spec.defect:
            raise LoadFailure(self.spec.defect)
        try:
            return await self._try_load()
        except LoadFailure as failure:
            if not failure.corrupt_digest:
                raise
            await self.parts.artifacts.discard(failure.corrupt_digest)
            return await self._try_load()

    async def _try_load(self) -> tuple[ModelProcess, LoadReport]:
        if self.state is not LoadState.LOADING:
            self._set(LoadState.FETCHING, self.message)
        bundle = await self.parts.artifacts.fetch(self.spec.files)
        self._set(LoadState.LOADING, self.message)
        process = await self.parts.launcher.start(self.key, self.spec, self.dispatcher.take_result)
        try:
            policy = self._policy
            report = await process.load(self.spec, bundle, policy)
        except BaseException:
            await process.close()
            raise
        self.dispatcher.set_policy(policy)
        return process, report

    async def _serve(self, process: ModelProcess, report: LoadReport) -> float:
        """Serve until the process ends; return for how many seconds it did."""
        started = self.parts.clock.now()
        self._process = process
        try:
            self.dispatcher.statistic.memory_bytes = report.memory_bytes
            self.dispatcher.attach(process, report.batch_s)
            self._set(LoadState.READY)
            cause = await process.ended()
            message = f"its process {cause}; another one is being started"
            self.dispatcher.detach(cause, self._not_ready(LoadState.LOADING, message))
            self._set(LoadState.LOADING, message)
        finally:
            self._process = None
            await process.close()
        return self.parts.clock.now() - started

    async def _grow(self, process: ModelProcess, policy: BatchingPolicy) -> None:
        try:
            await process.warm(policy.max_batch_size)
        except LoadFailure as failure:
            self.message = f"kept batches of at most {self.max_batch_size} rows: {failure.message}"
            self._changed(self)
            return
        if policy == self._policy:
            self.dispatcher.set_policy(policy)

    def _submit_parts(self, item: Item) -> None:
        sink = PartsSink(item, self.spec.outputs, self.dispatcher.cancel)
        sink.parts = split_item(item, self.spec.inputs, self.max_batch_size, sink)
        item.parts = sink
        item.arrived = self.parts.clock.now()
        self.dispatcher.arrived(len(sink.parts))
        self.dispatcher.gone(1)
        for index, part in enumerate(sink.parts):
            try:
                self.dispatcher.offer(part)
            except ServiceError:
                self.dispatcher.gone(len(sink.parts) - index - 1)
                sink.cancel()
                raise

    def _set(self, state: LoadState, message: str = "", *, tried: bool = False) -> None:
        if self.state is LoadState.UNLOADING:
            return
        self.state = state
        self.message = message[:MESSAGE_LIMIT_CHARS]
        self.tried = self.tried or tried or state in {LoadState.READY, LoadState.FAILED}
        if state in {LoadState.FETCHING, LoadState.LOADING, LoadState.FAILED}:
            self.dispatcher.refuse(self._not_ready())
        self._changed(self)

    def _not_ready(self, state: LoadState | None = None, message: str | None = None) -> VersionNotReady:
        shown = self.state if state is None else state
        return VersionNotReady(self.key, shown.name, self.message if message is None else message)

    def _unloading(self) -> ReplicaDraining:
        return ReplicaDraining(f"version {self.key.version} of model {self.key.model} is being unloaded here")
