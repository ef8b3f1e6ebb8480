"""A features service for the router's tests: answers from a dictionary over real gRPC, with the faults that occur."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from interlock.features.v1 import feature_service_pb2 as features_pb
from interlock.features.v1 import feature_service_pb2_grpc as features_rpc
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.common.chain import REQUEST_ID_KEY

PRESENT = features_pb.VALUE_STATUS_PRESENT
STALE = features_pb.VALUE_STATUS_STALE
MISSING = features_pb.VALUE_STATUS_MISSING


@dataclass(frozen=True)
class Stored:
    """One value with its age in milliseconds."""

    value: FeatureValue
    status: features_pb.ValueStatus.ValueType = PRESENT
    age_ms: int = 1_000


@dataclass
class FakeFeatures(features_rpc.FeatureServiceServicer):
    """Answers reads; `entity_of` says which entity each view needs."""

    entity_of: Mapping[str, str] = field(default_factory=dict)
    values: dict[tuple[str, str], Stored] = field(default_factory=dict)
    """By source and key."""
    code: grpc.StatusCode | None = None
    """Every read fails with it."""
    delay_s: float = 0.0
    answered: int = 0
    """Reads that got an answer, be it a refusal."""
    cancelled: int = 0
    """Reads whose caller went while they waited."""
    names_rows: bool = True
    """Whether a refusal says which rows are wrong."""
    requests: list[features_pb.ReadFeaturesRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)

    @property
    def reads_for_callers(self) -> int:
        """Reads that somebody waited for: what is read to find out whether the service is back is nobody's request."""
        return sum(REQUEST_ID_KEY in metadata for metadata in self.metadata)

    def put(self, source: str, key: str, value: object, **rest: Any) -> None:
        kinds: dict[type, str] = {float: "double_value", int: "int64_value", str: "string_value", bool: "bool_value"}
        found = FeatureValue(null_value=0) if value is None else FeatureValue(**{kinds[type(value)]: value})  # type: ignore[arg-type]
        self.values[source, key] = Stored(found, **rest)

    async def ReadFeatures(
        self, request: features_pb.ReadFeaturesRequest, context: Any
    ) -> features_pb.ReadFeaturesResponse:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        if self.delay_s:
            try:
                await asyncio.sleep(self.delay_s)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        self.answered += 1
        if self.code is not None:
            await context.abort(self.code, "because")
        await self._refuse(request, context)
        now_us = request.as_of_time.ToMicroseconds() if request.HasField("as_of_time") else int(time.time() * 1e6)
        columns = [self._column(request, name, now_us) for name in request.features]
        response = features_pb.ReadFeaturesResponse(columns=columns)
        response.read_time.FromMicroseconds(now_us)
        return response

    def _column(self, request: features_pb.ReadFeaturesRequest, source: str, now_us: int) -> features_pb.FeatureColumn:
        column = features_pb.FeatureColumn(feature=source)
        entity = self.entity_of[source.partition(".")[0]]
        for row in request.rows:
            found = self.values.get((source, row.entities.get(entity, "")))
            missing = found is None or found.status == MISSING
            column.values.append(FeatureValue(null_value=0) if found is None else found.value)  # type: ignore[arg-type]
            column.statuses.append(MISSING if found is None else found.status)
            column.ages_ms.append(-1 if missing or found is None else found.age_ms)
            age_us = 0 if found is None else found.age_ms * 1_000
            column.event_times_us.append(0 if missing else now_us - age_us)
            column.known_ats_us.append(0 if missing else now_us - age_us)
        return column

    async def _refuse(self, request: features_pb.ReadFeaturesRequest, context: Any) -> None:
        wanted = {self.entity_of[source.partition(".")[0]] for source in request.features}
        wrong = [
            (index, entity)
            for index, row in enumerate(request.rows)
            for entity in sorted(wanted)
            if row.entities.get(entity, "").startswith("bad")
        ]
        if not wrong:
            return
        violations = [
            BadRequest.FieldViolation(
                field=f"rows[{index}].entities.{entity}" if self.names_rows else "",
                description="want a key, got a bad one",
            )
            for index, entity in wrong
        ]
        status = Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="1 thing is wrong")
        for detail in (ErrorInfo(reason="INVALID_ENTITY_KEY"), BadRequest(field_violations=violations)):
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        await context.abort_with_status(rpc_status.to_status(status))

    async def PushFeatures(self, request: features_pb.PushFeaturesRequest, context: Any) -> NoReturn:
        raise AssertionError("a router pushes nothing")

    async def PushFeaturesStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("a router pushes nothing")
        yield


async def serve_features(fake: FakeFeatures, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    features_rpc.add_FeatureServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port
