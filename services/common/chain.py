"""The one chain around every handler, the same for both doors.

In order: request id, deadline, identity, size limits, parse, handler under its deadline, errors to status; and around
all of it span, metrics and access log. A door only moves bytes and metadata.
"""

import asyncio
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, nullcontext
from contextvars import Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from services.common.arrivals import Arrivals
from services.common.call import CURRENT_CALL, Call, Method
from services.common.criticality import Criticality, criticality_of
from services.common.deadlines import ClientGone, Deadlines, Watched
from services.common.door_turns import Turns
from services.common.errors import (
    BYTES_IN_FLIGHT_EXCEEDED,
    DEADLINE_PASSED,
    MALFORMED_REQUEST,
    MESSAGE_TOO_LARGE,
    STREAM_STALLED,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    status_reason,
    to_status,
)
from services.common.metrics import MethodMetrics, RequestMetrics
from services.common.part_count import check_part_count
from services.common.rest_twin import HTTP_STATUS_KEY, error_answer
from services.common.tracing import OpenSpan, Tracing

REQUEST_ID_KEY: Final = "x-correlation-id"
PRINCIPAL_KEY: Final = "x-interlock-principal"
TRACEPARENT_KEY: Final = "traceparent"
CLIENT_TIMEOUT_KEY: Final = "x-interlock-client-timeout"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
# Below this a handler could only fail late; refusing at once is honest and cheap.
_LEAST_USEFUL_S: Final = 0.002
_BUDGET_RETRY_S: Final = 0.1

Send = Callable[[bytes], Awaitable[None]]
Read = Callable[[Watched], Awaitable[bytes | Message]]
"""Reads the request of a call that is watched already."""


@dataclass(frozen=True)
class Limits:
    """What one call may take, the same on every door."""

    message_bytes: int = 32 * 1024 * 1024
    """One message, request or answer."""
    bytes_in_flight: int = 256 * 1024 * 1024
    """All requests of the process that are being answered."""
    default_deadline_s: float = 5.0
    """For a unary call that names none."""
    deadline_cap_s: float = 60.0
    """A unary call's deadline is cut to this."""
    stream_bytes: int = 1024 * 1024
    """What one stream may hold whose messages are answered side by side: requests, and answers that are not read."""
    stream_stall_s: float = 30.0
    """A stream ends when its caller has made no room for the next answer for so long."""


# Made for each call; a frozen one costs twice the time.
@dataclass(slots=True)
class Answer:
    """A unary call's outcome: `body` when `status` is None, else the status and no body.

    `body` is the message itself instead of its bytes where the call came as a message.
    """

    body: Any
    status: Status | None
    initial_metadata: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)


