"""The database of jobs, on SQLite and on Postgres: who has a job, and what others may do to it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.common.database import Database
from services.common.migration import migrate
from services.common.refusals import ResourceNotFound
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
