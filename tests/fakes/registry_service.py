"""The real registry in this process, over a real Unix socket, and what tests ask of it."""

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from interlock.registry.v1 import artifact_service_pb2 as artifact_pb
from interlock.registry.v1 import artifact_service_pb2_grpc as artifact_rpc
from interlock.registry.v1 import control_service_pb2 as control_pb
from interlock.registry.v1 import control_service_pb2_grpc as control_rpc
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.registry.v1 import registry_service_pb2_grpc as rpc
from interlock.registry.v1.deployment_pb2 import DEPLOYMENT_STATE_READY, Deployment
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, GoldenRow, ModelFile, ModelVersion
from interlock.registry.v1.route_pb2 import Route, Variant
from interlock.types.v1.signature_pb2 import (
    FEATURE_TYPE_DOUBLE,
    TASK_REGRESSION,
    FeatureSpec,
    PredictionSpec,
    Signature,
)
from interlock.types.v1.tensor_pb2 import DATA_TYPE_FP32, Tensor, TensorSpec

from services.common.database import Database
from services.common.server import serving
from services.registry.app import build
from services.registry.settings import RegistrySettings
from tests.fakes.ports import free_offset

MODEL_BYTES = b"weights of a model" * 100
MODEL_DIGEST = hashlib.sha256(MODEL_BYTES).hexdigest()


@dataclass
class Registry:
    """A running registry and clients of its three services."""

    settings: RegistrySettings
    address: str
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.api = rpc.RegistryServiceStub(self.channel)
        self.artifacts = artifact_rpc.ArtifactServiceStub(self.channel)
        self.control = control_rpc.ControlServiceStub(self.channel)

    async def upload(self, content: bytes = MODEL_BYTES, chunk_bytes: int = 512) -> str:
        digest = hashlib.sha256(content).hexdigest()
        answer = await self.artifacts.UploadArtifact(iter(upload_messages(content, chunk_bytes)))
        assert answer.artifact.complete
        return digest

    async def create_model(self, model: str = "fraud") -> None:
        await self.api.CreateModel(pb.CreateModelRequest(model_id=model))

    async def create_version(self, model: str = "fraud", **fields: Any) -> ModelVersion:
        await self.upload()
        request = pb.CreateModelVersionRequest(parent=f"models/{model}", model_version=a_version(**fields))
        return (await self.api.CreateModelVersion(request)).model_version

    async def deploy(self, version: str = "1", model: str = "fraud", **fields: Any) -> Deployment:
        request = pb.DeployModelRequest(model=model, version=version, **fields)
        return (await self.api.DeployModel(request)).deployment

    async def report(
        self, *deployments: str, state: int = DEPLOYMENT_STATE_READY, replica: str = "r-1", **fields: Any
    ) -> control_pb.ReportReplicaResponse:
        request = control_pb.ReportReplicaRequest(replica_id=replica, pool=fields.pop("pool", "default"), **fields)
        for name in deployments:
            request.reports.add(deployment=name, state=state, message="said so")
        return await self.control.ReportReplica(request)

    async def serve_versions(self, *shares: float | None, model: str = "fraud") -> list[Deployment]:
        """Register and deploy as many versions, each READY before the next, with these shares of the traffic."""
        await self.create_model(model)
        found = []
        for number, share in enumerate(shares, start=1):
            await self.create_version(model, description=f"number {number}")
            found.append(await self.deploy(str(number), model, traffic_percent=share))
            await self.report(*[each.name for each in found])
        return found

    async def route(self, model: str = "fraud", environment: str = "production") -> Route:
        return (await self.api.GetRoute(pb.GetRouteRequest(name=f"models/{model}/routes/{environment}"))).route

    async def set_route(self, *variants: Variant, **fields: Any) -> pb.UpdateRouteResponse:
        name = fields.pop("name", "models/fraud/routes/production")
        route = Route(name=name, variants=variants, **fields)
        return await self.api.UpdateRoute(pb.UpdateRouteRequest(route=route))

    async def deployment(self, name: str) -> Deployment:
        return (await self.api.GetDeployment(pb.GetDeploymentRequest(name=name))).deployment


