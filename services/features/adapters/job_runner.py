"""Works on jobs, so many at a time: takes them, keeps their lease, writes how they are getting on, stops them.

A job that a killed process left is taken again when its lease has run out; one that a draining process let go, at once.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from services.common.errors import ServiceError, to_status
from services.common.storage_failure import DatabaseUnavailable
from services.common.tasks import spawn
from services.features.adapters.job_store import LeaseLost, SqlJobStore
from services.features.domain.job import Job, JobKind, JobState, Outcome

_LOG: Final = structlog.get_logger(part="jobs")
_BEATS_A_LEASE: Final = 3


class RunningJob:
    """A job while somebody works on it; what `tell` says is written with the next beat, or at once by `save`."""

    def __init__(self, job: Job, save: Callable[["RunningJob"], Awaitable[None]]) -> None:
        self.job = job
        self.changed = asyncio.Event()
        """Set when somebody may have asked it to stop."""
        self._save = save

    def tell(
        self,
        *,
        done: int | None = None,
        total: int | None = None,
        skipped: Mapping[str, int] | None = None,
        outcome: Outcome | None = None,
        checkpoint: int | None = None,
    ) -> None:
        """Say how it is getting on."""
        status = self.job.status
        status = replace(
            status,
            done_count=status.done_count if done is None else done,
            total_count=status.total_count if total is None else total,
            skipped_counts=status.skipped_counts if skipped is None else dict(skipped),
        )
        self.job = replace(
            self.job,
            status=status,
            outcome=self.job.outcome if outcome is None else outcome,
            checkpoint=self.job.checkpoint if checkpoint is None else checkpoint,
        )

    async def save(self) -> None:
        """Write it now; raises LeaseLost."""
        await self._save(self)


Work = Callable[[RunningJob], Awaitable[None]]


class JobRunner:
    """Runs jobs; `works` does one job of a kind and raises ServiceError when it cannot be done."""

    def __init__(
        self, store: SqlJobStore, works: Mapping[JobKind, Work], *, parallelism: int, lease_s: float, poll_s: float
    ) -> None:
        self._store = store
        self._works = works
        self._parallelism = parallelism
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._running: set[asyncio.Task[None]] = set()
        self._jobs: dict[str, RunningJob] = {}
        self._bell = asyncio.Event()

    def notice(self, name: str) -> None:
        """Look now, rather than at the next poll, for a job that is new or has to stop."""
        self._bell.set()
        if name in self._jobs:
            self._jobs[name].changed.set()

    async def run(self) -> None:
        """Take jobs for ever; cancelled, let go those at work, for another process to take."""
        try:
            while True:
                self._bell.clear()
                with contextlib.suppress(ServiceError):
                    await self._take_all()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._bell.wait()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _take_all(self) -> None:
        while len(self._running) < self._parallelism:
            job = await self._store.claim(self._lease_s)
            if job is None:
                return
            if job.name in self._jobs:
                # Its lease ran out while the database was away, and it never stopped: it goes on under the new one.
                continue
            task = spawn(self._work(job), f"job-{job.id}")
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._bell.set()

    async def _work(self, job: Job) -> None:
        running = self._jobs[job.name] = RunningJob(job, self._save)
        work = spawn(self._do(running), f"work-{job.id}")
        work.add_done_callback(lambda _work: running.changed.set())
        try:
            while not work.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_s / _BEATS_A_LEASE):
                        await running.changed.wait()
                running.changed.clear()
                if not work.done():
                    await self._beat(running, work)
            await self._end(running, work)
        except LeaseLost:
            _LOG.warning("job_lost", job=job.name)
        except ServiceError as error:
            _LOG.warning("job_not_kept", job=job.name, reason=error.reason)
        except asyncio.CancelledError:
            await _stop(work)
            with contextlib.suppress(LeaseLost, ServiceError):
                await self._store.keep(running.job, 0)
            raise
        finally:
            await _stop(work)
            del self._jobs[job.name]

    async def _do(self, running: RunningJob) -> Exception | None:
        """Do the work and return why it failed: an error of a job is its status, not ours."""
        try:
            if running.job.status.state is not JobState.CANCELLING:
                await self._works[running.job.kind](running)
        except Exception as error:  # noqa: BLE001 - whatever it is, it stands in the job's status
            if not isinstance(error, ServiceError | LeaseLost):
                _LOG.error("job_broke", job=running.job.name, exc_info=error)
            return error
        return None

    async def _beat(self, running: RunningJob, work: asyncio.Task[Exception | None]) -> None:
        try:
            await self._save(running)
        except ServiceError as error:
            # The database is away: the lease may run out, then another process goes on.
            _LOG.warning("job_not_kept", job=running.job.name, reason=error.reason)
            return
        if running.job.status.state is JobState.CANCELLING:
            await _stop(work)

    async def _save(self, running: RunningJob) -> None:
        kept = await self._store.keep(running.job, self._lease_s)
        running.job = replace(running.job, status=replace(running.job.status, state=kept.status.state))

    async def _end(self, running: RunningJob, work: asyncio.Task[Exception | None]) -> None:
        now = await self._store.now()
        error = None if work.cancelled() else work.result()
        if isinstance(error, LeaseLost | DatabaseUnavailable):
            # Where jobs are kept was away, which is no fault of the job: it is taken again when its lease has run out.
            raise error
        if running.job.status.state is JobState.CANCELLING:
            ended = running.job.ended(JobState.CANCELLED, now)
        elif error is not None:
            ended = running.job.ended(JobState.FAILED, now, to_status(error, running.job.id).SerializeToString())
            _LOG.warning("job_failed", job=running.job.name, reason=getattr(error, "reason", type(error).__name__))
        else:
            ended = running.job.ended(JobState.SUCCEEDED, now)
        await self._store.keep(ended, 0)


async def _stop(work: asyncio.Task[Exception | None]) -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
