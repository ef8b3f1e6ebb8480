"""The ASGI door: hot unary methods as gRPC and as REST, for a server that hands over whole HTTP requests.

It runs inside Envoy and imports nothing of what embeds it: any ASGI server with HTTP/2 trailers would do. It moves
bytes and metadata; everything else is the chain's, as on the grpcio door.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from services.common.call import Call, Method
from services.common.chain import CLIENT_TIMEOUT_KEY, REQUEST_ID_KEY, TRACEPARENT_KEY, Answer, Chain, caller_timeout_s
from services.common.deadlines import ClientGone, Receive, Watched
from services.common.door_forms import Event, Form, GrpcForm, JsonForm, grpc_answer, sized_response
from services.common.door_prompt import PromptCall
from services.common.door_request import Headers, read_body, twin_request
from services.common.errors import (
    MALFORMED_REQUEST,
    InvalidArgument,
    NotFound,
    ServiceError,
    Unimplemented,
    echo,
    to_status,
)
from services.common.grpc_wire import (
    CONTENT_TYPE,
    FRAME_HEADER_BYTES,
    Header,
    is_grpc_content_type,
    parse_timeout,
    status_headers,
    unframe,
)
from services.common.http_rules import PLAIN_SEGMENT, HttpRule, rules_of_service
from services.common.rest_twin import HTTP_STATUS_KEY, error_answer
from services.common.tasks import spawn

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_CLIENT_TIMEOUT: Final = CLIENT_TIMEOUT_KEY.encode()
_REQUEST_ID: Final = REQUEST_ID_KEY.encode()
_TRACEPARENT: Final = TRACEPARENT_KEY.encode()


@dataclass(frozen=True, slots=True)
class _RestRoute:
    """One hot REST path: what matches it, and the twin that answers."""

    path: re.Pattern[str]
    rule: HttpRule
    method: Method


_FoundRoute = tuple[_RestRoute, Mapping[str, str]]
"""A route, and the values of the fields of its path."""
_Accepted = tuple[Call, ServiceError | None]
"""A call, and what its headers earn it."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """What answers calls that need no task, and those of them that turn out to need one."""

    method: Method
    form: Form
    answer: Callable[[Headers, _Accepted, Send, Receive], Awaitable[None]]


class AsgiDoor:
    """Answers HTTP requests for the hot methods of a table."""

    def __init__(self, chain: Chain, methods: Iterable[Method]) -> None:
        hot = [method for method in methods if method.hot]
        self._chain = chain
        self._grpc = {method.path: method for method in hot}
        self._rest = tuple(route for method in hot for route in _rest_routes(method))
        self._rest_paths = {
            (route.rule.verb, route.rule.template.text): route for route in self._rest if not route.rule.template.fields
        }
        self._begun = {
            ("POST", method.path): _Begun(method, GrpcForm(), partial(self._grpc_answer, method))
            for method in hot
            if method.begin is not None and not method.rest_path
        } | {
            (verb, path): _Begun(route.method, JsonForm(path), partial(self._rest_answer, (route, {})))
            for (verb, path), route in self._rest_paths.items()
            if route.method.begin is not None
        }

    def begin(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None] | None:
        """Set out to answer a request: the coroutine that does it, or None for a call that needs no task."""
        begun = self._begun.get((scope["method"], scope["path"]))
        if begun is None or self._chain.traced:
            return self.answer(scope, receive, send)
        headers = Headers(scope["headers"])
        if not begun.form.fits(headers.raw):
            return self.answer(scope, receive, send)
        call, refusal = self._accept(begun.method, headers)
        if refusal is not None:
            return self.answer(scope, receive, send)
        go_on = partial(_go_on, call, partial(begun.answer, headers, (call, None), send))
        PromptCall(self._chain, begun.method, call, form=begun.form, receive=receive, send=send, go_on=go_on).begin()
        return None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Only a cancellation and a lost connection (OSError) pass through."""
        headers, path = Headers(scope["headers"]), scope["path"]
        method = self._grpc.get(path)
        is_grpc = is_grpc_content_type(headers.raw.get(b"content-type", b""))
        try:
            if method is not None:
                if is_grpc:
                    await self._grpc_answer(method, headers, self._accept(method, headers), send, receive)
                else:
                    await _send_http(send, 415, [], b"")
            elif is_grpc:
                await _send_grpc_error(send, _status(_no_method(path)), [])
            elif (found := self._find_rest(scope["method"], path)) is not None:
                await self._rest_answer(found, headers, self._accept(found[0].method, headers), send, receive)
            else:
                await _send_no_path(send, path)
        except ClientGone:
            return

    def _accept(self, method: Method, headers: Headers) -> _Accepted:
        raw, timeout_s, refusal = headers.raw, None, None
        try:
            timeout_s = parse_timeout(raw.get(b"grpc-timeout", b""))
        except ServiceError as error:
            refusal = error
        timeout_s = caller_timeout_s(timeout_s, raw.get(_CLIENT_TIMEOUT))
        ident = headers.text(_REQUEST_ID)
        traceparent = headers.text(_TRACEPARENT) if _TRACEPARENT in raw else ""
        return self._chain.accept(method, headers, timeout_s, ident, traceparent), refusal

    async def _grpc_answer(
        self, method: Method, headers: Headers, accepted: _Accepted, send: Send, receive: Receive
    ) -> None:
        chain, limit_bytes = self._chain, self._chain.limits.message_bytes
        call, refusal = accepted

        async def read(watched: Watched) -> bytes:
            if refusal is not None or b"trailers" not in headers.raw.get(b"te", b""):
                raise refusal or _no_trailers()
            body = await read_body(receive, chain, watched, limit_bytes, FRAME_HEADER_BYTES)
            return unframe(body, headers.text(b"grpc-encoding"), limit_bytes)

        await _send_grpc(send, await chain.unary(method, read, call))

    async def _rest_answer(
        self, found: _FoundRoute, headers: Headers, accepted: _Accepted, send: Send, receive: Receive
    ) -> None:
        (route, values), chain = found, self._chain
        call, refusal = accepted

        async def read(watched: Watched) -> Message:
            if refusal is not None:
                raise refusal
            body = await read_body(receive, chain, watched, chain.limits.message_bytes)
            return twin_request(route.rule, route.method.request, values, headers.text(b"content-type"), body)

        await _send_rest(send, await chain.unary(route.method, read, call, encoded=False))

    def _find_rest(self, verb: str, path: str) -> _FoundRoute | None:
        plain = self._rest_paths.get((verb, path))
        if plain is not None:
            return plain, {}
        for route in self._rest:
            match = route.path.fullmatch(path)
            if match is not None and verb == route.rule.verb:
                return route, dict(zip(route.rule.template.fields, match.groups(), strict=True))
        return None


