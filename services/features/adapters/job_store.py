"""The database of jobs. Each is kept as the contract's message beside the columns that are searched for."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.common.refusals import ResourceNotFound
from services.features.adapters.answer import AnswerKey, recall, remember
from services.features.adapters.table import JOB
from services.features.convert.job import job_from_bytes, job_to_bytes
from services.features.domain.definitions import NEVER
from services.features.domain.failure import NameTaken
from services.features.domain.job import Job, JobKind, JobState, MaterializationSpec
from services.features.domain.job_store import Asked

_MICROSECOND: Final = timedelta(microseconds=1)
_LARGEST_US: Final = 10**17
_ALIVE: Final = (JobState.PENDING.value, JobState.RUNNING.value, JobState.CANCELLING.value)


class LeaseLost(Exception):
    """Somebody else works on the job by now: what is done here must not be written."""


class SqlJobStore:
    """See `domain.job_store.JobStore`; `owner` is who takes jobs, one for each process."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner

    async def create(self, job: Job, asked: Asked) -> Job:
        """Keep a new job, or return the one that the same request made before; raises NameTaken."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            known = await self._recall(connection, job.kind, asked, now_us)
            if known is not None:
                return known
            taken = select(JOB.c.name).where(JOB.c.folded_name == job.name.lower())
            if await connection.scalar(taken) is not None:
                raise NameTaken(job.name)
            now = NEVER + now_us * _MICROSECOND
            spec = job.spec
            if isinstance(spec, MaterializationSpec) and spec.end is None:
                spec = replace(spec, end=now)
            job = replace(job, spec=spec, status=replace(job.status, create_time=now))
            values = {
                "name": job.name,
                "folded_name": job.name.lower(),
                "kind": job.kind.name,
                "sort_key": f"{_LARGEST_US - now_us:018d}{job.id}",
                "feature_view": spec.view if isinstance(spec, MaterializationSpec) else "",
                "owner": "",
                "lease_us": 0,
                **_changing(job),
            }
            await connection.execute(insert(JOB).values(values))
            await self._remember(connection, job, asked, now_us)
            return job

    async def get(self, kind: JobKind, name: str) -> Job:
        """Return a job; raises ResourceNotFound."""
        async with self._database.read() as connection:
            return await _require(connection, kind, select(JOB).where(JOB.c.name == name), name)

    async def list(self, kind: JobKind, after: str, count: int) -> Sequence[tuple[str, Job]]:
        """Return jobs of a kind, newest first, with the key that the next page begins after."""
        query = select(JOB).where(JOB.c.kind == kind.name, JOB.c.sort_key > after).order_by(JOB.c.sort_key).limit(count)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [(row["sort_key"], _job(row)) for row in rows]

    async def cancel(self, kind: JobKind, name: str, asked: Asked) -> Job:
        """Ask a job to stop; raises JobEnded and ResourceNotFound."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            known = await self._recall(connection, kind, asked, now_us)
            if known is not None:
                return known
            query = select(JOB).where(JOB.c.name == name).with_for_update()
            job = (await _require(connection, kind, query, name)).cancelling(NEVER + now_us * _MICROSECOND)
            await connection.execute(update(JOB).where(JOB.c.name == name).values(_changing(job)))
            await self._remember(connection, job, asked, now_us)
            return job

    async def claim(self, lease_s: float) -> Job | None:
        """Take the oldest job that nobody works on, and return it as it is with a start time; None: there is none."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            query = (
                select(JOB)
                .where(JOB.c.state.in_(_ALIVE), JOB.c.lease_us < now_us)
                .order_by(JOB.c.sort_key.desc())
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            job = _job(row).started(NEVER + now_us * _MICROSECOND)
            values = {**_changing(job), "owner": self._owner, "lease_us": now_us + round(lease_s * 1e6)}
            await connection.execute(update(JOB).where(JOB.c.name == job.name).values(values))
            return job

    async def keep(self, job: Job, lease_s: float) -> Job:
        """Write how a job is getting on and hold it for longer; returns it as somebody may have changed it: CANCELLING.

        A job that has ended, or whose lease is 0, is let go. Raises LeaseLost.
        """
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            query = select(JOB.c.state).where(JOB.c.name == job.name, JOB.c.owner == self._owner).with_for_update()
            state = await connection.scalar(query)
            if state is None or JobState(state).ended:
                raise LeaseLost
            if not job.status.state.ended:
                job = replace(job, status=replace(job.status, state=JobState(state)))
            held = lease_s > 0 and not job.status.state.ended
            lease = {"owner": self._owner, "lease_us": now_us + round(lease_s * 1e6)} if held else _NOBODY
            await connection.execute(update(JOB).where(JOB.c.name == job.name).values({**_changing(job), **lease}))
            return job

    async def now(self) -> datetime:
        """Return the database's time."""
        async with self._database.read() as connection:
            return NEVER + await self._database.now_us(connection) * _MICROSECOND

    async def last_end(self, view: str) -> datetime:
        """Return the event time at which the materialization of a view that came farthest ended."""
        succeeded = JobState.SUCCEEDED.value
        query = select(JOB).where(JOB.c.feature_view == view, JOB.c.state == succeeded)
        async with self._database.read() as connection:
            jobs = [_job(row) for row in (await connection.execute(query)).mappings().all()]
        ends = [job.spec.end for job in jobs if isinstance(job.spec, MaterializationSpec) and job.spec.end]
        return max(ends, default=NEVER)

    async def _recall(self, connection: AsyncConnection, kind: JobKind, asked: Asked, now_us: int) -> Job | None:
        if not asked.request_id:
            return None
        body = await recall(connection, _key(asked), now_us)
        return None if body is None else job_from_bytes(kind, body, 0)

    async def _remember(self, connection: AsyncConnection, job: Job, asked: Asked, now_us: int) -> None:
        if asked.request_id:
            await remember(connection, _key(asked), job_to_bytes(job), now_us)


_NOBODY: Final = {"owner": "", "lease_us": 0}


async def _require(connection: AsyncConnection, kind: JobKind, query: Select[Any], name: str) -> Job:
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None or row["kind"] != kind.name:
        raise ResourceNotFound(name)
    return _job(row)


def _key(asked: Asked) -> AnswerKey:
    return AnswerKey(asked.principal, asked.request_id, asked.fingerprint)


def _job(row: Any) -> Job:
    return job_from_bytes(JobKind[row["kind"]], row["body"], row["checkpoint"])


def _changing(job: Job) -> dict[str, Any]:
    return {"state": job.status.state.value, "body": job_to_bytes(job), "checkpoint": job.checkpoint}
