"""Joins and jobs through the wire: the real service, its children, a real Redis, real files."""

import asyncio
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.duration_pb2 import Duration
from interlock.features.v1 import feature_job_pb2 as jobs
from interlock.features.v1 import feature_job_service_pb2 as job_pb
from interlock.features.v1 import offline_feature_service_pb2 as pb
from interlock.features.v1.feature_view_pb2 import (
    AGGREGATE_FUNCTION_COUNT,
    AGGREGATE_FUNCTION_LAST_N,
    AGGREGATE_FUNCTION_MEAN,
    FILE_FORMAT_PARQUET,
    Aggregate,
    AggregateSource,
    BatchSource,
    EventField,
    Feature,
    FeatureView,
    FileLocation,
    OnDemandSource,
    SqlLocation,
)
from interlock.types.v1.signature_pb2 import (
    FEATURE_TYPE_DOUBLE,
    FEATURE_TYPE_INT64,
)
from redis import Redis

from services.common.database import Database
from services.features.adapters.job_store import LeaseLost, SqlJobStore
from services.features.adapters.offline_process import OfflineProcesses
from services.features.domain.job import Job, JobStatus, MaterializationOutcome, MaterializationSpec
from services.features.domain.job_store import Asked
from tests.fakes.aggregate_world import RedisProcess, redis_process
from tests.fakes.features_service import a_view, an_entity, hours, running_features
from tests.fakes.offline_world import (
    ENDED,
    NOON,
    OfflineWorld,
    batch_view,
    csv_source,
    labels,
    refuses,
    requests_of,
    row,
    stamp,
    stream_of,
)
from tests.fakes.registry_service import new_id, refused

OFFLINE = "interlock.features.v1.OfflineFeatureService"
JOBS = "interlock.features.v1.FeatureJobService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture
async def world(tmp_path: Path, redis: RedisProcess) -> AsyncIterator[OfflineWorld]:
    with Redis(unix_socket_path=redis.socket) as client:
        client.flushall()
    database = tmp_path / "delays.db"
    settings: dict[str, Any] = {
        "redis_url": f"unix://{redis.socket}",
        "features_connections": {"delays": f"sqlite:///{database}"},
        "job_poll_s": 0.05,
        # A machine that runs tests may be busy.
        "redis_write_deadline_s": 10,
    }
    async with running_features(tmp_path / "state", **settings) as features:
        yield OfflineWorld(features, tmp_path)


def arrivals_view(*, lateness: Duration) -> FeatureView:
    """Return a view of windows of three hours."""
    arrivals = AggregateSource(
        fields=[EventField(name="delay", type=FEATURE_TYPE_DOUBLE)],
        aggregates=[
            Aggregate(feature="count", function=AGGREGATE_FUNCTION_COUNT, window=hours(3)),
            Aggregate(feature="mean", function=AGGREGATE_FUNCTION_MEAN, field="delay", window=hours(3)),
            Aggregate(feature="last", function=AGGREGATE_FUNCTION_LAST_N, field="delay", window=hours(3), last_count=2),
        ],
    )
    arrival_features = [
        Feature(name="count", type=FEATURE_TYPE_INT64),
        Feature(name="mean", type=FEATURE_TYPE_DOUBLE),
        Feature(name="last", type=FEATURE_TYPE_DOUBLE, is_list=True),
    ]
    return a_view("arrivals", features=arrival_features, aggregate_source=arrivals, allowed_lateness=lateness)


