"""The registry as inference meets it: what should be loaded, where artifacts come from, who hears how it goes."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from interlock.registry.v1 import artifact_service_pb2 as artifact_pb
from interlock.registry.v1 import artifact_service_pb2_grpc as artifact_rpc
from interlock.registry.v1 import control_service_pb2 as control_pb
from interlock.registry.v1 import control_service_pb2_grpc as control_rpc
from interlock.registry.v1.deployment_pb2 import (
    DEVICE_CLASS_CPU,
    DEVICE_CLASS_UNSPECIFIED,
    Deployment,
    DeploymentState,
    DeviceClass,
)
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, ModelVersion
from interlock.registry.v1.model_version_pb2 import GoldenRow as GoldenRowMessage

from services.common.errors import InvalidArgument
from services.common.names import ARTIFACT, VERSION
from services.common.watch import Configuration
from services.inference.convert.batching import batching_from_proto
from services.inference.convert.tensors import spec_from_proto, tensor_from_proto
from services.inference.domain.ports import ArtifactsUnavailable, LoadFailure
from services.inference.domain.replica import DeploymentStatus, Replica
from services.inference.domain.version import (
    DeploymentSpec,
    Desired,
    FileSpec,
    GoldenRow,
    LoadState,
    VersionKey,
    VersionSpec,
)

_LOG: Final = structlog.get_logger(part="registry")
_REPORT_TIMEOUT_S: Final = 2.0
_MESSAGE_LIMIT_CHARS: Final = 2_000
_ABSOLUTE_TOLERANCE: Final = 1e-5
_RELATIVE_TOLERANCE: Final = 1e-4
_OUR_DEVICES: Final = (DEVICE_CLASS_UNSPECIFIED, DEVICE_CLASS_CPU)
_STATES: Final[Mapping[LoadState, DeploymentState.ValueType]] = {
    LoadState.FETCHING: DeploymentState.DEPLOYMENT_STATE_LOADING,
    LoadState.LOADING: DeploymentState.DEPLOYMENT_STATE_LOADING,
    LoadState.READY: DeploymentState.DEPLOYMENT_STATE_READY,
    LoadState.FAILED: DeploymentState.DEPLOYMENT_STATE_FAILED,
    LoadState.UNLOADING: DeploymentState.DEPLOYMENT_STATE_LOADING,
}


class ArtifactDownloads:
    """Streams artifacts from the registry."""

    def __init__(self, channel: grpc.aio.Channel, idle_timeout_s: float) -> None:
        self._stub: Any = artifact_rpc.ArtifactServiceStub(channel)
        self._idle_timeout_s = idle_timeout_s

    async def download(self, digest: str, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the content from an offset on; raises `ArtifactsUnavailable` or `LoadFailure`."""
        request = artifact_pb.DownloadArtifactRequest(name=ARTIFACT.format(digest), offset_bytes=offset_bytes)
        stream = self._stub.DownloadArtifact(request)
        try:
            while True:
                async with asyncio.timeout(self._idle_timeout_s):
                    message = await stream.read()
                if message is grpc.aio.EOF:
                    return
                yield message.chunk
        except TimeoutError:
            raise ArtifactsUnavailable("the registry stopped in the middle of a file; it is tried again") from None
        except grpc.aio.AioRpcError as error:
            raise _download_error(error) from None
        finally:
            stream.cancel()


