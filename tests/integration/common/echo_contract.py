"""A contract of its own for testing the chain and the doors: one RPC of each cardinality over StringValue."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from services.common.call import Binding, Call
from services.common.errors import InvalidArgument, ResourceExhausted, Violation

SERVICE = "interlock.testing.v1.EchoService"
_SHAPES = {"Echo": (False, False), "Spell": (False, True), "Join": (True, False), "Chat": (True, True)}


def _register() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="interlock/testing/v1/echo_service.proto",
        package="interlock.testing.v1",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    service = file.service.add(name="EchoService")
    for name, (client_streaming, server_streaming) in _SHAPES.items():
        service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=client_streaming,
            server_streaming=server_streaming,
        )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_register()


class EchoServicer:
    """Answers with what it is told to do; keeps the last call for tests to look at."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Echo(self, request: StringValue, call: Call) -> StringValue:
        self.calls.append(call)
        self.started.set()
        act = _ACTS.get(request.value)
        if act is not None:
            await act(self, call)
        call.trailers["x-echo"] = "done"
        return StringValue(value=request.value)

    async def Spell(self, request: StringValue, call: Call) -> AsyncIterator[StringValue]:
        self.calls.append(call)
        for letter in request.value:
            if letter == ".":
                self.started.set()
                await self._hang(call)
            yield StringValue(value=letter)

    async def Join(self, requests: AsyncIterator[StringValue], call: Call) -> StringValue:
        self.calls.append(call)
        return StringValue(value="".join([request.value async for request in requests]))

    async def Chat(self, requests: AsyncIterator[StringValue], call: Call) -> AsyncIterator[StringValue]:
        self.calls.append(call)
        async for request in requests:
            if request.value == "exit":
                raise SystemExit(3)
            if request.value == "refuse":
                raise InvalidArgument("no shouting", reason="NO_SHOUTING")
            yield StringValue(value=request.value.upper())

    async def _hang(self, call: Call) -> None:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _refuse(self, call: Call) -> None:
        raise InvalidArgument(
            "two fields are wrong",
            reason="INVALID_FIELD",
            metadata={"count": "2"},
            violations=[Violation("a", "want 1, got 2"), Violation("b", "want x, got y")],
        )

    async def _full(self, call: Call) -> None:
        raise ResourceExhausted("the queue is full", reason="QUEUE_FULL", retry_after_s=0.25)

    async def _bug(self, call: Call) -> None:
        raise ValueError("secret path /srv/keys/db.pem")

    async def _exit(self, call: Call) -> None:
        raise SystemExit(7)

    async def _stray(self, call: Call) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        inner.cancel()
        await inner

    async def _big(self, call: Call) -> None:
        raise ResourceExhausted("x" * 100_000, reason="QUEUE_FULL", violations=[Violation("f" * 900, "d" * 5000)] * 100)


_ACTS: dict[str, Callable[[EchoServicer, Call], Any]] = {
    "hang": EchoServicer._hang,
    "refuse": EchoServicer._refuse,
    "full": EchoServicer._full,
    "bug": EchoServicer._bug,
    "exit": EchoServicer._exit,
    "stray": EchoServicer._stray,
    "big": EchoServicer._big,
}


def echo_binding(servicer: object) -> Binding:
    return Binding(SERVICE, servicer, hot=frozenset({"Echo"}))


class EchoClient:
    """Typed multicallables of the echo contract on a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        coders: dict[str, Any] = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self.echo: Any = channel.unary_unary(f"/{SERVICE}/Echo", **coders)
        self.spell: Any = channel.unary_stream(f"/{SERVICE}/Spell", **coders)
        self.join: Any = channel.stream_unary(f"/{SERVICE}/Join", **coders)
        self.chat: Any = channel.stream_stream(f"/{SERVICE}/Chat", **coders)
        self.echo_bytes: Any = channel.unary_unary(f"/{SERVICE}/Echo")
        self.join_bytes: Any = channel.stream_unary(f"/{SERVICE}/Join")

    async def say(self, value: str, **options: Any) -> str:
        answer: StringValue = await self.echo(StringValue(value=value), **options)
        return answer.value


def status_of(error: grpc.aio.AioRpcError) -> Status:
    """The google.rpc.Status that travelled in the trailers."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return Status.FromString(value if isinstance(value, bytes) else value.encode())
    raise AssertionError(f"no status details in {error!r}")


def details_of(status: Status) -> dict[str, Any]:
    """The status' details by message name; fails when one type is there twice."""
    found: dict[str, Any] = {}
    for detail in status.details:
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            message = kind()
            if detail.Unpack(message):
                assert kind.__name__ not in found
                found[kind.__name__] = message
    assert len(found) == len(status.details)
    return found