@asynccontextmanager
async def running_registry(state_dir: Path, database_url: str = "", **settings: Any) -> AsyncIterator[Registry]:
    """Run the registry on a Unix socket of its own while the block runs, with a client on it."""
    values = {"drain_delay_s": 0, "drain_grace_s": 2, "artifact_least_free_share": 0, "watch_poll_s": 0.05, **settings}
    found = RegistrySettings(state_dir=state_dir, database_url=database_url, port_offset=free_offset(), **values)
    with short_folder() as folder:
        address = f"unix:{folder / 'registry.sock'}"
        async with serving("registry", found, build, [address]), grpc.aio.insecure_channel(address) as channel:
            yield Registry(found, address, channel)


async def execute(database_url: str, statement: str) -> None:
    """Change the database behind the registry's back."""
    database = Database(database_url, service="registry")
    async with database.write() as connection:
        await connection.exec_driver_sql(statement)
    await database.close()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a Unix socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Refusal:
    """What a client sees of an error."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    violations: dict[str, str]

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Refusal":
        status, info, bad = Status(), ErrorInfo(), BadRequest()
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                status.ParseFromString(value if isinstance(value, bytes) else value.encode())
        assert [detail.Unpack(info) for detail in status.details].count(True) == 1, "want exactly one ErrorInfo"
        for detail in status.details:
            detail.Unpack(bad)
        violations = {each.field: each.description for each in bad.field_violations}
        return cls(error.code(), info.reason, error.details() or "", dict(info.metadata), violations)


@contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[list[Refusal]]:
    """Expect the block to be refused with this code and reason; the list then holds what the client saw."""
    seen: list[Refusal] = []
    try:
        yield seen
    except grpc.aio.AioRpcError as error:
        seen.append(Refusal.of(error))
    assert seen, f"want {code.name}, got an answer"
    assert (seen[0].code, seen[0].reason) == (code, reason), seen[0]
    for secret in ("Traceback", "services.", "/tmp", "sqlalchemy", ".py"):
        assert secret not in seen[0].message


def new_id() -> str:
    return str(uuid.uuid4())


def upload_messages(
    content: bytes, chunk_bytes: int = 512, *, offset: int = 0, digest: str = ""
) -> list[artifact_pb.UploadArtifactRequest]:
    start = artifact_pb.UploadStart(
        digest=digest or hashlib.sha256(content).hexdigest(), size_bytes=len(content), offset_bytes=offset
    )
    chunks = [content[at : at + chunk_bytes] for at in range(offset, len(content), chunk_bytes)]
    return [
        artifact_pb.UploadArtifactRequest(start=start),
        *(artifact_pb.UploadArtifactRequest(chunk=chunk) for chunk in chunks),
    ]


def a_signature() -> Signature:
    """Two numbers in, one number out."""
    return Signature(
        inputs=[TensorSpec(name="x", data_type=DATA_TYPE_FP32, shape=[-1, 2])],
        outputs=[TensorSpec(name="y", data_type=DATA_TYPE_FP32, shape=[-1, 1])],
        features=[
            FeatureSpec(name="amount", type=FEATURE_TYPE_DOUBLE, tensor="x", column=0),
            FeatureSpec(name="age", type=FEATURE_TYPE_DOUBLE, tensor="x", column=1),
        ],
        prediction=PredictionSpec(task=TASK_REGRESSION, tensor="y"),
    )


def a_golden_row() -> GoldenRow:
    return GoldenRow(
        inputs=[Tensor(name="x", data_type=DATA_TYPE_FP32, shape=[1, 2], data=bytes(8))],
        outputs=[Tensor(name="y", data_type=DATA_TYPE_FP32, shape=[1, 1], data=bytes(4))],
    )


def a_version(**fields: Any) -> ModelVersion:
    """A sound version whose one file is MODEL_BYTES."""
    values: dict[str, Any] = {
        "runtime": RUNTIME_ONNX,
        "files": [ModelFile(path="model.onnx", digest=MODEL_DIGEST)],
        "signature": a_signature(),
        "golden_rows": [a_golden_row()],
        **fields,
    }
    return ModelVersion(**values)


def seconds(count: float) -> Duration:
    return Duration(seconds=int(count), nanos=round((count % 1) * 1e9))


def weights(route: Route) -> dict[str, int]:
    return {variant.name: variant.weight_basis_points for variant in route.variants}


def buckets(variant: Variant) -> set[int]:
    return {bucket for each in variant.buckets for bucket in range(each.first, each.last + 1)}


def variants(**shares: int) -> Sequence[Variant]:
    """Variants by deployment id, `_` standing for `-`."""
    return [
        Variant(deployment=f"deployments/{name.replace('_', '-')}", weight_basis_points=weight)
        for name, weight in shares.items()
    ]
