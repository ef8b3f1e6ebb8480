"""The database of jobs, on SQLite and on Postgres: who has a job, and what others may do to it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.common.database import Database
from services.common.migration import migrate
from services.common.refusals import ResourceNotFound
from services.common.storage_failure import DatabaseUnavailable
from services.features.adapters.job_runner import JobRunner, RunningJob
from services.features.adapters.job_store import LeaseLost, SqlJobStore
from services.features.adapters.migrations import MIGRATIONS, VERSION_TABLE
from services.features.domain.failure import JobEnded, NameTaken, RequestIdReused
from services.features.domain.job import Job, JobKind, JobState, JobStatus, MaterializationOutcome, MaterializationSpec
from services.features.domain.job_store import Asked

KIND = JobKind.MATERIALIZATION
NOBODY = Asked("local", "", "")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, service="features")
    try:
        await migrate(opened, MIGRATIONS, version_table=VERSION_TABLE)
        yield opened
    finally:
        await opened.close()


def a_job(job_id: str) -> Job:
    spec, status = MaterializationSpec(view="featureViews/v"), JobStatus(create_time=datetime.now(UTC))
    return Job(f"materializationJobs/{job_id}", spec, MaterializationOutcome(), status)


async def test_a_job_belongs_to_one_process_at_a_time(database: Database) -> None:
    one, other = SqlJobStore(database, "one"), SqlJobStore(database, "other")
    first = await one.create(a_job("a"), Asked("local", "r-1", "f"))
    assert await one.create(a_job("b"), Asked("local", "r-1", "f")) == first
    with pytest.raises(RequestIdReused):
        await one.create(a_job("b"), Asked("local", "r-1", "g"))
    with pytest.raises(NameTaken):
        await one.create(a_job("A"), NOBODY)
    second = await one.create(a_job("b"), NOBODY)
    listed = await one.list(KIND, "", 10)
    assert [job.name for _, job in listed] == [second.name, first.name]
    assert [job.name for _, job in await one.list(KIND, listed[0][0], 10)] == [first.name]
    taken = await one.claim(60)
    assert taken is not None
    assert (taken.name, taken.status.state) == (first.name, JobState.RUNNING)
    assert (await other.claim(60)) == replace(await other.get(KIND, second.name))
    assert await one.claim(60) is None
    with pytest.raises(LeaseLost):
        await other.keep(taken, 60)
    kept = await one.keep(replace(taken, checkpoint=7), 60)
    assert (await one.get(KIND, taken.name)).checkpoint == kept.checkpoint == 7
    assert (await other.cancel(KIND, taken.name, NOBODY)).status.state is JobState.CANCELLING
    assert (await one.keep(taken, 0)).status.state is JobState.CANCELLING
    gone_on = await other.claim(60)
    assert gone_on is not None
    assert gone_on.status.state is JobState.CANCELLING
    with pytest.raises(LeaseLost):
        await one.keep(taken, 60)
    ended = await other.keep(gone_on.ended(JobState.SUCCEEDED, await other.now()), 60)
    assert await other.last_end("featureViews/v") == ended.spec.end  # type: ignore[union-attr]
    with pytest.raises(JobEnded):
        await one.cancel(KIND, taken.name, NOBODY)
    with pytest.raises(LeaseLost):
        await other.keep(gone_on, 60)
    with pytest.raises(ResourceNotFound):
        await one.get(JobKind.JOIN, taken.name)


class AwayStore(SqlJobStore):
    """A store that, while the database is away for it, keeps nothing."""

    away = True
    claimed_count = 0

    async def claim(self, lease_s: float) -> Job | None:
        job = await super().claim(lease_s)
        self.claimed_count += job is not None
        return job

    async def keep(self, job: Job, lease_s: float) -> Job:
        if self.away:
            raise DatabaseUnavailable("features")
        return await super().keep(job, lease_s)


@pytest.mark.timeout(60)
async def test_a_lease_that_ran_out_while_the_database_was_away_does_not_begin_the_job_twice(
    database: Database,
) -> None:
    store, ends, begun = AwayStore(database, "one"), asyncio.Event(), 0

    async def work(_running: RunningJob) -> None:
        nonlocal begun
        begun += 1
        await ends.wait()

    name = (await store.create(a_job("a"), NOBODY)).name
    runner = asyncio.ensure_future(JobRunner(store, {KIND: work}, parallelism=4, lease_s=0.2, poll_s=0.05).run())
    try:
        while store.claimed_count < 3:
            await asyncio.sleep(0.01)
        store.away = False
        ends.set()
        while not (await store.get(KIND, name)).status.state.ended:
            await asyncio.sleep(0.01)
        assert (begun, (await store.get(KIND, name)).status.state) == (1, JobState.SUCCEEDED)
    finally:
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
