"""Features as they were known at a time, joined to rows of labels; and the jobs of the features service."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from interlock.features.v1 import feature_job_pb2 as jobs
from interlock.features.v1 import feature_job_service_pb2 as job_pb
from interlock.features.v1 import feature_job_service_pb2_grpc, offline_feature_service_pb2_grpc
from interlock.features.v1 import feature_view_pb2 as view_pb
from interlock.features.v1 import offline_feature_service_pb2 as pb

from interlock_sdk.channel import Caller, new_request_id
from interlock_sdk.values import timestamp

ENDED = (jobs.JOB_STATE_SUCCEEDED, jobs.JOB_STATE_FAILED, jobs.JOB_STATE_CANCELLED)
_CHUNK_BYTES = 512 * 1024
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
AnyJob = jobs.PointInTimeJoinJob | jobs.MaterializationJob | jobs.ParityJob
JobT = TypeVar("JobT", jobs.PointInTimeJoinJob, jobs.MaterializationJob, jobs.ParityJob)


class OfflineFeatures:
    """Point-in-time joins, by stream and by job, materialization and parity. Times without a zone are refused."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._joins = offline_feature_service_pb2_grpc.OfflineFeatureServiceStub(caller.channel)
        self._jobs = feature_job_service_pb2_grpc.FeatureJobServiceStub(caller.channel)

    async def join(
        self,
        rows: Any,
        features: Sequence[str],
        *,
        time_column: str = "event_time",
        entity_columns: Mapping[str, str] | None = None,
        time_zone: str = "",
        event_time_only: bool = False,
        assumed_delay: timedelta = timedelta(),
        include_event_times: bool = False,
    ) -> Any:
        """Joins features to rows, each value as it was known at the row's time.

        Args:
            rows: a pyarrow Table or a pandas DataFrame with entity keys and a time. Its index is not sent.
            features: "<view>.<feature>" or "<view>.*".
            time_column: column with the time of each row.
            entity_columns: columns with the keys, by entity id; without one it is the entity's id.
            time_zone: IANA zone of times that carry none.
            event_time_only: leave the second clock out: leaks what became known late, for comparison.
            assumed_delay: from event time to known-at time in batch sources that have no known-at column.
            include_event_times: whether a column "<view>__event_time" is wanted for each view.

        Returns:
            The rows in their order with a column "<view>__<feature>" for each, null where nothing was known: a Table
            for a Table, a DataFrame for a DataFrame.

        Raises:
            CallError: RESOURCE_EXHAUSTED for more rows than the service takes; `join_table` has no such limit.
        """
        import pyarrow as pa  # noqa: PLC0415 - only who joins needs it

        is_table = isinstance(rows, pa.Table)
        table = rows if is_table else pa.Table.from_pandas(rows, preserve_index=False)
        opened = pb.JoinOpen(
            features=features,
            time_column=time_column,
            entity_columns=entity_columns,
            time_zone=time_zone,
            clock=jobs.JOIN_CLOCK_EVENT_TIME if event_time_only else jobs.JOIN_CLOCK_BOTH,
            assumed_delay=_duration(assumed_delay),
            include_event_times=include_event_times,
        )
        content = await asyncio.to_thread(_stream_of, table)
        answer = self._caller.stream(self._joins.JoinFeatures(_requests(opened, content)))
        received = b"".join([message.arrow_stream async for message in answer])
        joined = await asyncio.to_thread(lambda: pa.ipc.open_stream(received).read_all())
        return joined if is_table else joined.to_pandas()

    async def join_table(self, job: jobs.PointInTimeJoinJob, *, job_id: str = "") -> jobs.PointInTimeJoinJob:
        """Starts a join of a table; its result is Parquet in a folder that the service can write."""
        request = job_pb.CreatePointInTimeJoinJobRequest(
            point_in_time_join_job=job, point_in_time_join_job_id=job_id, request_id=new_request_id()
        )
        return (await self._caller.call(self._jobs.CreatePointInTimeJoinJob, request)).point_in_time_join_job

    async def materialize(
        self, view: str, *, start: datetime | None = None, end: datetime | None = None
    ) -> jobs.MaterializationJob:
        """Starts to bring a view's batch source online, from where the last job ended unless `start` is given."""
        job = jobs.MaterializationJob(
            feature_view=f"featureViews/{view}",
            start_event_time=None if start is None else timestamp(start),
            end_event_time=None if end is None else timestamp(end),
        )
        request = job_pb.CreateMaterializationJobRequest(materialization_job=job, request_id=new_request_id())
        return (await self._caller.call(self._jobs.CreateMaterializationJob, request)).materialization_job

    async def check_parity(
        self, model_version: str, *, start: datetime, end: datetime, max_row_count: int = 0
    ) -> jobs.ParityJob:
        """Starts to recompute logged predictions of `models/{model}/versions/{version}` offline."""
        job = jobs.ParityJob(
            model_version=model_version,
            start_time=timestamp(start),
            end_time=timestamp(end),
            max_row_count=max_row_count,
        )
        return await self._check(job)

    async def check_vectors(self, vectors: view_pb.BatchSource, *, max_row_count: int = 0) -> jobs.ParityJob:
        """Starts to recompute a table of vectors that were read online; `ParityJob.vectors` says what it holds."""
        return await self._check(jobs.ParityJob(vectors=vectors, max_row_count=max_row_count))

    async def _check(self, job: jobs.ParityJob) -> jobs.ParityJob:
        request = job_pb.CreateParityJobRequest(parity_job=job, request_id=new_request_id())
        return (await self._caller.call(self._jobs.CreateParityJob, request)).parity_job

    async def get(self, name: str) -> AnyJob:
        """Gives a job by its name, whatever its kind."""
        kind = name.partition("/")[0]
        if kind == "pointInTimeJoinJobs":
            join = job_pb.GetPointInTimeJoinJobRequest(name=name)
            return (await self._caller.call(self._jobs.GetPointInTimeJoinJob, join)).point_in_time_join_job
        if kind == "materializationJobs":
            request = job_pb.GetMaterializationJobRequest(name=name)
            return (await self._caller.call(self._jobs.GetMaterializationJob, request)).materialization_job
        parity = job_pb.GetParityJobRequest(name=name)
        return (await self._caller.call(self._jobs.GetParityJob, parity)).parity_job

    async def wait(self, job: JobT, on_change: Callable[[JobT], None] = lambda _job: None) -> JobT:
        """Waits until a job has ended and returns it; `on_change` hears of its progress."""
        pause_s = _FIRST_PAUSE_S
        while job.status.state not in ENDED:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            found = await self.get(job.name)
            assert isinstance(found, type(job))
            job = found
            on_change(job)
        return job


async def _requests(opened: pb.JoinOpen, content: memoryview) -> AsyncIterator[pb.JoinFeaturesRequest]:
    yield pb.JoinFeaturesRequest(open=opened)
    for chunk in _chunks(content):
        yield pb.JoinFeaturesRequest(arrow_stream=bytes(chunk))


def _chunks(content: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(content), _CHUNK_BYTES):
        yield content[start : start + _CHUNK_BYTES]


def _stream_of(table: Any) -> memoryview:
    import pyarrow as pa  # noqa: PLC0415 - only who joins needs it

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=65_536)
    return sink.getbuffer()


def _duration(delay: timedelta) -> Duration:
    found = Duration()
    found.FromTimedelta(delay)
    return found