@pytest.mark.rpc(f"{OFFLINE}/JoinFeatures", "happy")
async def test_rows_get_pushed_values_aggregates_and_computed_values_as_they_were_known(world: OfflineWorld) -> None:
    computed = OnDemandSource(
        inputs=[EventField(name="late", type=FEATURE_TYPE_DOUBLE)], expressions={"twice": "late * 2"}
    )
    await world.features.apply(
        an_entity(),
        a_view(),
        arrivals_view(lateness=hours(2)),
        a_view(
            "now", entities=[], features=[Feature(name="twice", type=FEATURE_TYPE_DOUBLE)], on_demand_source=computed
        ),
    )
    await world.push(
        "carrier_delays",
        row("AA", 0, 0, {"delay_mean": 1}),
        row("AA", 1, 3, {"delay_mean": 2}),
        row("AA", -50, 2, {"delay_mean": 9}),
        row("BB", -40, -40, {"delay_mean": 7}),
    )
    await world.push(
        "arrivals",
        row("AA", 0, 0, {"delay": 10}, "a"),
        row("AA", 0, 0, {"delay": 10}, "a"),
        row("AA", 0.5, 1.5, {"delay": 20}, "b"),
        row("AA", 0.6, 2.7, {"delay": 99}, "late"),
    )
    rows = labels(("AA", 0), ("AA", 2), ("AA", 3), ("BB", 0), ("CC", 0), ("AA", 1))
    features = ["carrier_delays.delay_mean", "arrivals.*", "now.twice"]
    found = await world.join(rows, features, include_event_times=True)
    assert [each["carrier_delays__delay_mean"] for each in found] == [1, 1, 2, None, None, 1]
    assert [each["arrivals__count"] for each in found] == [1, 2, 1, 0, 0, 1]
    assert [each["arrivals__mean"] for each in found] == [10, 15, 20, None, None, 10]
    assert [each["arrivals__last"] for each in found] == [[10], [20, 10], [20], None, None, [10]]
    assert {each["now__twice"] for each in found} == {10}
    assert found[1]["carrier_delays__event_time"] == NOON
    leaking = await world.join(rows, features[:2], clock=jobs.JOIN_CLOCK_EVENT_TIME)
    assert [each["carrier_delays__delay_mean"] for each in leaking] == [1, 2, 2, None, None, 2]
    assert [each["arrivals__count"] for each in leaking] == [1, 2, 1, 0, 0, 2]


