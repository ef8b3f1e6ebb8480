"""The grpcio door and the chain, through a real server."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from services.common import door_grpc
from services.common.call import methods_of
from services.common.chain import Limits
from services.common.door_grpc import DoorProfile, GrpcDoor
from tests.integration.common.conftest import LIMITS, EchoServer
from tests.integration.common.echo_contract import SERVICE, EchoClient, details_of, echo_binding, status_of


async def _values(words: list[str]) -> AsyncIterator[StringValue]:
    for word in words:
        yield StringValue(value=word)


async def _failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_every_cardinality_answers(server: EchoServer) -> None:
    client = server.client
    assert await client.say("hello") == "hello"
    assert [letter.value async for letter in client.spell(StringValue(value="abc"))] == ["a", "b", "c"]
    assert (await client.join(_values(["x", "y", "z"]))).value == "xyz"
    assert [word.value async for word in client.chat(_values(["up", "per"]))] == ["UP", "PER"]


async def test_a_refusal_carries_one_detail_of_each_kind(server: EchoServer) -> None:
    error = await _failure(server.client.say("refuse"))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "two fields are wrong")
    details = details_of(status_of(error))
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("INVALID_FIELD", "interlock")
    assert dict(details["ErrorInfo"].metadata) == {"count": "2"}
    assert [(v.field, v.description) for v in details["BadRequest"].field_violations] == [
        ("a", "want 1, got 2"),
        ("b", "want x, got y"),
    ]


async def test_a_known_delay_travels_as_retry_info(server: EchoServer) -> None:
    error = await _failure(server.client.say("full"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(status_of(error))["RetryInfo"].retry_delay.ToMilliseconds() == 250


async def test_a_huge_error_still_fits_into_the_trailers(server: EchoServer) -> None:
    error = await _failure(server.client.say("big"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(status_of(error))["ErrorInfo"].reason == "QUEUE_FULL"


async def test_an_error_in_a_stream_comes_after_what_was_sent(server: EchoServer) -> None:
    # Step by step: a client may drop messages that it has not read when the error arrives.
    stream = server.client.chat()
    for word in ("a", "b"):
        await stream.write(StringValue(value=word))
        assert (await stream.read()).value == word.upper()
    await stream.write(StringValue(value="refuse"))
    error = await _failure(stream.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(status_of(error))["ErrorInfo"].reason == "NO_SHOUTING"


@pytest.mark.parametrize("word", ["bug", "exit", "stray"])
async def test_a_bug_is_internal_and_opaque_and_the_service_goes_on(server: EchoServer, word: str) -> None:
    error = await _failure(server.client.say(word, metadata=(("x-correlation-id", "id-7"),)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error; the log has it under request id id-7"
    assert details_of(status_of(error))["ErrorInfo"].metadata["request_id"] == "id-7"
    assert await server.client.say("next") == "next"


async def test_a_stream_that_is_refused_while_its_client_writes_says_why(
    server: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without reading on for a while every one of these clients is told INTERNAL, "Failed execute_batch"."""
    monkeypatch.setattr(door_grpc, "_PAUSE_S", 60.0)
    monkeypatch.setattr(door_grpc, "_LINGER_S", 60.0)
    for _ in range(5):
        stream = server.client.chat()
        await stream.write(StringValue(value="refuse"))
        for _ in range(200):
            await stream.write(StringValue(value="x" * 5_000))
        await stream.done_writing()
        error = await _failure(stream.read())
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "no shouting")


async def test_system_exit_in_a_stream_is_internal_and_the_service_goes_on(server: EchoServer) -> None:
    stream = server.client.chat(_values(["exit"]))
    error = await _failure(stream.read())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert await server.client.say("next") == "next"