class ReplicaReporter:
    """Tells the registry how the replica is, on every change and often enough to keep its lease."""

    def __init__(self, channel: grpc.aio.Channel, replica: Replica, lease_s: float) -> None:
        self._stub: Any = control_rpc.ControlServiceStub(channel)
        self._replica = replica
        self._lease_s = lease_s
        self._reachable = True

    async def run(self) -> None:
        """Report for ever."""
        while True:
            changed = self._replica.changed()
            await self.report()
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(self._lease_s / 3):
                    await changed.wait()
            except TimeoutError:
                continue

    async def report(self) -> None:
        """Report once. A registry that is down is no reason to stop serving."""
        try:
            await self._stub.ReportReplica(self._request(), timeout=_REPORT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if self._reachable:
                _LOG.warning("report_failed", code=error.code().name, text=error.details())
            self._reachable = False
        else:
            self._reachable = True

    def _request(self) -> control_pb.ReportReplicaRequest:
        return control_pb.ReportReplicaRequest(
            replica_id=self._replica.replica_id,
            pool=self._replica.pool,
            lease_duration=Duration(nanos=0, seconds=max(1, round(self._lease_s))),
            reports=[_report(status) for status in self._replica.statuses()],
            draining=self._replica.draining,
        )


def desired_from(configuration: Configuration) -> Desired:
    """Return what the pool should hold. A version that makes no sense here is kept with its defect, to be reported."""
    deployments = {}
    for name, deployment in configuration.deployments().items():
        spec = _deployment_spec(deployment)
        if spec is None:
            _LOG.error("deployment_ignored", deployment=name, names=deployment.model_version)
        else:
            deployments[name] = spec
    versions = {}
    for version in configuration.model_versions().values():
        key = _key(version.name)
        if key is not None:
            versions[key] = _version_spec(key, version)
    return Desired(deployments, versions, configuration.epoch)


def _key(name: str) -> VersionKey | None:
    try:
        return VersionKey(*VERSION.parse(name))
    except InvalidArgument:
        return None


def _deployment_spec(deployment: Deployment) -> DeploymentSpec | None:
    key = _key(deployment.model_version)
    if key is None:
        return None
    return DeploymentSpec(deployment.name, key, batching_from_proto(deployment.batching), _device_defect(deployment))


def _device_defect(deployment: Deployment) -> str:
    wanted = deployment.device_class
    if wanted in _OUR_DEVICES:
        return ""
    name = DeviceClass.Name(wanted) if wanted in DeviceClass.values() else f"device class {wanted}"
    return f"the deployment wants {name}, this replica has DEVICE_CLASS_CPU only"


def _version_spec(key: VersionKey, version: ModelVersion) -> VersionSpec:
    inputs = tuple(map(spec_from_proto, version.signature.inputs))
    outputs = tuple(map(spec_from_proto, version.signature.outputs))
    defect = ""
    if version.runtime != RUNTIME_ONNX:
        defect = "this replica runs ONNX models only"
    elif not version.files:
        defect = "the version has no files"
    elif not inputs or not outputs:
        defect = "the signature has no inputs or no outputs"
    return VersionSpec(
        key=key,
        files=tuple(FileSpec(file.path, file.digest, file.size_bytes) for file in version.files),
        inputs=inputs,
        outputs=outputs,
        golden_rows=tuple(map(_golden_row, version.golden_rows)),
        defect=defect,
    )


def _golden_row(row: GoldenRowMessage) -> GoldenRow:
    return GoldenRow(
        inputs=tuple(map(tensor_from_proto, row.inputs)),
        outputs=tuple(map(tensor_from_proto, row.outputs)),
        absolute_tolerance=row.absolute_tolerance or _ABSOLUTE_TOLERANCE,
        relative_tolerance=row.relative_tolerance or _RELATIVE_TOLERANCE,
    )


def _report(status: DeploymentStatus) -> control_pb.DeploymentReport:
    return control_pb.DeploymentReport(
        deployment=status.deployment, state=_STATES[status.state], message=status.message[:_MESSAGE_LIMIT_CHARS]
    )


def _download_error(error: grpc.aio.AioRpcError) -> Exception:
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return LoadFailure("a file of the version is not in the registry")
    if error.code() is grpc.StatusCode.DATA_LOSS:
        return LoadFailure("a file of the version is corrupt in the registry")
    if error.code() is grpc.StatusCode.OUT_OF_RANGE:
        return LoadFailure("what was fetched of a file is longer than the file")
    return ArtifactsUnavailable("the registry does not answer; a file of the version is missing here")
