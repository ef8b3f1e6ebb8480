"""The public API as a client sees it, in memory: registry, artifact store and router behind one address.

It keeps the contract's answers and errors and none of its inner workings; faults are set from outside.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from interlock.registry.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    deployment_pb2,
    model_pb2,
    model_version_pb2,
    registry_service_pb2_grpc,
    route_pb2,
)
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.router.v1 import router_service_pb2, router_service_pb2_grpc
from interlock.types.v1 import feature_value_pb2

Context = grpc.aio.ServicerContext[Any, Any]
PAGE_SIZE = 2


async def refuse(context: Context, code: int, message: str, reason: str, details: Sequence[Message] = ()) -> NoReturn:
    status = Status(code=code, message=message)
    for detail in (ErrorInfo(reason=reason, domain="interlock"), *details):
        status.details.add().Pack(detail)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")


def page(items: Sequence[Any], token: str) -> tuple[Sequence[Any], str]:
    start = int(token or 0)
    end = start + PAGE_SIZE
    return items[start:end], str(end) if end < len(items) else ""


@dataclass
class FakeArtifacts(artifact_service_pb2_grpc.ArtifactServiceServicer):
    stored: dict[str, bytearray] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    received_chunk_bytes: int = 0
    upload_count: int = 0
    # Bytes after which each of the next uploads is cut off.
    cuts: list[int] = field(default_factory=list)
    # Status that each of the next uploads ends with, as code and reason.
    refusals: list[tuple[int, str]] = field(default_factory=list)

    def artifact(self, digest: str) -> artifact_pb2.Artifact:
        received, size = len(self.stored[digest]), self.sizes[digest]
        name = f"artifacts/{digest}"
        return artifact_pb2.Artifact(name=name, size_bytes=size, received_bytes=received, complete=received == size)

    async def GetArtifact(
        self, request: artifact_service_pb2.GetArtifactRequest, context: Context
    ) -> artifact_service_pb2.GetArtifactResponse:
        digest = request.name.removeprefix("artifacts/")
        if digest not in self.stored:
            await refuse(context, Code.NOT_FOUND, "no such artifact", "RESOURCE_NOT_FOUND")
        return artifact_service_pb2.GetArtifactResponse(artifact=self.artifact(digest))

    async def UploadArtifact(
        self, requests: AsyncIterator[artifact_service_pb2.UploadArtifactRequest], context: Context
    ) -> artifact_service_pb2.UploadArtifactResponse:
        self.upload_count += 1
        if self.refusals:
            # At the end, as for a wrong digest: of a stream that is refused while it writes, grpc.aio's client may report an
            # INTERNAL of its own instead.
            async for _ in requests:
                pass
            code, reason = self.refusals.pop(0)
            await refuse(context, code, "refused", reason)
        start = (await anext(requests)).start
        content = self.stored.setdefault(start.digest, bytearray())
        self.sizes[start.digest] = start.size_bytes
        if start.offset_bytes != len(content):
            await refuse(context, Code.INVALID_ARGUMENT, f"want offset {len(content)}", "WRONG_OFFSET")
        left = self.cuts.pop(0) if self.cuts else start.size_bytes
        async for request in requests:
            taken = request.chunk[:left]
            content += taken
            left -= len(taken)
            self.received_chunk_bytes += len(taken)
            if len(taken) < len(request.chunk):
                await refuse(context, Code.UNAVAILABLE, "draining", "DRAINING")
        return artifact_service_pb2.UploadArtifactResponse(artifact=self.artifact(start.digest))


@dataclass
class FakeRegistry(registry_service_pb2_grpc.RegistryServiceServicer):
    models: dict[str, model_pb2.Model] = field(default_factory=dict)
    versions: dict[str, model_version_pb2.ModelVersion] = field(default_factory=dict)
    deployments: dict[str, deployment_pb2.Deployment] = field(default_factory=dict)
    routes: dict[str, route_pb2.Route] = field(default_factory=dict)
    # Names of the changes that were made, and the request ids of all that were asked for.
    changes: list[str] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    # States that a new deployment goes through, one with each look; the last one stays.
    states: tuple["deployment_pb2.DeploymentState.ValueType", ...] = (
        deployment_pb2.DEPLOYMENT_STATE_LOADING,
        deployment_pb2.DEPLOYMENT_STATE_READY,
    )
    state_message: str = ""
    # How many of the next calls are refused with UNAVAILABLE, and of the next route updates with ABORTED.
    unavailable_count: int = 0
    aborted_count: int = 0
    looks: dict[str, int] = field(default_factory=dict)

    async def _admit(self, context: Context, request_id: str = "") -> None:
        if request_id:
            self.request_ids.append(request_id)
        if self.unavailable_count:
            self.unavailable_count -= 1
            await refuse(context, Code.UNAVAILABLE, "draining", "DRAINING")

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        await self._admit(context, request.request_id)
        name = f"models/{request.model_id}"
        if name in self.models:
            await refuse(context, Code.ALREADY_EXISTS, f"{name} exists", "RESOURCE_EXISTS")
        self.changes.append("CreateModel")
        self.models[name] = model_pb2.Model(name=name, description=request.model.description)
        return pb.CreateModelResponse(model=self.models[name])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        await self._admit(context)
        if request.name not in self.models:
            await refuse(context, Code.NOT_FOUND, f"no {request.name}", "RESOURCE_NOT_FOUND")
        return pb.GetModelResponse(model=self.models[request.name])

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        await self._admit(context)
        models, token = page(sorted(self.models.values(), key=lambda model: model.name), request.page_token)
        return pb.ListModelsResponse(models=models, next_page_token=token)

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Context
    ) -> pb.CreateModelVersionResponse:
        await self._admit(context, request.request_id)
        self.changes.append("CreateModelVersion")
        number = 1 + sum(name.startswith(f"{request.parent}/") for name in self.versions)
        version = model_version_pb2.ModelVersion()
        version.CopyFrom(request.model_version)
        version.name = f"{request.parent}/versions/{number}"
        self.versions[version.name] = version
        return pb.CreateModelVersionResponse(model_version=version)

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        await self._admit(context)
        newest_first = [*reversed([v for name, v in self.versions.items() if name.startswith(f"{request.parent}/")])]
        versions, token = page(newest_first, request.page_token)
        return pb.ListModelVersionsResponse(model_versions=versions, next_page_token=token)

    async def DeployModel(self, request: pb.DeployModelRequest, context: Context) -> pb.DeployModelResponse:
        await self._admit(context, request.request_id)
        self.changes.append("DeployModel")
        deployment = deployment_pb2.Deployment(
            name=f"deployments/{request.model}-{request.version}-{request.environment}",
            model_version=f"models/{request.model}/versions/{request.version}",
            environment=request.environment,
            pool=request.pool or "default",
            state=deployment_pb2.DEPLOYMENT_STATE_PENDING,
        )
        if not request.HasField("traffic_percent") and not self.deployments:
            deployment.pending_weight_basis_points = 10_000
        self.deployments[deployment.name] = deployment
        return pb.DeployModelResponse(deployment=deployment)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Context) -> pb.GetDeploymentResponse:
        await self._admit(context)
        deployment = self.deployments[request.name]
        look = self.looks[request.name] = self.looks.get(request.name, -1) + 1
        deployment.state = self.states[min(look, len(self.states) - 1)]
        deployment.state_message = self.state_message
        if deployment.state == deployment_pb2.DEPLOYMENT_STATE_READY and deployment.pending_weight_basis_points:
            self._route_to(deployment)
        return pb.GetDeploymentResponse(deployment=deployment)

    def _route_to(self, deployment: deployment_pb2.Deployment) -> None:
        deployment.ClearField("pending_weight_basis_points")
        _, model, _, version = deployment.model_version.split("/")
        variant = route_pb2.Variant(name=version, deployment=deployment.name, weight_basis_points=10_000)
        name = f"models/{model}/routes/{deployment.environment}"
        self.routes[name] = route_pb2.Route(name=name, variants=[variant], etag="e0")

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Context) -> pb.ListDeploymentsResponse:
        await self._admit(context)
        prefix = f"models/{request.model}/"
        named = [d for d in self.deployments.values() if not request.model or d.model_version.startswith(prefix)]
        deployments, token = page(named, request.page_token)
        return pb.ListDeploymentsResponse(deployments=deployments, next_page_token=token)

    async def GetRoute(self, request: pb.GetRouteRequest, context: Context) -> pb.GetRouteResponse:
        await self._admit(context)
        if request.name not in self.routes:
            await refuse(context, Code.NOT_FOUND, f"no {request.name}", "RESOURCE_NOT_FOUND")
        return pb.GetRouteResponse(route=self.routes[request.name])

    async def UpdateRoute(self, request: pb.UpdateRouteRequest, context: Context) -> pb.UpdateRouteResponse:
        await self._admit(context, request.request_id)
        route = self.routes[request.route.name]
        if self.aborted_count:
            self.aborted_count -= 1
            route.etag += "x"
        if request.route.etag != route.etag:
            await refuse(context, Code.ABORTED, "the route has changed", "ETAG_MISMATCH")
        self.changes.append("UpdateRoute")
        del route.variants[:]
        route.variants.extend(request.route.variants)
        return pb.UpdateRouteResponse(route=route, epoch=7)


@dataclass
class FakeRouter(router_service_pb2_grpc.RouterServiceServicer):
    requests: list[router_service_pb2.PredictRequest] = field(default_factory=list)
    rows: list[router_service_pb2.PredictRow] = field(default_factory=list)
    # What the next call is refused with: code, message, reason, details.
    refusal: tuple[int, str, str, Sequence[Message]] | None = None
    # Set to hold every answer back until the caller gives up.
    hangs: bool = False

    async def Predict(
        self, request: router_service_pb2.PredictRequest, context: Context
    ) -> router_service_pb2.PredictResponse:
        self.requests.append(request)
        if self.refusal is not None:
            await refuse(context, *self.refusal)
        if self.hangs:
            await asyncio.Event().wait()
        response = router_service_pb2.PredictResponse()
        response.prediction.model_version = request.version or "1"
        response.prediction.prediction.CopyFrom(feature_value_pb2.FeatureValue(int64_value=len(request.features)))
        return response

    async def PredictRows(
        self, request: router_service_pb2.PredictRowsRequest, context: Context
    ) -> router_service_pb2.PredictRowsResponse:
        response = router_service_pb2.PredictRowsResponse()
        self.rows.extend(request.rows)
        for row in request.rows:
            result = response.results.add()
            if "bad" in row.features:
                result.error.CopyFrom(Status(code=Code.INVALID_ARGUMENT, message=f"{row.user_id}: bad"))
            else:
                result.prediction.variant = row.user_id
        return response


@dataclass
class FakePublicApi:
    """The three services, and where they answer."""

    artifacts: FakeArtifacts
    registry: FakeRegistry
    router: FakeRouter
    target: str = ""

    @classmethod
    @asynccontextmanager
    async def serve(cls) -> AsyncIterator["FakePublicApi"]:
        # Abstract for the type checker: a client needs a part of the methods only.
        registry = FakeRegistry()  # type: ignore[abstract]
        api = cls(FakeArtifacts(), registry, FakeRouter())  # type: ignore[abstract]
        server = grpc.aio.server()
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(api.artifacts, server)
        registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(api.registry, server)
        router_service_pb2_grpc.add_RouterServiceServicer_to_server(api.router, server)
        api.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield api
        finally:
            await server.stop(None)