class ByteBudget:
    """Bytes of requests that the process holds at the moment, and how many it may."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Count `size_bytes` while the block runs; raises ResourceExhausted with a retry delay when they do not fit."""
        self.take(size_bytes)
        try:
            yield
        finally:
            self.used_bytes -= size_bytes

    def take(self, size_bytes: int) -> None:
        """Count `size_bytes` until somebody subtracts them from `used_bytes`; raises ResourceExhausted as `hold`."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise ResourceExhausted(
                f"the process holds {self.used_bytes} bytes of requests and may hold {self.limit_bytes}",
                reason=BYTES_IN_FLIGHT_EXCEEDED,
                metadata={"used_bytes": str(self.used_bytes), "limit_bytes": str(self.limit_bytes)},
                retry_after_s=_BUDGET_RETRY_S,
            )
        self.used_bytes += size_bytes


class Chain:
    """Answers calls: doors give bytes and metadata, the chain gives bytes or a status."""

    def __init__(
        self, *, limits: Limits, metrics: RequestMetrics, tracing: Tracing, criticality_header: str = ""
    ) -> None:
        self.limits = limits
        self.budget = ByteBudget(limits.bytes_in_flight)
        self.deadlines = Deadlines()
        self.arrivals = Arrivals()
        self.turns = Turns()
        self._metrics = metrics
        self._tracing = tracing
        self._criticality_header = criticality_header
        self._log = structlog.get_logger(part="access")

    def accept(
        self, method: Method, metadata: Mapping[str, str], timeout_s: float | None, wanted_id: str, traceparent: str
    ) -> Call:
        """Return the call for an arriving request.

        `timeout_s` is what the caller allows, None when it names nothing; `metadata` has lower-case keys and none that
        speak for somebody: identity comes from the door, never from the caller.
        """
        criticality = Criticality.DEFAULT
        if self._criticality_header:
            criticality = criticality_of(metadata.get(self._criticality_header, ""))
        request_id = wanted_id if _REQUEST_ID.fullmatch(wanted_id) else secrets.token_hex(16)
        return Call(
            method=method.full_name,
            metadata=metadata,
            deadline=time.monotonic() + self._allowed_s(method, timeout_s),
            criticality=criticality,
            request_id=request_id,
            traceparent=traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else "",
            initial_metadata={REQUEST_ID_KEY: request_id},
            task=asyncio.current_task(),
        )

    async def unary(self, method: Method, payload: bytes | Read, call: Call, *, encoded: bool = True) -> Answer:
        """Answer a unary call, whose request is here or is still to be read.

        Raises only what says that the caller is gone: CancelledError when the door cancels, or ClientGone. `encoded` says
        whether the request is bytes, which are answered with bytes; a message, which a door has made of something else,
        is answered with a message.
        """
        with self.record(method, call) as record:
            try:
                with self.deadlines.watch(call) as watched:
                    request = payload if isinstance(payload, bytes) else await payload(watched)
                    with self.turns.counted() if method.hot else nullcontext():
                        body = await self._answer(method, request, call)
            except BaseException as error:  # noqa: BLE001 - SystemExit out of a task would end the event loop
                return _failure(method, record.fail(error), call, encoded=encoded)
            return Answer(body, None, call.initial_metadata, call.trailers)

    async def answer(self, method: Method, payload: bytes, call: Call) -> bytes | Status:
        """Answer a unary call that another process of this service has accepted, and keeps the record of.

        Raises only CancelledError, when that process takes the call back.
        """
        token = CURRENT_CALL.set(call)
        try:
            with self.deadlines.watch(call):
                body: bytes = await self._answer(method, payload, call)
        except BaseException as error:  # noqa: BLE001 - SystemExit out of a task would end the event loop
            return self.status_of(error, call)
        else:
            return body
        finally:
            CURRENT_CALL.reset(token)

    async def stream(self, method: Method, payloads: AsyncIterator[bytes], call: Call, send: Send) -> Status | None:
        """Answer a streaming call through `send`; returns None for success, else the status to close it with.

        Raises only CancelledError, when the door cancels because the caller is gone.
        """
        with self.record(method, call) as record:
            try:
                check_time(call)
                with self.deadlines.watch(call):
                    await self._exchange(method, payloads, call, send)
            except BaseException as error:  # noqa: BLE001 - SystemExit out of a task would end the event loop
                return record.fail(error)
            return None

    def status_of(self, error: BaseException, call: Call) -> Status:
        """Return the status for what a part of `call` failed with, logged once if it is a bug.

        Raises the cancellation of the task itself again.
        """
        return _status_of(error, call, self._log)

    @property
    def traced(self) -> bool:
        """Whether calls have spans."""
        return self._tracing.enabled

    def record(self, method: Method, call: Call) -> "Record":
        """Return what is to be kept of a call."""
        return Record(method, call, self.metrics_of(method), self._tracing, self._log)

    def metrics_of(self, method: Method) -> MethodMetrics:
        """Return the counters of a method."""
        return self._metrics.of(method.full_name)

    def admit(self, size_bytes: int) -> None:
        """Count a request of so many bytes until somebody subtracts them from the budget; raises ResourceExhausted."""
        check_size("the request", size_bytes, self.limits.message_bytes)
        self.budget.take(size_bytes)

    def _allowed_s(self, method: Method, timeout_s: float | None) -> float:
        if method.streaming:
            return math.inf if timeout_s is None else timeout_s
        return min(self.limits.default_deadline_s if timeout_s is None else timeout_s, self.limits.deadline_cap_s)

    async def _answer(self, method: Method, payload: bytes | Message, call: Call) -> Any:
        encoded = isinstance(payload, bytes)
        size_bytes = len(payload) if isinstance(payload, bytes) else payload.ByteSize()
        self.admit(size_bytes)
        try:
            request = _parse(method, payload) if isinstance(payload, bytes) else payload
            check_time(call)
            response = await method.handler(request, call)
        finally:
            self.budget.used_bytes -= size_bytes
        if not isinstance(response, bytes):
            _check_type(method, response)
            if not encoded:
                check_size("the answer", response.ByteSize(), self.limits.message_bytes)
                return response
            response = response.SerializeToString()
        check_size("the answer", len(response), self.limits.message_bytes)
        return response

    async def _exchange(self, method: Method, payloads: AsyncIterator[bytes], call: Call, send: Send) -> None:
        async with aclosing(self._requests(method, payloads)) as requests:
            argument = requests if method.client_streaming else await anext(requests)
            if not method.server_streaming:
                await send(self._encode(method, await method.handler(argument, call)))
                return
            async with aclosing(method.handler(argument, call)) as responses:
                async for response in responses:
                    body = self._encode(method, response)
                    try:
                        async with asyncio.timeout(self.limits.stream_stall_s):
                            await send(body)
                    except TimeoutError:
                        raise _stalled(self.limits.stream_stall_s) from None

    async def _requests(self, method: Method, payloads: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
        async for payload in payloads:
            if method.answers_many:
                check_size("the request", len(payload), self.limits.message_bytes)
                message = [_parse(method, payload)]
                # Neither stays here while the stream stalls: that would be two messages held for nothing.
                del payload
                yield message.pop()
                continue
            self.admit(len(payload))
            try:
                yield _parse(method, payload)
            finally:
                self.budget.used_bytes -= len(payload)

    def _encode(self, method: Method, response: Any) -> bytes:
        _check_type(method, response)
        body: bytes = response if isinstance(response, bytes) else response.SerializeToString()
        check_size("the answer", len(body), self.limits.message_bytes)
        return body


class Record:
    """What is kept of one call: span, metrics and one access log line, written when the block ends."""

    __slots__ = ("_call", "_code", "_log", "_method", "_metrics", "_reason", "_span", "_token")

    def __init__(self, method: Method, call: Call, metrics: MethodMetrics, tracing: Tracing, log: Any) -> None:
        self._method = method
        self._call = call
        self._metrics = metrics
        self._log = log
        self._code = "OK"
        self._reason = ""
        self._span: OpenSpan | None = None
        if tracing.enabled:
            self._span = tracing.begin(method.full_name, call.traceparent, server=True)
            call.traceparent = self._span.traceparent
        self._token: Token[Call | None] | None = None

    def __enter__(self) -> Self:
        self._token = CURRENT_CALL.set(self._call)
        self._metrics.in_flight += 1
        return self

    def fail(self, error: BaseException) -> Status:
        """Return the status for `error`, and log it once if it is a bug; raises a cancellation by the door again."""
        try:
            status = _status_of(error, self._call, self._log)
        except BaseException:
            self.cancelled()
            raise
        self._code = Code.Name(status.code)
        self._reason = status_reason(status)
        return status

    def cancelled(self) -> None:
        """Keep that the caller went."""
        self._call.abandoned = True
        self._code = "CANCELLED"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._call.arrived
        self._metrics.finish(seconds, self._code)
        if self._span is not None:
            self._span.end("" if self._code == "OK" else self._reason or self._code)
        # A line per good answer would cost the hot methods a third of their speed; their metrics count each.
        if self._code != "OK" or not self._method.hot:
            self._write_line(seconds)
        if self._token is not None:
            CURRENT_CALL.reset(self._token)

    def _write_line(self, seconds: float) -> None:
        fields = {"reason": self._reason} if self._reason else {}
        self._log.info("call", method=self._method.full_name, code=self._code, ms=round(seconds * 1000, 3), **fields)


def _failure(method: Method, status: Status, call: Call, *, encoded: bool) -> Answer:
    """Return a failed call's answer; an HttpBody twin answers OK with the error as its body, on every door."""
    if not method.rest_path:
        return Answer(b"", status, call.initial_metadata, call.trailers)
    http, body = error_answer(status, method.rest_path)
    call.initial_metadata[HTTP_STATUS_KEY] = str(http)
    return Answer(body.SerializeToString() if encoded else body, None, call.initial_metadata, call.trailers)


