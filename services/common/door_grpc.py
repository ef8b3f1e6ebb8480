"""The grpcio door: a `grpc.aio` server that moves bytes between the wire and the chain.

It serves every method of the table, with health and reflection, on TCP and on `unix:` addresses.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self

import grpc
from google.rpc.code_pb2 import UNAVAILABLE
from google.rpc.status_pb2 import Status
from grpc_reflection.v1alpha import reflection

from services.common.call import Call, Method
from services.common.chain import (
    CLIENT_TIMEOUT_KEY,
    PRINCIPAL_KEY,
    REQUEST_ID_KEY,
    TRACEPARENT_KEY,
    Chain,
    caller_timeout_s,
)

_STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
_CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}
_ID_ALONE: Final = {REQUEST_ID_KEY}
_LINGER_S: Final = 1.0
_PAUSE_S: Final = 0.2
_Context = grpc.aio.ServicerContext[bytes, bytes]
_Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class DoorProfile:
    """The server's side of the connection profile; `channels` has the client's."""

    message_bytes: int
    """Largest message in either direction."""
    reuse_port: bool = True
    """Let a replacement bind the same TCP port while this process drains."""
    max_connection_age_s: float = 0
    """Ask clients to reconnect after this long, so that load spreads; 0 means never. For public ports only."""
    max_concurrent_streams: int = 1024
    """Calls on one connection. An edge has 256 in flight at most, but those that it gave up count here until Python's loop has
    heard of it: of a loop that stands still for a few seconds grpcio would refuse all further streams."""

    def options(self) -> list[tuple[str, int]]:
        """Return grpcio's channel arguments."""
        options = [
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            # Beyond 1,000 calls that wait for Python, grpcio answers some at random with CANCELLED, which nobody
            # retries; refusing is admission's business, with a reason and a delay.
            ("grpc.server.max_pending_requests", 16_384),
            ("grpc.server.max_pending_requests_hard_limit", 32_768),
            # Windows that grow with the traffic grow to 16 MiB a stream, and are held for a caller that does not read.
            # For a message that is being received grpcio widens the window to the message's size anyway.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 65_536),
            ("grpc.so_reuseport", int(self.reuse_port)),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            # The time-out that current grpcio honours for pings; without it a frozen peer is noticed after a minute.
            ("grpc.http2.ping_timeout_ms", 5_000),
            # Without it pings of a peer that has no call open count as abuse, and the connection is closed.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 2),
        ]
        if self.max_connection_age_s:
            options.append(("grpc.max_connection_age_ms", round(self.max_connection_age_s * 1000)))
            options.append(("grpc.max_connection_age_grace_ms", 30_000))
        return options