@pytest.mark.parametrize("kind", ["echo_bytes", "join_bytes"])
async def test_malformed_protobuf_is_the_callers_mistake(server: EchoServer, kind: str) -> None:
    async def one() -> AsyncIterator[bytes]:
        yield b"\xff\xff"

    call = getattr(server.client, kind)
    error = await _failure(call(b"\xff\xff" if kind == "echo_bytes" else one()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "StringValue" not in (error.details() or "")
    assert details_of(status_of(error))["ErrorInfo"].reason == "MALFORMED_REQUEST"
    assert server.servicer.calls == [] or kind == "join_bytes"


async def test_a_message_over_the_limit_reaches_no_handler(server: EchoServer) -> None:
    error = await _failure(server.client.say("x" * (LIMITS.message_bytes + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.servicer.calls == []
    assert await server.client.say("next") == "next"


async def test_requests_beyond_the_budget_of_bytes_are_told_when_to_retry(server: EchoServer) -> None:
    server.chain.budget.used_bytes = LIMITS.bytes_in_flight
    error = await _failure(server.client.say("one more"))
    details = details_of(status_of(error))
    assert details["ErrorInfo"].reason == "BYTES_IN_FLIGHT_EXCEEDED"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    server.chain.budget.used_bytes = 0
    assert await server.client.say("next") == "next"
    assert server.chain.budget.used_bytes == 0


async def test_a_call_without_deadline_gets_the_default(server: EchoServer) -> None:
    await server.client.say("hi")
    assert 0 < server.servicer.calls[0].deadline - time.monotonic() <= LIMITS.default_deadline_s


async def test_a_long_deadline_is_cut_to_the_cap(server: EchoServer) -> None:
    await server.client.say("hi", timeout=3600)
    assert LIMITS.default_deadline_s < server.servicer.calls[0].remaining_s() <= LIMITS.deadline_cap_s


async def test_a_stream_has_neither_default_nor_cap(server: EchoServer) -> None:
    async for _ in server.client.spell(StringValue(value="a")):
        pass
    async for _ in server.client.spell(StringValue(value="a"), timeout=3600):
        pass
    assert server.servicer.calls[0].remaining_s() == float("inf")
    assert server.servicer.calls[1].remaining_s() > LIMITS.deadline_cap_s


class TestShortDefault:
    """A default deadline short enough to run out."""

    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(message_bytes=1024, default_deadline_s=0.1)

    async def test_the_handler_is_cancelled_at_its_deadline(self, server: EchoServer) -> None:
        error = await _failure(server.client.say("hang"))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert details_of(status_of(error))["ErrorInfo"].reason == "DEADLINE_EXCEEDED"
        await asyncio.wait_for(server.servicer.cancelled.wait(), 5)
        assert server.servicer.calls[0].cancelled


async def test_a_stream_is_cancelled_at_the_callers_deadline(server: EchoServer) -> None:
    stream = server.client.spell(StringValue(value="a."), timeout=0.2)
    assert (await stream.read()).value == "a"
    error = await _failure(stream.read())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(server.servicer.cancelled.wait(), 5)


async def test_a_caller_that_leaves_cancels_the_handler(server: EchoServer) -> None:
    call = server.client.echo(StringValue(value="hang"))
    await server.servicer.started.wait()
    call.cancel()
    await asyncio.wait_for(server.servicer.cancelled.wait(), 5)
    await _until(lambda: server.servicer.calls[0].cancelled)
    assert _count(server, "CANCELLED") == 1


async def test_a_caller_that_leaves_a_stream_cancels_the_handler(server: EchoServer) -> None:
    stream = server.client.spell(StringValue(value="a."))
    assert (await stream.read()).value == "a"
    await server.servicer.started.wait()
    stream.cancel()
    await asyncio.wait_for(server.servicer.cancelled.wait(), 5)


async def test_a_storm_of_cancels_leaves_nothing_behind(server: EchoServer, caplog: pytest.LogCaptureFixture) -> None:
    tasks, handled = len(asyncio.all_tasks()), server.servicer.calls
    for _ in range(20):
        handled.clear()
        # Twice as many fit on the connection: until the server has said so, those of the round before count too.
        calls = [server.client.echo(StringValue(value="hang" if n % 2 else "quick")) for n in range(100)]
        await _until(lambda: len(handled) == 100)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await _until(lambda: server.registry.get_sample_value("interlock_echo_requests_in_flight", _ECHO) == 0)
    await _until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert server.chain.budget.used_bytes == 0
    assert [record.message for record in caplog.records if record.name.startswith("grpc")] == []


async def test_calls_of_a_client_that_vanished_are_given_up_with_their_connection(
    server: EchoServer, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times are those of the door, a hundredth of them: in earnest 35 s pass."""
    usual = dict(DoorProfile(limits.message_bytes).options())
    names = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    assert usual[names[0]] + max(usual[name] for name in names[1:]) <= 60_000
    quick = [(name, value // 100 if name in names else value) for name, value in usual.items()]
    monkeypatch.setattr(DoorProfile, "options", lambda _: quick)
    door = GrpcDoor(server.chain, methods_of([echo_binding(server.servicer)]), DoorProfile(limits.message_bytes))
    (port,) = await door.listen(["127.0.0.1:0"])
    async with (
        silencing_proxy(port) as (proxy_port, silence),
        grpc.aio.insecure_channel(f"127.0.0.1:{proxy_port}") as channel,
    ):
        calls = [EchoClient(channel).echo(StringValue(value="hang")) for _ in range(10)]
        await _until(lambda: len(server.servicer.calls) == 10)
        assert connections_of(port) == 1
        silence.set()
        await _until(lambda: all(call.cancelled for call in server.servicer.calls))
        await _until(lambda: connections_of(port) == 0)
        await _until(lambda: server.registry.get_sample_value("interlock_echo_requests_in_flight", _ECHO) == 0)
        for call in calls:
            call.cancel()
    await door.stop(0)


def connections_of(port: int) -> int:
    """Connections that the server still holds, as the kernel has them."""
    held = psutil.Process().net_connections("tcp")
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in held)


@asynccontextmanager
async def silencing_proxy(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Forward connections to a port until told to fall silent; then nothing passes, and nothing is closed."""
    silent = asyncio.Event()
    pumps: list[asyncio.Future[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not silent.is_set() and (data := await reader.read(65_536)):
            if not silent.is_set():
                writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, far_writer))
        pumps.extend((asyncio.ensure_future(pump(reader, far_writer)), asyncio.ensure_future(pump(far_reader, writer))))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1], silent
    finally:
        proxy.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()


async def test_the_correlation_id_comes_back(server: EchoServer) -> None:
    call = server.client.echo(StringValue(value="hi"), metadata=(("x-correlation-id", "order-66.a_b"),))
    await call
    assert dict(await call.trailing_metadata()) == {"x-correlation-id": "order-66.a_b", "x-echo": "done"}
    assert server.servicer.calls[0].request_id == "order-66.a_b"


@pytest.mark.parametrize("forged", ["", "a b", "x" * 129, "<script>"])
async def test_an_unfit_correlation_id_is_replaced(server: EchoServer, forged: str) -> None:
    call = server.client.echo(StringValue(value="hi"), metadata=(("x-correlation-id", forged),))
    await call
    answered = dict(await call.trailing_metadata())["x-correlation-id"]
    assert answered != forged
    assert answered == server.servicer.calls[0].request_id
    assert len(answered) == 32


async def test_a_stream_returns_its_correlation_id_too(server: EchoServer) -> None:
    call = server.client.chat(_values(["a"]), metadata=(("x-correlation-id", "s-1"),))
    assert [word.value async for word in call] == ["A"]
    assert dict(await call.initial_metadata())["x-correlation-id"] == "s-1"


@pytest.mark.parametrize("word", ["refuse", "bug"])
async def test_an_error_returns_its_correlation_id_in_the_trailers(server: EchoServer, word: str) -> None:
    """Headers before an error would commit the call: gRPC retries only answers that are nothing but trailers."""
    error = await _failure(server.client.say(word, metadata=(("x-correlation-id", "e-1"),)))
    assert "x-correlation-id" not in dict(error.initial_metadata())
    assert dict(error.trailing_metadata())["x-correlation-id"] == "e-1"


async def test_a_forged_identity_is_as_if_it_were_not_there(server: EchoServer) -> None:
    await server.client.say("hi", metadata=(("x-interlock-principal", "root"), ("x-other", "kept")))
    call = server.servicer.calls[0]
    assert call.principal == "local"
    assert "x-interlock-principal" not in call.metadata
    assert call.metadata["x-other"] == "kept"


async def test_calls_are_counted_by_method_and_code(server: EchoServer) -> None:
    await server.client.say("hi")
    await _failure(server.client.say("refuse"))
    assert (_count(server, "OK"), _count(server, "INVALID_ARGUMENT")) == (1, 1)
    assert server.registry.get_sample_value("interlock_echo_request_seconds_count", _ECHO) == 2
    assert server.registry.get_sample_value("interlock_echo_requests_in_flight", _ECHO) == 0


async def test_an_unknown_method_is_unimplemented(server: EchoServer) -> None:
    unknown: Any = server.channel.unary_unary(f"/{SERVICE}/Nope")
    error = await _failure(unknown(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_kept_per_name(server: EchoServer) -> None:
    stub = _health(server)
    server.board.set("model/fraud/3", serving=True)
    server.board.set(SERVICE, serving=False)
    server.board.open([SERVICE])
    listed = await stub.List(health_pb2.HealthListRequest())
    assert {name: status.status for name, status in listed.statuses.items()} == {"": 1, SERVICE: 2, "model/fraud/3": 1}
    assert (await stub.Check(health_pb2.HealthCheckRequest(service="model/fraud/3"))).status == 1
    error = await _failure(stub.Check(health_pb2.HealthCheckRequest(service="model/none/1")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_health_watch_sees_every_state_and_ends_with_the_drain(server: EchoServer) -> None:
    watch = aiter(_health(server).Watch(health_pb2.HealthCheckRequest(service="m")))
    seen = [(await anext(watch)).status]
    server.board.set("m", serving=True)
    seen.append((await anext(watch)).status)
    server.board.remove("m")
    seen.append((await anext(watch)).status)
    server.board.set("m", serving=True)
    seen.append((await anext(watch)).status)
    server.board.drain()
    seen.extend([response.status async for response in watch])
    assert seen == [3, 1, 3, 1, 2]


async def test_reflection_lists_the_services(server: EchoServer) -> None:
    def ask() -> set[str]:
        with grpc.insecure_channel(server.address) as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert {SERVICE, "grpc.health.v1.Health"} <= await asyncio.to_thread(ask)


async def test_a_drain_finishes_what_is_in_flight_and_refuses_new_calls(server: EchoServer) -> None:
    in_flight = server.client.echo(StringValue(value="hang"))
    await server.servicer.started.wait()
    stopping = asyncio.ensure_future(server.door.stop(10))
    refused = await _refusals(server.address)
    server.servicer.release.set()
    assert (await in_flight).value == "hang"
    # In the first moment grpcio itself answers CANCELLED to calls that it has not handed over yet (grpc/grpc#41785).
    assert set(refused) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    assert refused[-1] is grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(stopping, 5)


async def test_a_unix_socket_serves_as_well(server: EchoServer) -> None:
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        address = f"unix:{Path(folder) / 'door.sock'}"
        door = GrpcDoor(server.chain, methods_of([echo_binding(server.servicer)]), DoorProfile(message_bytes=1024))
        await door.listen([address])
        async with grpc.aio.insecure_channel(address) as channel:
            assert await EchoClient(channel).say("hi") == "hi"
        await door.stop(0)


async def test_a_port_in_use_without_reuse_is_an_error(server: EchoServer) -> None:
    door = GrpcDoor(server.chain, (), DoorProfile(message_bytes=1024, reuse_port=False))
    with pytest.raises(OSError, match="cannot listen"):
        await door.listen([server.address])
    await door.stop(0)


def _health(server: EchoServer) -> Any:
    stub: Any = health_pb2_grpc.HealthStub
    return stub(server.channel)


_ECHO = {"method": f"{SERVICE}/Echo"}


def _count(server: EchoServer, code: str) -> float | None:
    return server.registry.get_sample_value("interlock_echo_requests_total", {**_ECHO, "code": code})


async def _refusals(address: str) -> list[grpc.StatusCode]:
    """Call on new connections until the port is closed; returns the codes."""
    codes: list[grpc.StatusCode] = []
    async with asyncio.timeout(5):
        while grpc.StatusCode.UNAVAILABLE not in codes:
            async with grpc.aio.insecure_channel(address) as channel:
                codes.append((await _failure(EchoClient(channel).say("late"))).code())
    return codes


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