def caller_timeout_s(timeout_s: float | None, named: str | bytes | None) -> float | None:
    """Return what a caller allows, None when he named nothing; `named` is what the edge says that he did, None without one.

    The edge writes its cap into every call; a caller that named no time gets the default all the same.
    """
    return timeout_s if named or named is None else None


def check_time(call: Call) -> None:
    """Raise DeadlineExceeded for a call that could only be answered late."""
    if call.remaining_s() < _LEAST_USEFUL_S:
        raise DeadlineExceeded("the deadline passed before the answer was ready", reason=DEADLINE_PASSED)


def _stalled(limit_s: float) -> ResourceExhausted:
    return ResourceExhausted(
        f"the caller made no room for the next answer in {limit_s:g} s; read answers while you send",
        reason=STREAM_STALLED,
        metadata={"limit_s": f"{limit_s:g}"},
    )


def _status_of(error: BaseException, call: Call, log: Any) -> Status:
    if isinstance(error, ClientGone) or is_own_end(error):
        raise error
    if isinstance(error, asyncio.CancelledError):
        # Something that the handler awaited was cancelled; our caller still waits for an answer.
        error = RuntimeError("the handler awaited a cancelled task")
    if isinstance(error, grpc.aio.AioRpcError):
        log.warning("peer_failed", method=call.method, code=error.code().name, text=error.details())
    elif not isinstance(error, ServiceError):
        log.error("call_failed", method=call.method, exc_info=error)
    return to_status(error, call.request_id)