async def test_random_histories_come_out_of_the_service_by_the_rule(world: OfflineWorld) -> None:
    """Rows and events of 200 carriers: late, too late, out of order, known early, some sent again; times are hours."""
    await world.features.apply(an_entity(), a_view(), arrivals_view(lateness=hours(1)))
    draw = random.Random("through the service")
    names = [f"c{number}" for number in range(200)]
    values, events = [], []
    for number in range(2_000):
        at = draw.randrange(-30, 30)
        values.append((draw.choice(names), at, at + draw.choice(LATE), draw.randrange(40) / 4))
        at = draw.randrange(-6, 30)
        events.append((draw.choice(names), at, at + draw.choice(LATE), draw.randrange(40) / 4, f"{number}"))
    again = [(name, at, known + 1, value + 1, event_id) for name, at, known, value, event_id in events[::5]]
    for start in range(0, 2_000, 500):
        part = slice(start, start + 500)
        await world.push(
            "carrier_delays", *(row(name, at, known, {"delay_mean": value}) for name, at, known, value in values[part])
        )
        for sent in (events[part], again[start // 5 : start // 5 + 100]):
            await world.push(
                "arrivals", *(row(name, at, known, {"delay": value}, one) for name, at, known, value, one in sent)
            )
    asked = [(draw.choice([*names, "none"]), draw.randrange(-10, 40)) for _ in range(1_000)]
    found = await world.join(labels(*asked), ["carrier_delays.delay_mean", "arrivals.*"])
    counted = [one for one in events if one[2] - one[1] <= 1]
    for got, (name, at) in zip(found, asked, strict=True):
        newest = max(
            ((when, known, value) for one, when, known, value in values if one == name and known <= at >= when),
            default=None,
        )
        fresh = newest is not None and at - newest[0] <= 36
        assert got["carrier_delays__delay_mean"] == (newest[2] if newest is not None and fresh else None), (name, at)
        held = [one for one in counted if one[0] == name and at - 3 < one[1] <= at and one[2] <= at]
        held.sort(key=lambda one: (one[1], one[2], sha256(one[4].encode()).digest()))
        delays = [one[3] for one in held]
        assert got["arrivals__count"] == len(held), (name, at)
        assert got["arrivals__mean"] == (sum(delays) / len(delays) if delays else None), (name, at)
        assert got["arrivals__last"] == (delays[:-3:-1] or None), (name, at)


LATE = (0, 0, 1, 2, 3, -1)


@pytest.mark.rpc(f"{OFFLINE}/JoinFeatures", "error")
async def test_a_join_refuses_what_it_cannot_read(world: OfflineWorld) -> None:
    await world.features.apply(an_entity(), a_view())
    rows, features = labels(("AA", 0)), ["carrier_delays.delay_mean"]
    await refuses(world.join(rows, ["nothing.here"]), (NOT_FOUND, "RESOURCE_NOT_FOUND"))
    await refuses(world.join(rows, ["nonsense"]), (INVALID, "INVALID_FIELD"))
    await refuses(world.join(labels(("AA", 0), zone=None), features), (INVALID, "INVALID_EVENT_TIME"))
    opened = pb.JoinOpen(features=features, time_column="at")
    for messages in (
        requests_of(opened, b"no arrow at all"),
        requests_of(opened, stream_of(rows))[1:],
        [*requests_of(opened, b""), pb.JoinFeaturesRequest(open=opened)],
    ):

        async def call(messages: list[pb.JoinFeaturesRequest] = messages) -> None:
            async for _ in world.offline.JoinFeatures(iter(messages)):
                pass

        await refuses(call(), (INVALID, "INVALID_FIELD"))


async def test_local_times_are_read_in_the_zone_given_also_where_the_clock_changes(world: OfflineWorld) -> None:
    path = world.folder / "delays.csv"
    path.write_text("carrier,when,delay_mean\nAA,2025-11-02 00:30:00,1\nAA,2025-11-02 03:30:00,3\n")
    await world.features.apply(an_entity(), batch_view(csv_source(path, time_zone="America/New_York")))
    # 01:30 comes twice on that day; taken as the first of the two, 05:30 UTC. 03:30 is 08:30 UTC.
    times = [datetime.fromisoformat(f"2025-11-02T0{hour}:30") for hour in (0, 1, 3)]
    rows = pa.table({"carrier": ["AA"] * 3, "at": pa.array(times, pa.timestamp("us"))})
    found = await world.join(rows, ["batch.delay_mean"], time_zone="America/New_York")
    assert [each["batch__delay_mean"] for each in found] == [1, 1, 3]
    delayed = await world.join(
        rows, ["batch.delay_mean"], time_zone="America/New_York", assumed_delay=Duration(seconds=3 * 3600)
    )
    assert [each["batch__delay_mean"] for each in delayed] == [None, None, 1]
    utc = pa.table(
        {
            "carrier": ["AA"] * 2,
            "at": pa.array(
                [datetime.fromisoformat(f"2025-11-02T08:{minute}") for minute in (29, 30)], pa.timestamp("us", "UTC")
            ),
        }
    )
    assert [each["batch__delay_mean"] for each in await world.join(utc, ["batch.*"])] == [1, 3]


@pytest.mark.rpc(f"{JOBS}/CreateMaterializationJob", "happy")
@pytest.mark.rpc(f"{JOBS}/GetMaterializationJob", "happy")
@pytest.mark.rpc(f"{JOBS}/ListMaterializationJobs", "happy")
async def test_materializing_twice_equals_once_and_goes_on_where_the_last_ended(world: OfflineWorld) -> None:
    path = world.folder / "delays.csv"
    path.write_text("carrier,when,delay_mean\nAA,2025-06-01 10:00Z,1\nAA,2025-06-01 11:00Z,2\nBB,2025-06-01 10:00Z,5\n")
    await world.features.apply(an_entity(), batch_view(csv_source(path)))
    first = await world.materialize("batch", end_event_time=stamp(0))
    assert first.status.state == jobs.JOB_STATE_SUCCEEDED, first
    assert (first.status.done_count, first.status.total_count, first.written_count, first.older_count) == (3, 3, 3, 0)
    assert (await world.read("batch.delay_mean", "AA"), await world.read("batch.delay_mean", "BB")) == (2, 5)
    again = await world.materialize("batch", start_event_time=stamp(-24), end_event_time=stamp(0))
    assert (again.status.done_count, again.written_count) == (3, 0)
    with path.open("a") as file:
        file.write("AA,2025-06-01 13:00Z,3\n,2025-06-01 13:00Z,3\nAA,yesterday,3\nAA,2025-06-01 14:00Z,much\nAA,1\n")
    later = await world.materialize("batch")
    assert later.start_event_time == stamp(0)
    assert (later.status.done_count, later.written_count) == (1, 1)
    assert dict(later.status.skipped_counts) == {
        "MISSING_KEY": 1,
        "INVALID_EVENT_TIME": 1,
        "INVALID_VALUE": 1,
        "INVALID_ROW": 1,
    }
    assert await world.read("batch.delay_mean", "AA") == 3
    listed = await world.jobs.ListMaterializationJobs(job_pb.ListMaterializationJobsRequest(page_size=2))
    assert [each.name for each in listed.materialization_jobs] == [later.name, again.name]
    rest = await world.jobs.ListMaterializationJobs(
        job_pb.ListMaterializationJobsRequest(page_size=2, page_token=listed.next_page_token)
    )
    assert [each.name for each in rest.materialization_jobs] == [first.name]
    assert not rest.next_page_token


@pytest.mark.rpc(f"{JOBS}/CreateMaterializationJob", "error")
@pytest.mark.rpc(f"{JOBS}/GetMaterializationJob", "error")
@pytest.mark.rpc(f"{JOBS}/ListMaterializationJobs", "error")
@pytest.mark.rpc(f"{JOBS}/CancelMaterializationJob", "error")
async def test_a_materialization_that_cannot_be_says_why(world: OfflineWorld) -> None:
    poisoned = world.folder / "poisoned.parquet"
    poisoned.write_bytes(b"PAR1" + bytes(range(256)) * 40 + b"PAR1")
    files = FileLocation(uri=f"file://{poisoned}", format=FILE_FORMAT_PARQUET)
    columns = world.folder / "columns.parquet"
    pq.write_table(pa.table({"carrier": ["AA"], "when": ["x"]}), columns)
    await world.features.apply(
        an_entity(),
        a_view(),
        batch_view(BatchSource(files=files, event_time_column="when")),
        batch_view(csv_source(world.folder / "none.csv"), "gone"),
        batch_view(
            BatchSource(
                files=FileLocation(uri=f"file://{columns}", format=FILE_FORMAT_PARQUET), event_time_column="when"
            ),
            "columns",
        ),
        batch_view(BatchSource(sql=SqlLocation(connection="none", query="delays"), event_time_column="when"), "no_sql"),
    )
    for view in ("batch", "gone", "columns", "no_sql"):
        job = await world.materialize(view)
        assert job.status.state == jobs.JOB_STATE_FAILED
        assert job.status.error.code == PRECONDITION.value[0], job
        assert b"SOURCE_UNREADABLE" in job.status.error.details[0].value
    await refuses(world.materialize("carrier_delays"), (PRECONDITION, "NOT_MATERIALIZABLE"))
    await refuses(world.materialize("nothing"), (NOT_FOUND, "RESOURCE_NOT_FOUND"))
    await refuses(
        world.materialize("batch", start_event_time=stamp(1), end_event_time=stamp(0)), (INVALID, "INVALID_FIELD")
    )
    await refuses(world.materialized("materializationJobs/none"), (NOT_FOUND, "RESOURCE_NOT_FOUND"))
    await refuses(
        world.jobs.ListMaterializationJobs(job_pb.ListMaterializationJobsRequest(page_size=-1)),
        (INVALID, "INVALID_FIELD"),
    )
    cancel = job_pb.CancelMaterializationJobRequest(name=job.name)
    await refuses(world.jobs.CancelMaterializationJob(cancel), (PRECONDITION, "JOB_ENDED"))


@pytest.mark.rpc(f"{JOBS}/CreatePointInTimeJoinJob", "happy")
@pytest.mark.rpc(f"{JOBS}/GetPointInTimeJoinJob", "happy")
async def test_a_table_is_joined_into_parquet_in_its_order(world: OfflineWorld) -> None:
    with sqlite3.connect(world.folder / "delays.db") as database:
        database.execute("CREATE TABLE flights (carrier TEXT, at TEXT, number INTEGER)")
        flights = [
            ("AA" if number % 3 else "BB", (NOON + timedelta(hours=number)).isoformat(), number) for number in range(50)
        ]
        database.executemany("INSERT INTO flights VALUES (?, ?, ?)", reversed(flights))
    database.close()
    await world.features.apply(an_entity(), a_view())
    await world.push("carrier_delays", *(row("AA", at, at, {"delay_mean": at}) for at in range(0, 50, 10)))
    source = BatchSource(sql=SqlLocation(connection="delays", query="flights"), event_time_column="at")
    output = world.folder / "joined"
    request = job_pb.CreatePointInTimeJoinJobRequest(
        point_in_time_join_job=jobs.PointInTimeJoinJob(
            rows=source, features=["carrier_delays.delay_mean"], output_uri=f"file://{output}"
        ),
        point_in_time_join_job_id="training-set",
        request_id=new_id(),
    )
    created = await world.jobs.CreatePointInTimeJoinJob(request)
    assert await world.jobs.CreatePointInTimeJoinJob(request) == created
    job = await _joined(world, "pointInTimeJoinJobs/training-set")
    assert job.status.state == jobs.JOB_STATE_SUCCEEDED, job
    assert job.status.creator == "local"
    found = pq.read_table(output)
    assert found.column("number").to_pylist() == list(range(49, -1, -1))
    want = [None if number % 3 == 0 else number // 10 * 10 for number in range(49, -1, -1)]
    assert found.column("carrier_delays__delay_mean").to_pylist() == want
    assert dict(job.present_counts) == {"carrier_delays.delay_mean": sum(each is not None for each in want)}


@pytest.mark.rpc(f"{JOBS}/CreatePointInTimeJoinJob", "error")
@pytest.mark.rpc(f"{JOBS}/GetPointInTimeJoinJob", "error")
@pytest.mark.rpc(f"{JOBS}/ListPointInTimeJoinJobs", "happy")
@pytest.mark.rpc(f"{JOBS}/ListPointInTimeJoinJobs", "error")
@pytest.mark.rpc(f"{JOBS}/CancelPointInTimeJoinJob", "error")
async def test_a_join_job_that_cannot_be_says_why(world: OfflineWorld) -> None:
    await world.features.apply(an_entity(), a_view())
    path = world.folder / "rows.csv"
    path.write_text("carrier,when\nAA,2025-06-01T10:00:00Z\n")
    full = world.folder / "full"
    full.mkdir()
    (full / "something").touch()

    async def create(job_id: str = "", **fields: Any) -> Any:
        values = {
            "rows": csv_source(path),
            "features": ["carrier_delays.*"],
            "output_uri": f"file://{full}",
            **fields,
        }
        request = job_pb.CreatePointInTimeJoinJobRequest(
            point_in_time_join_job=jobs.PointInTimeJoinJob(**values), point_in_time_join_job_id=job_id
        )
        return (await world.jobs.CreatePointInTimeJoinJob(request)).point_in_time_join_job

    job = await _joined(world, (await create("full")).name)
    assert job.status.state == jobs.JOB_STATE_FAILED
    assert b"OUTPUT_UNUSABLE" in job.status.error.details[0].value
    await refuses(create("Full"), (grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"))
    await refuses(create(features=[]), (INVALID, "INVALID_FIELD"))
    await refuses(create(features=["nothing.*"]), (NOT_FOUND, "RESOURCE_NOT_FOUND"))
    await refuses(create(rows=BatchSource()), (INVALID, "INVALID_FIELD"))
    await refuses(create("no/id"), (INVALID, "INVALID_NAME"))
    with refused(INVALID, "INVALID_FIELD") as seen:
        await create(rows=csv_source(Path("/etc/passwd")), output_uri="file:///etc")
    assert set(seen[0].violations) == {"point_in_time_join_job.rows.files.uri", "point_in_time_join_job.output_uri"}
    await refuses(_joined(world, "pointInTimeJoinJobs/none"), (NOT_FOUND, "RESOURCE_NOT_FOUND"))
    cancel = job_pb.CancelPointInTimeJoinJobRequest(name=job.name)
    await refuses(world.jobs.CancelPointInTimeJoinJob(cancel), (PRECONDITION, "JOB_ENDED"))
    listed = await world.jobs.ListPointInTimeJoinJobs(job_pb.ListPointInTimeJoinJobsRequest())
    assert [each.name for each in listed.point_in_time_join_jobs] == [job.name]
    bad_page = job_pb.ListPointInTimeJoinJobsRequest(page_token="nonsense")
    await refuses(world.jobs.ListPointInTimeJoinJobs(bad_page), (INVALID, "INVALID_PAGE_TOKEN"))


async def _joined(world: OfflineWorld, name: str) -> jobs.PointInTimeJoinJob:
    while True:
        job = (
            await world.jobs.GetPointInTimeJoinJob(job_pb.GetPointInTimeJoinJobRequest(name=name))
        ).point_in_time_join_job
        if job.status.state in ENDED:
            return job
        await asyncio.sleep(0.05)


@pytest.mark.rpc(f"{JOBS}/CancelMaterializationJob", "happy")
@pytest.mark.rpc(f"{JOBS}/CancelPointInTimeJoinJob", "happy")
@pytest.mark.rpc(f"{JOBS}/CancelParityJob", "happy")
async def test_a_job_stops_when_it_is_told_to_whether_it_runs_or_waits(world: OfflineWorld) -> None:
    """Nobody ever writes into the pipe that two jobs read, so a third one waits."""
    pipe = world.folder / "never.csv"
    os.mkfifo(pipe)
    await world.features.apply(an_entity(), a_view(), batch_view(csv_source(pipe)))
    job = jobs.MaterializationJob(feature_view="featureViews/batch")
    request = job_pb.CreateMaterializationJobRequest(materialization_job=job)
    first, second = [(await world.jobs.CreateMaterializationJob(request)).materialization_job.name for _ in range(2)]
    join = jobs.PointInTimeJoinJob(
        rows=csv_source(pipe), features=["carrier_delays.*"], output_uri=f"file://{world.folder / 'out'}"
    )
    create_join = job_pb.CreatePointInTimeJoinJobRequest(point_in_time_join_job=join)
    waiting = (await world.jobs.CreatePointInTimeJoinJob(create_join)).point_in_time_join_job.name
    parity = await world.start_parity()
    for name in (first, second):
        await world.running(name)
    await world.jobs.CancelParityJob(job_pb.CancelParityJobRequest(name=parity))
    assert (await world.compared(parity)).status.state == jobs.JOB_STATE_CANCELLED
    cancel = job_pb.CancelMaterializationJobRequest(name=first, request_id=new_id())
    answer = await world.jobs.CancelMaterializationJob(cancel)
    assert answer.materialization_job.status.state == jobs.JOB_STATE_CANCELLING
    assert (await world.materialized(first)).status.state == jobs.JOB_STATE_CANCELLED
    assert await world.jobs.CancelMaterializationJob(cancel) == answer
    await world.jobs.CancelPointInTimeJoinJob(job_pb.CancelPointInTimeJoinJobRequest(name=waiting))
    assert (await _joined(world, waiting)).status.state == jobs.JOB_STATE_CANCELLED


async def test_a_job_whose_process_was_killed_is_done_by_another(tmp_path: Path, redis: RedisProcess) -> None:
    """The first process takes the job and never says a word again; the second waits for the lease to run out."""
    path = tmp_path / "delays.csv"
    path.write_text("carrier,when,delay_mean\nAA,2025-06-01 10:00Z,1\n")
    state = tmp_path / "state"
    settings: dict[str, Any] = {"redis_url": f"unix://{redis.socket}", "job_poll_s": 0.05}
    async with running_features(state, **settings) as features:
        await features.apply(an_entity(), batch_view(csv_source(path)))
    database = Database(f"sqlite:///{state / 'features' / 'features.db'}", service="features")
    try:
        killed = SqlJobStore(database, "killed")
        spec, status = MaterializationSpec(view="featureViews/batch"), JobStatus(create_time=datetime.now(UTC))
        job = Job("materializationJobs/one", spec, MaterializationOutcome(), status)
        await killed.create(job, Asked("local", "", ""))
        taken = await killed.claim(0.5)
        assert taken is not None
        async with running_features(state, **settings) as features:
            world = OfflineWorld(features, tmp_path)
            done = await world.materialized(job.name)
            assert (done.status.state, done.written_count) == (jobs.JOB_STATE_SUCCEEDED, 1)
        with pytest.raises(LeaseLost):
            await killed.keep(taken, 1)
    finally:
        await database.close()


async def test_a_job_that_a_draining_process_let_go_is_done_by_another_at_once(
    tmp_path: Path, redis: RedisProcess
) -> None:
    """The lease is far longer than a test may take."""
    path = tmp_path / "delays.csv"
    os.mkfifo(path)
    settings: dict[str, Any] = {"redis_url": f"unix://{redis.socket}", "job_poll_s": 0.05, "job_lease_s": 600}
    async with running_features(tmp_path / "state", **settings) as features:
        world = OfflineWorld(features, tmp_path)
        await features.apply(an_entity(), batch_view(csv_source(path)))
        job = jobs.MaterializationJob(feature_view="featureViews/batch")
        request = job_pb.CreateMaterializationJobRequest(materialization_job=job)
        name = (await world.jobs.CreateMaterializationJob(request)).materialization_job.name
        await world.running(name)
    path.unlink()
    path.write_text("carrier,when,delay_mean\nAA,2025-06-01 10:00Z,1\n")
    async with running_features(tmp_path / "state", **settings) as features:
        done = await OfflineWorld(features, tmp_path).materialized(name)
        assert (done.status.state, done.written_count) == (jobs.JOB_STATE_SUCCEEDED, 1)


async def test_a_full_disk_ends_a_join_with_that_word_and_nothing_else(
    world: OfflineWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that a client sends, and then the result that the child writes, go to a device that is always full."""
    await world.features.apply(an_entity(), a_view())
    await world.push("carrier_delays", row("AA", 0, 0, {"delay_mean": 1}))
    open_folder = OfflineProcesses.folder
    for name in ("rows.arrow", "output.arrow"):

        @asynccontextmanager
        async def full(processes: OfflineProcesses, name: str = name) -> AsyncIterator[Path]:
            async with open_folder(processes) as folder:
                (folder / name).symlink_to("/dev/full")
                yield folder

        with monkeypatch.context() as broken:
            broken.setattr(OfflineProcesses, "folder", full)
            await refuses(world.join(labels(("AA", 1)), ["carrier_delays.*"]), (EXHAUSTED, "STORAGE_FULL"))
    assert [
        each["carrier_delays__delay_mean"] for each in await world.join(labels(("AA", 1)), ["carrier_delays.*"])
    ] == [1]
