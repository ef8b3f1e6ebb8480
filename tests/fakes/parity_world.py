"""A registry and a monitor for parity checks: one version, and a log of what it is said to have taken."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pyarrow as pa
from interlock.monitor.v1 import prediction_log_service_pb2 as monitor_pb
from interlock.monitor.v1 import prediction_log_service_pb2_grpc as monitor_rpc
from interlock.registry.v1 import registry_service_pb2 as registry_pb
from interlock.registry.v1 import registry_service_pb2_grpc as registry_rpc
from interlock.registry.v1.model_version_pb2 import ModelVersion
from interlock.types.v1.signature_pb2 import FeatureSpec, Signature
from interlock.types.v1.tensor_pb2 import TensorSpec

VERSION = "models/flight-delay/versions/2"
_TIME = pa.timestamp("us")
_TEXTS = pa.map_(pa.string(), pa.string())
_TIMES = pa.map_(pa.string(), _TIME)


class ParityWorld:
    """Gives the signature and the log that a test puts here."""

    def __init__(self) -> None:
        self.specs: list[FeatureSpec] = []
        self.tensors: list[TensorSpec] = []
        """With tensors the log holds single precision."""
        self.unlogged: set[str] = set()
        self.rows: list[dict[str, Any]] = []
        self.asked: list[monitor_pb.QueryPredictionLogRequest] = []

    async def version(self, request: registry_pb.GetModelVersionRequest, context: Any) -> Any:
        if request.name != VERSION:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        signature = Signature(features=self.specs, inputs=self.tensors)
        return registry_pb.GetModelVersionResponse(model_version=ModelVersion(name=VERSION, signature=signature))

    async def log(self, request: monitor_pb.QueryPredictionLogRequest, context: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        kind = pa.float32() if self.tensors else pa.float64()
        values = pa.struct([(spec.name, kind) for spec in self.specs if spec.name not in self.unlogged])
        fields = [
            ("prediction_id", pa.string()),
            ("feature_read_time", _TIME),
            ("entities", _TEXTS),
            ("feature_event_times", _TIMES),
            ("redacted_features", pa.list_(pa.string())),
            ("features", values),
        ]
        table = pa.Table.from_pylist(self.rows, pa.schema(fields))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        for start in range(0, len(content), 5000):
            yield monitor_pb.QueryPredictionLogResponse(arrow_stream=content[start : start + 5000])


@asynccontextmanager
async def serve_parity_world(world: ParityWorld, address: str) -> AsyncIterator[None]:
    """Serve both while the block runs."""
    registry: Any = type("Registry", (registry_rpc.RegistryServiceServicer,), {})
    monitor: Any = type("Monitor", (monitor_rpc.PredictionLogServiceServicer,), {})
    for kind in (registry, monitor):
        kind.__abstractmethods__ = frozenset()
    server = grpc.aio.server()
    asked_registry, asked_monitor = registry(), monitor()
    asked_registry.GetModelVersion = world.version
    asked_monitor.QueryPredictionLog = world.log
    registry_rpc.add_RegistryServiceServicer_to_server(asked_registry, server)
    monitor_rpc.add_PredictionLogServiceServicer_to_server(asked_monitor, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
