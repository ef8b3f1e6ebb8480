"""The offline side of a running features service, and what tests say to it."""

import asyncio
import io
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.features.v1 import feature_job_pb2 as jobs
from interlock.features.v1 import feature_job_service_pb2 as job_pb
from interlock.features.v1 import feature_service_pb2 as online_pb
from interlock.features.v1 import offline_feature_service_pb2 as pb
from interlock.features.v1.feature_job_service_pb2_grpc import FeatureJobServiceStub
from interlock.features.v1.feature_service_pb2_grpc import FeatureServiceStub
from interlock.features.v1.feature_view_pb2 import FILE_FORMAT_CSV, BatchSource, Feature, FeatureView, FileLocation
from interlock.features.v1.offline_feature_service_pb2_grpc import OfflineFeatureServiceStub
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE

from tests.fakes.features_service import Features, a_view
from tests.fakes.parity_world import VERSION
from tests.fakes.registry_service import refused

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
ENDED = (jobs.JOB_STATE_SUCCEEDED, jobs.JOB_STATE_FAILED, jobs.JOB_STATE_CANCELLED)


class OfflineWorld:
    """The service and what a test says to it."""

    def __init__(self, features: Features, folder: Path) -> None:
        self.features = features
        self.folder = folder
        self.online = FeatureServiceStub(features.channel)
        self.offline = OfflineFeatureServiceStub(features.channel)
        self.jobs = FeatureJobServiceStub(features.channel)

    async def push(self, view: str, *rows: online_pb.FeatureRow) -> None:
        answer = await self.online.PushFeatures(
            online_pb.PushFeaturesRequest(feature_view=f"featureViews/{view}", rows=rows)
        )
        assert not [each.error for each in answer.results if each.HasField("error")]

    async def join(self, rows: pa.Table, features: list[str], **fields: Any) -> list[dict[str, Any]]:
        opened = pb.JoinOpen(features=features, time_column="at", **fields)
        answer = self.offline.JoinFeatures(iter(requests_of(opened, stream_of(rows))))
        content = b"".join([message.arrow_stream async for message in answer])
        found: list[dict[str, Any]] = pa.ipc.open_stream(content).read_all().to_pylist()
        return found

    async def materialize(self, view: str, **fields: Any) -> jobs.MaterializationJob:
        job = jobs.MaterializationJob(feature_view=f"featureViews/{view}", **fields)
        created = await self.jobs.CreateMaterializationJob(
            job_pb.CreateMaterializationJobRequest(materialization_job=job)
        )
        return await self.materialized(created.materialization_job.name)

    async def materialized(self, name: str) -> jobs.MaterializationJob:
        request = job_pb.GetMaterializationJobRequest(name=name)
        while True:
            job = (await self.jobs.GetMaterializationJob(request)).materialization_job
            if job.status.state in ENDED:
                return job
            await asyncio.sleep(0.05)

    async def running(self, name: str) -> None:
        """Wait until a materialization is at work."""
        request = job_pb.GetMaterializationJobRequest(name=name)
        while (
            await self.jobs.GetMaterializationJob(request)
        ).materialization_job.status.state != jobs.JOB_STATE_RUNNING:
            await asyncio.sleep(0.02)

    async def start_parity(self, **fields: Any) -> str:
        """Start a check of the version that parity_world has, unless vectors are given."""
        logged = {"model_version": VERSION, "start_time": stamp(0), "end_time": stamp(12)}
        job = jobs.ParityJob(**(fields if "vectors" in fields else logged | fields))
        request = job_pb.CreateParityJobRequest(parity_job=job)
        return (await self.jobs.CreateParityJob(request)).parity_job.name

    async def compared(self, name: str) -> jobs.ParityJob:
        while True:
            job = (await self.jobs.GetParityJob(job_pb.GetParityJobRequest(name=name))).parity_job
            if job.status.state in ENDED:
                return job
            await asyncio.sleep(0.05)

    async def read(self, feature: str, carrier: str) -> Any:
        request = online_pb.ReadFeaturesRequest(
            features=[feature], rows=[online_pb.ReadRow(entities={"carrier": carrier})]
        )
        value = (await self.online.ReadFeatures(request)).columns[0].values[0]
        return getattr(value, value.WhichOneof("kind") or "null_value")


async def refuses(call: Awaitable[Any], expected: tuple[grpc.StatusCode, str]) -> None:
    with refused(*expected):
        await call


def requests_of(opened: pb.JoinOpen, content: bytes) -> list[pb.JoinFeaturesRequest]:
    chunks = [content[start : start + 1000] for start in range(0, len(content), 1000)]
    return [pb.JoinFeaturesRequest(open=opened), *(pb.JoinFeaturesRequest(arrow_stream=each) for each in chunks)]


def stream_of(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


def labels(*rows: tuple[str, float], zone: str | None = "UTC") -> pa.Table:
    times = [NOON + timedelta(hours=at) for _, at in rows]
    return pa.table(
        {
            "carrier": [carrier for carrier, _ in rows],
            "at": pa.array(times if zone else [each.replace(tzinfo=None) for each in times], pa.timestamp("us", zone)),
            "late": pa.array([5.0] * len(rows)),
        }
    )


def stamp(at: float) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(NOON + timedelta(hours=at))
    return found


def row(carrier: str, at: float, known: float, values: Mapping[str, float], event_id: str = "") -> online_pb.FeatureRow:
    return online_pb.FeatureRow(
        entities={"carrier": carrier},
        values={name: FeatureValue(double_value=value) for name, value in values.items()},
        event_time=stamp(at),
        known_at=stamp(known),
        event_id=event_id,
    )


def batch_view(source: BatchSource, view_id: str = "batch") -> FeatureView:
    return a_view(view_id, features=[Feature(name="delay_mean", type=FEATURE_TYPE_DOUBLE)], batch_source=source)


def csv_source(path: Path, **fields: Any) -> BatchSource:
    return BatchSource(
        files=FileLocation(uri=f"file://{path}", format=FILE_FORMAT_CSV), event_time_column="when", **fields
    )
