"""What travels from hop to hop through our channels: deadline, request id, trace; and what a retry does."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import CollectorRegistry

from services.common.call import Call, current_call, methods_of
from services.common.chain import Chain, Limits
from services.common.channels import open_channel, open_stream_channel
from services.common.door_grpc import DoorProfile, GrpcDoor
from services.common.errors import Unavailable
from services.common.metrics import RequestMetrics
from services.common.tasks import spawn
from services.common.tracing import Tracing
from tests.integration.common.conftest import EchoServer
from tests.integration.common.echo_contract import (
    SERVICE,
    EchoClient,
    EchoServicer,
    details_of,
    echo_binding,
    status_of,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A real OTLP receiver."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.spans.extend((service, span) for scope in resource.scope_spans for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@dataclass
class Forwarder:
    """Answers by asking the next hop; counts its calls."""

    next_hop: grpc.aio.Channel
    calls: list[Call] = field(default_factory=list)

    async def Echo(self, request: StringValue, call: Call) -> StringValue:
        self.calls.append(call)
        return StringValue(value=await EchoClient(self.next_hop).say(request.value))

    async def Spell(self, request: StringValue, call: Call) -> AsyncIterator[StringValue]:
        async for letter in EchoClient(self.next_hop).spell(request):
            yield letter

    async def Join(self, requests: AsyncIterator[StringValue], call: Call) -> StringValue:
        answer: StringValue = await EchoClient(self.next_hop).join(requests)
        return answer

    async def Chat(self, requests: AsyncIterator[StringValue], call: Call) -> AsyncIterator[StringValue]:
        async for word in EchoClient(self.next_hop).chat(requests):
            yield word


class Front:
    """A server in front of the echo server, as a router stands in front of a model."""

    def __init__(self, next_hop: grpc.aio.Channel, tracing: Tracing) -> None:
        self.servicer = Forwarder(next_hop)
        chain = Chain(limits=Limits(), metrics=RequestMetrics("front", CollectorRegistry()), tracing=tracing)
        self.door = GrpcDoor(chain, methods_of([echo_binding(self.servicer)]), DoorProfile(message_bytes=1 << 20))
        self.address = ""

    async def start(self) -> None:
        (port,) = await self.door.listen(["127.0.0.1:0"])
        self.address = f"127.0.0.1:{port}"


@pytest.fixture
async def front(server: EchoServer, tracing: Tracing) -> AsyncIterator[Front]:
    async with open_channel(server.address) as next_hop:
        front = Front(next_hop, tracing)
        await front.start()
        yield front
        await front.door.stop(0)


async def _values(*words: str) -> AsyncIterator[StringValue]:
    for word in words:
        yield StringValue(value=word)


async def test_deadline_and_request_id_pass_through_a_service(server: EchoServer, front: Front) -> None:
    async with open_channel(front.address) as channel:
        answer = await EchoClient(channel).say("hi", timeout=3, metadata=(("x-correlation-id", "id-1"),))
    outer, inner = front.servicer.calls[0], server.servicer.calls[0]
    assert answer == "hi"
    assert inner.request_id == outer.request_id == "id-1"
    # gRPC rounds time-outs up by as much as one in a hundred on the wire.
    assert 2 < inner.deadline - time.monotonic() < 3.1


async def test_streams_pass_through_a_service_too(server: EchoServer, front: Front) -> None:
    async with open_channel(front.address) as channel:
        client, id_ = EchoClient(channel), (("x-correlation-id", "id-2"),)
        assert [each.value async for each in client.spell(StringValue(value="ab"), metadata=id_)] == ["a", "b"]
        assert (await client.join(_values("a", "b"), metadata=id_)).value == "ab"
        assert [each.value async for each in client.chat(_values("a"), metadata=id_)] == ["A"]
    assert {call.request_id for call in server.servicer.calls} == {"id-2"}
    assert {call.remaining_s() for call in server.servicer.calls} == {float("inf")}


async def test_a_call_without_any_deadline_still_gets_one(server: EchoServer) -> None:
    async with open_channel(server.address, hop_timeout_s=0.2) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoClient(channel).say("hang")
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_cancel_travels_to_the_last_hop(server: EchoServer, front: Front) -> None:
    async with open_channel(front.address) as channel:
        call = asyncio.ensure_future(EchoClient(channel).say("hang"))
        await server.servicer.started.wait()
        call.cancel()
        await asyncio.wait_for(server.servicer.cancelled.wait(), 5)


async def test_a_peer_that_is_down_is_unavailable_without_its_text(front: Front, server: EchoServer) -> None:
    await server.door.stop(0)
    async with open_channel(front.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoClient(channel).say("hi")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(status_of(caught.value))["ErrorInfo"].reason == "DEPENDENCY_UNAVAILABLE"
    assert "127.0.0.1" not in (caught.value.details() or "")


class Flaky(EchoServicer):
    """Is unavailable once, then hangs or answers."""

    async def Echo(self, request: StringValue, call: Call) -> StringValue:
        self.calls.append(call)
        if request.value == "hang":
            await asyncio.Event().wait()
        if len(self.calls) == 1:
            raise Unavailable("not yet", reason="DRAINING")
        return request


@pytest.fixture
async def flaky() -> AsyncIterator[tuple[Flaky, str]]:
    servicer = Flaky()
    chain = Chain(limits=Limits(), metrics=RequestMetrics("flaky", CollectorRegistry()), tracing=Tracing("flaky"))
    door = GrpcDoor(chain, methods_of([echo_binding(servicer)]), DoorProfile(message_bytes=1024))
    (port,) = await door.listen(["127.0.0.1:0"])
    yield servicer, f"127.0.0.1:{port}"
    await door.stop(0)


async def test_only_idempotent_methods_are_tried_twice(flaky: tuple[Flaky, str]) -> None:
    servicer, address = flaky
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await EchoClient(channel).say("hi")
    servicer.calls.clear()
    async with open_channel(address, idempotent=[f"{SERVICE}/Echo"]) as channel:
        assert await EchoClient(channel).say("hi") == "hi"
    assert len(servicer.calls) == 2


async def test_attempts_that_time_out_are_a_deadline_not_a_cancel(flaky: tuple[Flaky, str]) -> None:
    servicer, address = flaky
    async with open_channel(address, idempotent=[f"{SERVICE}/Echo"], attempt_timeout_s=0.1) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoClient(channel).say("hang", timeout=10)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(servicer.calls) == 2


async def test_a_lone_host_is_not_ejected_for_what_its_callers_do_wrong(server: EchoServer) -> None:
    """gRPC looks every half second who failed, and would refuse all calls for five seconds."""
    codes = set()
    end = time.monotonic() + 1.2
    async with open_channel(server.address) as channel:
        while time.monotonic() < end:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await EchoClient(channel).say("refuse")
            codes.add(caught.value.code())
        assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
        assert await EchoClient(channel).say("hi") == "hi"


async def test_a_stream_channel_serves_long_lived_streams(server: EchoServer) -> None:
    async with open_stream_channel(server.address) as channel:
        stream = EchoClient(channel).chat()
        for word in ("a", "b"):
            await stream.write(StringValue(value=word))
            assert (await stream.read()).value == word.upper()
        await stream.done_writing()


async def test_background_work_does_not_inherit_the_call(server: EchoServer) -> None:
    seen: list[Call | None] = []

    async def look() -> None:
        seen.append(current_call())

    class Spawning(EchoServicer):
        async def Echo(self, request: StringValue, call: Call) -> StringValue:
            await look()
            await spawn(look(), "look")
            return request

    chain, (method, *_) = server.chain, methods_of([echo_binding(Spawning())])
    call = chain.accept(method, {}, None, "", "")
    assert (await chain.unary(method, StringValue(value="x").SerializeToString(), call)).status is None
    assert seen == [call, None]
    assert current_call() is None


class TestTraced:
    """One trace id from the caller through two services to a real collector."""

    @pytest.fixture
    def collector(self) -> Collector:
        return Collector()

    @pytest.fixture
    def endpoint(self, collector: Collector) -> Iterator[str]:
        receiver = grpc.server(futures.ThreadPoolExecutor(2))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(collector, receiver)
        port = receiver.add_insecure_port("127.0.0.1:0")
        receiver.start()
        yield f"http://127.0.0.1:{port}"
        receiver.stop(None)

    @pytest.fixture
    async def tracing(self, endpoint: str) -> AsyncIterator[Tracing]:
        tracing = Tracing("echo", endpoint)
        yield tracing
        await tracing.close()

    async def test_one_trace_reaches_the_collector(
        self, server: EchoServer, front: Front, tracing: Tracing, collector: Collector
    ) -> None:
        async with open_channel(front.address) as channel:
            await EchoClient(channel).say("hi", metadata=(("traceparent", TRACEPARENT),))
        await tracing.close()
        spans = {span.span_id.hex(): span for _, span in collector.spans}
        inner, outer = (server.servicer.calls[0], front.servicer.calls[0])
        outer_id, inner_id = outer.traceparent.split("-")[2], inner.traceparent.split("-")[2]
        assert {service for service, _ in collector.spans} == {"interlock-echo"}
        assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}
        assert spans[outer_id].parent_span_id.hex() == CALLER_SPAN_ID
        assert spans[inner_id].parent_span_id.hex() == outer_id
        assert spans[inner_id].name == f"{SERVICE}/Echo"

    async def test_an_error_marks_its_span(self, server: EchoServer, tracing: Tracing, collector: Collector) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await server.client.say("refuse")
        with pytest.raises(RuntimeError), tracing.span("inner", TRACEPARENT):
            raise RuntimeError
        await tracing.close()
        marks = {span.name: (span.status.code, span.status.message) for _, span in collector.spans}
        assert marks == {f"{SERVICE}/Echo": (2, "INVALID_FIELD"), "inner": (2, "RuntimeError")}


async def test_a_missing_collector_does_not_hold_the_exit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "opentelemetry")
    tracing = Tracing("echo", "http://127.0.0.1:9")
    tracing.begin("lost").end()
    started = time.monotonic()
    await tracing.close(timeout_s=0.5)
    assert time.monotonic() - started < 3


async def test_without_a_collector_the_trace_is_passed_on_as_it_came(server: EchoServer) -> None:
    await server.client.say("hi", metadata=(("traceparent", TRACEPARENT),))
    await server.client.say("hi", metadata=(("traceparent", "00-nonsense"),))
    assert [call.traceparent for call in server.servicer.calls] == [TRACEPARENT, ""]
