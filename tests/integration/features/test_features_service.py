"""The features service through the wire: healthy, and honest about what it cannot do yet."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from interlock.features.v1 import feature_job_service_pb2

from services.common.server import serving
from services.features.app import build
from services.features.settings import Settings
from tests.fakes.ports import free_offset

FILES: tuple[FileDescriptor, ...] = (feature_job_service_pb2.DESCRIPTOR,)
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    settings = Settings(state_dir=tmp_path, port_offset=free_offset(), drain_delay_s=0)
    async with (
        serving("features", settings, build, ["127.0.0.1:0"]) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel,
    ):
        yield channel


async def test_every_service_of_the_contract_is_healthy(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
    for name in ("", *(service for file in FILES for service in (s.full_name for s in file.services_by_name.values()))):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_every_method_answers_unimplemented(channel: grpc.aio.Channel, method: MethodDescriptor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _call(channel, method)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert len(status.details) == 1
    assert b"NOT_IMPLEMENTED" in status.details[0].value


async def _call(channel: grpc.aio.Channel, method: MethodDescriptor) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    request = message_factory.GetMessageClass(method.input_type)()
    if not method.server_streaming:
        assert not method.client_streaming
        await channel.unary_unary(path, request_serializer=type(request).SerializeToString)(request)
        return
    call: grpc.aio.StreamStreamCall[Message, bytes] = channel.stream_stream(
        path, request_serializer=type(request).SerializeToString
    )()
    await call.write(request)
    async for _ in call:
        pytest.fail("an answer came")
