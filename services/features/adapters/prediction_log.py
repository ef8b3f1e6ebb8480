"""Logged predictions from the monitor, and what a version fetches from the registry: what a parity check needs."""

from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import grpc
from interlock.monitor.v1 import prediction_log_service_pb2 as monitor_pb
from interlock.monitor.v1.prediction_log_service_pb2_grpc import PredictionLogServiceStub
from interlock.registry.v1 import registry_service_pb2 as registry_pb
from interlock.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from interlock.types.v1 import signature_pb2

from services.common import names
from services.common.channels import open_channel
from services.common.errors import DEPENDENCY_UNAVAILABLE, Unavailable
from services.common.refusals import ResourceNotFound
from services.common.stamp import time_to_proto

_GET_VERSION: Final = "interlock.registry.v1.RegistryService/GetModelVersion"
_ATTEMPT_TIMEOUT_S: Final = 5.0
_QUERY_TIMEOUT_S: Final = 60.0


class PeerUnavailable(Unavailable):
    """A service that a parity check needs does not answer."""

    def __init__(self, service: str, error: grpc.aio.AioRpcError) -> None:
        super().__init__(
            f"the {service} does not answer ({error.code().name}): {(error.details() or '')[:200]}",
            reason=DEPENDENCY_UNAVAILABLE,
            metadata={"service": service},
            retry_after_s=1.0,
        )


class ParitySources(Protocol):
    """Where a parity check has its two sides from."""

    async def signature(self, model_version: str) -> signature_pb2.Signature:
        """Return a version's signature; raises ResourceNotFound, Unavailable."""

    async def write_log(
        self, path: Path, model_version: str, start: datetime, end: datetime, max_row_count: int
    ) -> None:
        """Write logged predictions, drawn evenly, as an Arrow stream; raises Unavailable."""


class GrpcParitySources:
    """Asks registry and monitor."""

    def __init__(self, registry_address: str, monitor_address: str) -> None:
        self._registry = open_channel(
            registry_address,
            idempotent=[_GET_VERSION],
            attempt_timeout_s=_ATTEMPT_TIMEOUT_S,
            hop_timeout_s=2 * _ATTEMPT_TIMEOUT_S,
        )
        self._monitor = open_channel(
            monitor_address, idempotent=[], attempt_timeout_s=_QUERY_TIMEOUT_S, hop_timeout_s=_QUERY_TIMEOUT_S
        )

    async def signature(self, model_version: str) -> signature_pb2.Signature:
        """Return a version's signature; raises ResourceNotFound, Unavailable."""
        request = registry_pb.GetModelVersionRequest(name=model_version)
        try:
            found = await RegistryServiceStub(self._registry).GetModelVersion(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise ResourceNotFound(model_version) from error
            raise PeerUnavailable("registry", error) from error
        return found.model_version.signature

    async def write_log(
        self, path: Path, model_version: str, start: datetime, end: datetime, max_row_count: int
    ) -> None:
        """Write logged predictions, drawn evenly, as an Arrow stream; raises Unavailable."""
        model, version = names.VERSION.parse(model_version)
        request = monitor_pb.QueryPredictionLogRequest(
            sql=_query(version, max_row_count),
            max_row_count=max_row_count,
            model=model,
            start_time=time_to_proto(start),
            end_time=time_to_proto(end),
        )
        try:
            with path.open("wb") as file:
                async for message in PredictionLogServiceStub(self._monitor).QueryPredictionLog(request):
                    file.write(message.arrow_stream)
        except grpc.aio.AioRpcError as error:
            raise PeerUnavailable("monitor", error) from error

    async def close(self) -> None:
        """Close both channels."""
        await self._registry.close()
        await self._monitor.close()


def _query(version: str, max_row_count: int) -> str:
    """Return the query; an order by a digest of the id is an even draw. A version's id needs no escaping.

    What was not run, or came before the monitor knew the signature, has no prediction and no features.
    """
    columns = "prediction_id, feature_read_time, entities, feature_event_times, redacted_features, features"
    return (
        f"SELECT {columns} FROM predictions WHERE version = '{version}' AND feature_read_time IS NOT NULL "
        "AND prediction IS NOT NULL "
        f"ORDER BY hash(prediction_id) LIMIT {max_row_count}"
    )
