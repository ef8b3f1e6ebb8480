"""A registry for inference's tests: the two services that inference calls, over real gRPC, kept in memory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.duration_pb2 import Duration
from interlock.registry.v1 import artifact_service_pb2 as artifact_pb
from interlock.registry.v1 import control_service_pb2 as pb
from interlock.registry.v1.deployment_pb2 import DEVICE_CLASS_CPU, BatchingPolicy, Deployment, DeviceClass
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, GoldenRow, ModelFile, ModelVersion
from interlock.types.v1.signature_pb2 import Signature
from interlock.types.v1.tensor_pb2 import DataType, TensorSpec
from prometheus_client import CollectorRegistry

from services.common.call import Binding, Call, methods_of
from services.common.chain import Chain, Limits
from services.common.door_grpc import DoorProfile, GrpcDoor
from services.common.errors import NotFound
from services.common.metrics import RequestMetrics
from services.common.tracing import Tracing

_CHUNK_BYTES = 1 << 16
_HEARTBEAT_S = 2.0


class FakeRegistry:
    """Holds artifacts, versions and deployments, and pushes every change as a snapshot."""

    def __init__(self) -> None:
        self.artifacts: dict[str, bytes] = {}
        self.served: dict[str, bytes] = {}
        """What a download gives instead of the stored bytes, by digest."""
        self.downloads: list[tuple[str, int]] = []
        self.cut_after_bytes = 0
        """When set, each download ends in an error after so many bytes."""
        self.reports: dict[str, pb.DeploymentReport] = {}
        self.draining_reports = 0
        self.epoch = 0
        self._resources: dict[str, pb.WatchedResource] = {}
        self._changed = asyncio.Event()

    def put_artifact(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.artifacts[digest] = content
        return digest

    def put_version(
        self,
        name: str,
        files: dict[str, bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        golden: Sequence[GoldenRow] = (),
    ) -> None:
        """Register `model/version` with its files; the first is the graph."""
        model, version = name.split("/")
        message = ModelVersion(
            name=f"models/{model}/versions/{version}",
            runtime=RUNTIME_ONNX,
            files=[
                ModelFile(path=path, digest=self.put_artifact(content), size_bytes=len(content))
                for path, content in files.items()
            ],
            signature=Signature(inputs=inputs, outputs=outputs),
            golden_rows=golden,
        )
        self._resources[message.name] = pb.WatchedResource(model_version=message)
        self._push()

    def deploy(
        self,
        name: str,
        version: str,
        max_batch_size: int = 8,
        max_delay_ms: float = 2,
        device_class: DeviceClass.ValueType = DEVICE_CLASS_CPU,
        **policy_fields: Any,
    ) -> None:
        model, number = version.split("/")
        delay = Duration(nanos=int(max_delay_ms * 1e6))
        policy = BatchingPolicy(max_batch_size=max_batch_size, max_delay=delay, **policy_fields)
        deployment = Deployment(
            name=f"deployments/{name}",
            model_version=f"models/{model}/versions/{number}",
            environment="production",
            pool="default",
            replicas=1,
            device_class=device_class,
            batching=policy,
        )
        self._resources[deployment.name] = pb.WatchedResource(deployment=deployment)
        self._push()

    def put(self, name: str, resource: pb.WatchedResource) -> None:
        """Push any other resource."""
        self._resources[name] = resource
        self._push()

    def resource(self, name: str) -> pb.WatchedResource:
        """What is pushed under a name; changes to it travel with the next push."""
        return self._resources[name]

    def remove(self, *names: str) -> None:
        for name in names:
            del self._resources[name]
        self._push()

    def _push(self) -> None:
        self.epoch += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(self, request: pb.WatchRequest, call: Call) -> AsyncIterator[pb.WatchResponse]:
        while True:
            changed = self._changed
            snapshot = pb.WatchSnapshot(resources=self._resources.values())
            yield pb.WatchResponse(epoch=self.epoch, resume_token=str(self.epoch), snapshot=snapshot)
            while not await _is_set(changed, _HEARTBEAT_S):
                heartbeat = pb.WatchHeartbeat()
                yield pb.WatchResponse(epoch=self.epoch, resume_token=str(self.epoch), heartbeat=heartbeat)

    async def ListFeatureBindings(
        self, request: pb.ListFeatureBindingsRequest, call: Call
    ) -> pb.ListFeatureBindingsResponse:
        raise NotImplementedError

    async def ReportReplica(self, request: pb.ReportReplicaRequest, call: Call) -> pb.ReportReplicaResponse:
        self.reports = {report.deployment.removeprefix("deployments/"): report for report in request.reports}
        self.draining_reports += request.draining
        return pb.ReportReplicaResponse(epoch=self.epoch)

    async def DownloadArtifact(
        self, request: artifact_pb.DownloadArtifactRequest, call: Call
    ) -> AsyncIterator[artifact_pb.DownloadArtifactResponse]:
        digest = request.name.removeprefix("artifacts/")
        self.downloads.append((digest, request.offset_bytes))
        content = self.served.get(digest, self.artifacts.get(digest))
        if content is None:
            raise NotFound("no such artifact", reason="ARTIFACT_NOT_FOUND")
        end = len(content)
        if self.cut_after_bytes:
            end = min(end, request.offset_bytes + self.cut_after_bytes)
        for start in range(request.offset_bytes, end, _CHUNK_BYTES):
            yield artifact_pb.DownloadArtifactResponse(chunk=content[start : min(start + _CHUNK_BYTES, end)])
        if end < len(content):
            raise RuntimeError("the connection broke")

    async def UploadArtifact(self, requests: Any, call: Call) -> artifact_pb.UploadArtifactResponse:
        raise NotImplementedError

    async def GetArtifact(self, request: artifact_pb.GetArtifactRequest, call: Call) -> artifact_pb.GetArtifactResponse:
        raise NotImplementedError

    @asynccontextmanager
    async def listening(self, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
        """Serve while the block runs; gives the address."""
        limits = Limits()
        chain = Chain(limits=limits, metrics=RequestMetrics("fake", CollectorRegistry()), tracing=Tracing("fake"))
        bindings = [
            Binding("interlock.registry.v1.ControlService", self),
            Binding("interlock.registry.v1.ArtifactService", self),
        ]
        door = GrpcDoor(chain, methods_of(bindings), DoorProfile(message_bytes=limits.message_bytes))
        (port,) = await door.listen([address])
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await door.stop(0)


def spec(name: str, kind: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, data_type=DataType.Value(f"DATA_TYPE_{kind}"), shape=[-1, *shape])


async def _is_set(event: asyncio.Event, limit_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), limit_s)
    except TimeoutError:
        return False
    return True