def _go_on(call: Call, answer: Callable[[Receive], Awaitable[None]], receive: Receive) -> None:
    """Answer a call in a task after all."""

    async def answering() -> None:
        call.task = asyncio.current_task()
        with suppress(ClientGone, OSError):
            await answer(receive)

    spawn(answering(), "call")


def _rest_routes(method: Method) -> Iterator[_RestRoute]:
    if not method.rest_path:
        return
    for rule in rules_of_service(method.service):
        if rule.method == method.name:
            # What needs decoding takes the other way: the edge routes only plain names here.
            yield _RestRoute(re.compile(rule.template.regex(PLAIN_SEGMENT), re.ASCII), rule, method)


async def _send_grpc(send: Send, answer: Answer) -> None:
    initial = _headers(answer.initial_metadata)
    if answer.status is not None:
        await _send_grpc_error(send, answer.status, [*initial, *_headers(answer.trailers)])
        return
    await _send_all(send, grpc_answer(initial, answer.body, _headers(answer.trailers)))


async def _send_grpc_error(send: Send, status: Status, metadata: Sequence[Header]) -> None:
    """Send a trailers-only answer: everything in the headers, no body."""
    await _send_http(send, 200, [CONTENT_TYPE, *metadata, *status_headers(status)], b"")


async def _send_rest(send: Send, answer: Answer) -> None:
    body: HttpBody = answer.body
    metadata = answer.initial_metadata
    http = int(metadata.pop(HTTP_STATUS_KEY, "200"))
    headers = [(b"content-type", body.content_type.encode()), *_headers(metadata)]
    await _send_http(send, http, headers, body.data)


async def _send_no_path(send: Send, path: str) -> None:
    http, body = error_answer(_status(_no_path(path)), path)
    await _send_http(send, http, [(b"content-type", body.content_type.encode())], body.data)


async def _send_http(send: Send, http: int, headers: list[Header], body: bytes) -> None:
    await _send_all(send, sized_response(http, headers, body))


async def _send_all(send: Send, events: Sequence[Event]) -> None:
    for event in events:
        await send(event)


def _headers(metadata: Mapping[str, str]) -> list[Header]:
    return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in metadata.items()]


def _status(error: ServiceError) -> Status:
    return to_status(error, "")


def _no_trailers() -> InvalidArgument:
    return InvalidArgument("gRPC needs the header `te: trailers`, got a request without it", reason=MALFORMED_REQUEST)


def _no_method(path: str) -> Unimplemented:
    return Unimplemented(f"no method {echo(path)} is served here", reason=MALFORMED_REQUEST, metadata={"path": path})


def _no_path(path: str) -> NotFound:
    return NotFound(f"nothing is served under {echo(path)}", reason=MALFORMED_REQUEST, metadata={"path": path})