def is_own_end(error: BaseException) -> bool:
    """Whether `error` ends the running task itself, instead of being a failure of what it awaited."""
    if isinstance(error, GeneratorExit):
        return True
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


def _parse(method: Method, payload: bytes) -> Any:
    return payload if method.raw else parse_message(method.request, payload)


def parse_message(kind: type[Message], payload: bytes) -> Any:
    """Return a message; raises InvalidArgument for what is none, or has more parts than anybody needs."""
    check_part_count(payload)
    try:
        return kind.FromString(payload)
    except DecodeError:
        # The decoder's own text names classes of ours.
        raise InvalidArgument(
            f"the {len(payload)} bytes of the request are not a protobuf message of this method; "
            "check that client and server use the same contract",
            reason=MALFORMED_REQUEST,
        ) from None


def _check_type(method: Method, response: object) -> None:
    # What is not raw may be answered in wire form all the same: a hot handler that has most of it prepared.
    if not isinstance(response, bytes) and (method.raw or not isinstance(response, method.response)):
        wanted = "bytes" if method.raw else method.response.__name__
        raise TypeError(f"handler of {method.full_name} returned {type(response).__name__}, not {wanted}")


def check_size(what: str, size_bytes: int, limit_bytes: int) -> None:
    """Raise ResourceExhausted for a message that is too large."""
    if size_bytes > limit_bytes:
        raise ResourceExhausted(
            f"{what} has {size_bytes} bytes, the limit is {limit_bytes}",
            reason=MESSAGE_TOO_LARGE,
            metadata={"size_bytes": str(size_bytes), "limit_bytes": str(limit_bytes)},
        )