class GrpcDoor:
    """One `grpc.aio` server over a method table."""

    def __init__(self, chain: Chain, methods: Sequence[Method], profile: DoorProfile) -> None:
        self._server = grpc.aio.server(options=profile.options())
        self._server.add_generic_rpc_handlers(tuple(_generic_handlers(chain, methods)))
        services = sorted({method.service for method in methods})
        enable_reflection: Callable[..., None] = reflection.enable_server_reflection
        enable_reflection([*services, reflection.SERVICE_NAME], self._server)

    async def listen(self, addresses: Iterable[str]) -> tuple[int, ...]:
        """Bind all addresses (`host:port` or `unix:/path`) and serve; returns the ports, in order.

        Raises `OSError` when one cannot be bound.
        """
        try:
            ports = tuple(self._server.add_insecure_port(address) for address in addresses)
        except RuntimeError as error:
            raise OSError(f"cannot listen: {error}") from error
        await self._server.start()
        return ports

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish for `grace_s` seconds, then cancel the rest."""
        await self._server.stop(grace_s)


def _generic_handlers(chain: Chain, methods: Sequence[Method]) -> list[grpc.GenericRpcHandler]:
    by_service: dict[str, dict[str, Any]] = {}
    for method in methods:
        by_service.setdefault(method.service, {})[method.name] = _rpc_handler(chain, method)
    return [grpc.method_handlers_generic_handler(service, handlers) for service, handlers in by_service.items()]


def _rpc_handler(chain: Chain, method: Method) -> Any:
    if not method.streaming:
        return grpc.unary_unary_rpc_method_handler(_unary(chain, method))
    if method.client_streaming:
        # On the wire one answer is a stream of one: a single shape serves client and bidirectional streams.
        return grpc.stream_stream_rpc_method_handler(_stream(chain, method))
    return grpc.unary_stream_rpc_method_handler(_single_request(_stream(chain, method)))


def _unary(chain: Chain, method: Method) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    async def answer(payload: bytes, context: _Context) -> bytes:
        call = _accept(chain, method, context)
        outcome = await chain.unary(method, payload, call)
        if outcome.status is not None:
            await _fail(context, outcome.status, outcome.initial_metadata | outcome.trailers)
        metadata = outcome.initial_metadata
        if metadata.keys() == _ID_ALONE:
            # Headers of their own are a tenth of what grpcio does for a call: the id goes out with the answer.
            context.set_trailing_metadata((*metadata.items(), *outcome.trailers.items()))
        else:
            await context.send_initial_metadata(tuple(metadata.items()))
            context.set_trailing_metadata(tuple(outcome.trailers.items()))
        body: bytes = outcome.body
        return body

    return answer


def _stream(chain: Chain, method: Method) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[None]]:
    async def answer(payloads: AsyncIterator[bytes], context: _Context) -> None:
        call = _accept(chain, method, context)
        out = _Outgoing(context, call)
        if not method.client_streaming or method.raw:
            status = await chain.stream(method, payloads, call, out.send)
        else:
            async with aclosing(_Incoming(context)) as incoming:
                status = await chain.stream(method, incoming, call, out.send)
                # Not when somebody else can take what is under way: it must go there as soon as may be.
                if status is not None and status.code != UNAVAILABLE:
                    # Who streams and gets one answer writes to the end; who converses may be waiting for ours.
                    await incoming.read_on(_PAUSE_S if method.server_streaming else _LINGER_S)
        if status is not None:
            await _fail(context, status, out.unsent() | call.trailers)
        await out.start()
        context.set_trailing_metadata(tuple(call.trailers.items()))

    return answer


def _single_request(
    answer: Callable[[AsyncIterator[bytes], _Context], Awaitable[None]],
) -> Callable[[bytes, _Context], Awaitable[None]]:
    async def answer_one(payload: bytes, context: _Context) -> None:
        await answer(_one(payload), context)

    return answer_one


def _accept(chain: Chain, method: Method, context: _Context) -> Call:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    metadata.pop(PRINCIPAL_KEY, None)
    timeout_s = caller_timeout_s(context.time_remaining(), metadata.pop(CLIENT_TIMEOUT_KEY, None))
    return chain.accept(
        method, metadata, timeout_s, metadata.get(REQUEST_ID_KEY, ""), metadata.get(TRACEPARENT_KEY, "")
    )


async def _one(payload: bytes) -> AsyncIterator[bytes]:
    yield payload


class _Incoming:
    """Reads a client's messages, and goes on for a moment when nobody wants them any more.

    Python's gRPC client that writes while its stream ends is told INTERNAL, "Failed execute_batch", instead of what the
    server said. A read whose reader gave up goes on too: grpcio can neither take it back nor begin another one.
    """

    __slots__ = ("_context", "_ended", "_reading")

    def __init__(self, context: _Context) -> None:
        self._context = context
        self._ended = False
        self._reading: asyncio.Future[Any] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        message = await asyncio.shield(self._begin())
        self._reading = None
        if message is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        body: bytes = message
        return body

    async def read_on(self, pause_s: float) -> None:
        """Return when the client has ended its side, or pauses for so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _LINGER_S
        with suppress(StopAsyncIteration):
            while not self._ended and loop.time() < end:
                await asyncio.wait((self._begin(),), timeout=pause_s)
                if not self._begin().done():
                    return
                await anext(self)

    async def aclose(self) -> None:
        """Give up the last read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _begin(self) -> "asyncio.Future[Any]":
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._context.read())
        return self._reading


class _Outgoing:
    """Writes a stream's answers; metadata goes out with the first, so that a handler may still add to it."""

    __slots__ = ("_call", "_context", "_started")

    def __init__(self, context: _Context, call: Call) -> None:
        self._context = context
        self._call = call
        self._started = False

    def unsent(self) -> dict[str, str]:
        return {} if self._started else self._call.initial_metadata

    async def start(self) -> None:
        if not self._started:
            self._started = True
            await self._context.send_initial_metadata(tuple(self._call.initial_metadata.items()))

    async def send(self, body: bytes) -> None:
        await self.start()
        await self._context.write(body)


async def _fail(context: _Context, status: Status, trailers: Mapping[str, str]) -> NoReturn:
    # What would be headers is among the trailers: headers commit a call, and clients retry only what has none.
    metadata: _Metadata = (*trailers.items(), (_STATUS_DETAILS_KEY, status.SerializeToString()))
    await context.abort(_CODES[status.code], status.message, metadata)
