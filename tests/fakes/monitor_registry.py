"""A registry for the monitor's tests: versions over real gRPC, up or down as the test wants."""

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
from interlock.registry.v1 import registry_service_pb2 as registry_pb
from interlock.registry.v1 import registry_service_pb2_grpc as registry_rpc
from interlock.registry.v1.baseline_pb2 import Baseline, FeatureProfile
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, ModelVersion
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import (
    FEATURE_TYPE_BOOL,
    FEATURE_TYPE_DOUBLE,
    FEATURE_TYPE_INT64,
    FEATURE_TYPE_STRING,
    TASK_CLASSIFICATION,
    FeatureSpec,
    PredictionSpec,
    Signature,
)
from interlock.types.v1.tensor_pb2 import DATA_TYPE_BYTES, DATA_TYPE_FP32, DATA_TYPE_FP64, TensorSpec

if TYPE_CHECKING:
    # The stub's servicer is abstract, and this registry knows two methods only.
    _Servicer = object
else:
    _Servicer = registry_rpc.RegistryServiceServicer

LABELS = ("fine", "fraud")


def fraud_signature() -> Signature:
    """A classification of two labels from a number, a whole number, a truth value and a text."""
    country = FeatureSpec(name="country", type=FEATURE_TYPE_STRING, tensor="texts", column=0, nullable=True)
    country.allowed_values.extend(FeatureValue(string_value=value) for value in ("NO", "SE", "DK", "FI"))
    return Signature(
        inputs=[
            TensorSpec(name="numbers", data_type=DATA_TYPE_FP64, shape=[-1, 3]),
            TensorSpec(name="texts", data_type=DATA_TYPE_BYTES, shape=[-1, 1]),
        ],
        outputs=[TensorSpec(name="probabilities", data_type=DATA_TYPE_FP32, shape=[-1, 2])],
        features=[
            FeatureSpec(
                name="amount",
                type=FEATURE_TYPE_DOUBLE,
                tensor="numbers",
                column=0,
                nullable=True,
                minimum=0,
                maximum=1_000,
            ),
            FeatureSpec(name="items", type=FEATURE_TYPE_INT64, tensor="numbers", column=1),
            FeatureSpec(name="member", type=FEATURE_TYPE_BOOL, tensor="numbers", column=2),
            country,
        ],
        prediction=PredictionSpec(task=TASK_CLASSIFICATION, tensor="probabilities", labels=LABELS, threshold=0.5),
    )


def model_version(
    model: str = "fraud",
    version: int = 1,
    *,
    profiles: Iterable[FeatureProfile] = (),
    output_profiles: Iterable[FeatureProfile] = (),
    metrics: Mapping[str, float] | None = None,
    signature: Signature | None = None,
) -> ModelVersion:
    """A version as the registry gives it; without profiles it has no baseline."""
    signature = fraud_signature() if signature is None else signature
    digest = hashlib.sha256(f"{model}/{version}".encode()).hexdigest()
    made = ModelVersion(
        name=f"models/{model}/versions/{version}", signature=signature, runtime=RUNTIME_ONNX, digest=digest
    )
    features, outputs = list(profiles), list(output_profiles)
    if features or outputs:
        rows = max(profile.count for profile in [*features, *outputs])
        made.baseline.CopyFrom(Baseline(row_count=rows, features=features, outputs=outputs))
    for name, value in (metrics or {}).items():
        made.lineage.metrics[name] = value
    return made


class FakeRegistry(_Servicer):
    """Knows some versions; counts how often it is asked."""

    def __init__(self, versions: Iterable[ModelVersion] = ()) -> None:
        self.versions = {version.name: version for version in versions}
        self.is_down = False
        self.call_count = 0

    async def GetModelVersion(self, request: registry_pb.GetModelVersionRequest, context: Any) -> Any:
        await self._enter(context)
        found = self.versions.get(request.name)
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        return registry_pb.GetModelVersionResponse(model_version=found)

    async def ListModelVersions(self, request: registry_pb.ListModelVersionsRequest, context: Any) -> Any:
        await self._enter(context)
        found = [version for name, version in self.versions.items() if name.startswith(f"{request.parent}/")]
        if not found:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return registry_pb.ListModelVersionsResponse(model_versions=reversed(found))

    async def _enter(self, context: Any) -> None:
        self.call_count += 1
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")


@asynccontextmanager
async def serve_registry(fake: FakeRegistry, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve a fake; yields its address."""
    server = grpc.aio.server()
    registry_rpc.add_RegistryServiceServicer_to_server(cast("Any", fake), server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
