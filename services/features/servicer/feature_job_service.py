"""FeatureJobService: long work is started, looked at and stopped here; somebody else does it."""

import hashlib
from typing import Any
from uuid import uuid4

from google.protobuf.message import Message
from interlock.features.v1 import feature_job_service_pb2 as pb

from services.common.call import Call
from services.common.names import parse_id
from services.common.pagination import parse_page
from services.common.refusals import request_id_of
from services.features.convert.job import job_to_proto, spec_from_proto
from services.features.domain.definitions import NEVER
from services.features.domain.file_roots import FileRoots
from services.features.domain.job import Job, JobKind, JobStatus, first_outcome
from services.features.domain.job_store import Asked, JobCheck, JobStore, JobWatch


class FeatureJobServicer:
    """One method for each RPC of FeatureJobService."""

    def __init__(self, store: JobStore, watch: JobWatch, check: JobCheck, roots: FileRoots) -> None:
        self._store = store
        self._watch = watch
        self._check = check
        self._roots = roots

    async def CreatePointInTimeJoinJob(
        self, request: pb.CreatePointInTimeJoinJobRequest, call: Call
    ) -> pb.CreatePointInTimeJoinJobResponse:
        """Start a point-in-time join."""
        job = await self._create(JobKind.JOIN, request, call, "point_in_time_join_job")
        return pb.CreatePointInTimeJoinJobResponse(point_in_time_join_job=job)

    async def GetPointInTimeJoinJob(
        self, request: pb.GetPointInTimeJoinJobRequest, call: Call
    ) -> pb.GetPointInTimeJoinJobResponse:
        """Give a point-in-time join."""
        return pb.GetPointInTimeJoinJobResponse(point_in_time_join_job=await self._get(JobKind.JOIN, request.name))

    async def ListPointInTimeJoinJobs(
        self, request: pb.ListPointInTimeJoinJobsRequest, call: Call
    ) -> pb.ListPointInTimeJoinJobsResponse:
        """List point-in-time joins."""
        jobs, token = await self._list(JobKind.JOIN, request)
        return pb.ListPointInTimeJoinJobsResponse(point_in_time_join_jobs=jobs, next_page_token=token)

    async def CancelPointInTimeJoinJob(
        self, request: pb.CancelPointInTimeJoinJobRequest, call: Call
    ) -> pb.CancelPointInTimeJoinJobResponse:
        """Ask a point-in-time join to stop."""
        job = await self._cancel(JobKind.JOIN, request, call)
        return pb.CancelPointInTimeJoinJobResponse(point_in_time_join_job=job)

    async def CreateMaterializationJob(
        self, request: pb.CreateMaterializationJobRequest, call: Call
    ) -> pb.CreateMaterializationJobResponse:
        """Start a materialization."""
        job = await self._create(JobKind.MATERIALIZATION, request, call, "materialization_job")
        return pb.CreateMaterializationJobResponse(materialization_job=job)

    async def GetMaterializationJob(
        self, request: pb.GetMaterializationJobRequest, call: Call
    ) -> pb.GetMaterializationJobResponse:
        """Give a materialization."""
        job = await self._get(JobKind.MATERIALIZATION, request.name)
        return pb.GetMaterializationJobResponse(materialization_job=job)

    async def ListMaterializationJobs(
        self, request: pb.ListMaterializationJobsRequest, call: Call
    ) -> pb.ListMaterializationJobsResponse:
        """List materializations."""
        jobs, token = await self._list(JobKind.MATERIALIZATION, request)
        return pb.ListMaterializationJobsResponse(materialization_jobs=jobs, next_page_token=token)

    async def CancelMaterializationJob(
        self, request: pb.CancelMaterializationJobRequest, call: Call
    ) -> pb.CancelMaterializationJobResponse:
        """Ask a materialization to stop."""
        job = await self._cancel(JobKind.MATERIALIZATION, request, call)
        return pb.CancelMaterializationJobResponse(materialization_job=job)

    async def CreateParityJob(self, request: pb.CreateParityJobRequest, call: Call) -> pb.CreateParityJobResponse:
        """Start a parity check."""
        job = await self._create(JobKind.PARITY, request, call, "parity_job")
        return pb.CreateParityJobResponse(parity_job=job)

    async def GetParityJob(self, request: pb.GetParityJobRequest, call: Call) -> pb.GetParityJobResponse:
        """Give a parity check."""
        return pb.GetParityJobResponse(parity_job=await self._get(JobKind.PARITY, request.name))

    async def ListParityJobs(self, request: pb.ListParityJobsRequest, call: Call) -> pb.ListParityJobsResponse:
        """List parity checks."""
        jobs, token = await self._list(JobKind.PARITY, request)
        return pb.ListParityJobsResponse(parity_jobs=jobs, next_page_token=token)

    async def CancelParityJob(self, request: pb.CancelParityJobRequest, call: Call) -> pb.CancelParityJobResponse:
        """Ask a parity check to stop."""
        return pb.CancelParityJobResponse(parity_job=await self._cancel(JobKind.PARITY, request, call))

    async def _create(self, kind: JobKind, request: Any, call: Call, field: str) -> Any:
        asked = _asked(request, call)
        spec = spec_from_proto(getattr(request, field), self._roots, field)
        chosen = getattr(request, f"{field}_id")
        job_id = parse_id(chosen, f"{field}_id") if chosen else uuid4().hex
        status = JobStatus(create_time=NEVER, creator=call.principal)
        job = Job(kind.value.format(job_id), spec, first_outcome(spec), status)
        self._check.check(job)
        job = await self._store.create(job, asked)
        self._watch.notice(job.name)
        return job_to_proto(job)

    async def _get(self, kind: JobKind, name: str) -> Any:
        kind.value.parse(name)
        return job_to_proto(await self._store.get(kind, name))

    async def _list(self, kind: JobKind, request: Any) -> tuple[list[Any], str]:
        page = parse_page(request.page_size, request.page_token, {"kind": kind.name})
        found = await self._store.list(kind, page.after, page.size + 1)
        shown = found[: page.size]
        token = page.next_token(shown[-1][0]) if len(found) > page.size else ""
        return [job_to_proto(job) for _, job in shown], token

    async def _cancel(self, kind: JobKind, request: Any, call: Call) -> Any:
        kind.value.parse(request.name)
        job = await self._store.cancel(kind, request.name, _asked(request, call))
        self._watch.notice(job.name)
        return job_to_proto(job)


def _asked(request: Any, call: Call) -> Asked:
    body: Message = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    content = call.method.encode() + b"\0" + body.SerializeToString(deterministic=True)
    return Asked(call.principal, request_id_of(request.request_id), hashlib.sha256(content).hexdigest())
