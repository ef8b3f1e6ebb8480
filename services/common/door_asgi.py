"""The ASGI door: hot unary methods as gRPC and as REST, for a server that hands over whole HTTP requests.

It runs inside Envoy and imports nothing of what embeds it: any ASGI server with HTTP/2 trailers would do. It moves
bytes and metadata; everything else is the chain's, as on the grpcio door.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from google.rpc.status_pb2 import Status

from services.common.call import Method
from services.common.chain import Answer, Chain
from services.common.door_request import ClientGone, metadata_of, read_body, twin_request
from services.common.door_sweeper import Receive, Sweeper
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
    ACCEPT_ENCODING,
    CONTENT_TYPE,
    FRAME_HEADER_BYTES,
    STATUS_OK,
    Header,
    frame,
    is_grpc_content_type,
    parse_timeout,
    status_headers,
    unframe,
)
from services.common.http_rules import PLAIN_SEGMENT, HttpRule, rules_of_service
from services.common.rest_twin import HTTP_STATUS_KEY, error_answer

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A request that found its method."""

    method: Method
    headers: Headers
    receive: Receive
    envelope_bytes: int
    """What the body may have beyond the message itself."""


@dataclass(frozen=True, slots=True)
class _RestRoute:
    """One hot REST path: what matches it, and the twin that answers."""

    path: re.Pattern[str]
    rule: HttpRule
    method: Method


class AsgiDoor:
    """Answers HTTP requests for the hot methods of a table."""

    def __init__(self, chain: Chain, methods: Iterable[Method], sweeper: Sweeper) -> None:
        hot = [method for method in methods if method.hot]
        self._chain = chain
        self._sweeper = sweeper
        self._grpc = {method.path: method for method in hot}
        self._rest = tuple(route for method in hot for route in _rest_routes(method))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Only a cancellation and a lost connection (OSError) pass through."""
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        path = scope["path"]
        method = self._grpc.get(path)
        try:
            if method is not None:
                await self._answer_grpc(method, headers, receive, send)
            elif is_grpc_content_type(headers.get("content-type", "")):
                await _send_grpc_error(send, _status(_no_method(path)), [])
            else:
                await self._answer_rest(scope, headers, receive, send)
        except ClientGone:
            return

    async def _answer_grpc(self, method: Method, headers: Headers, receive: Receive, send: Send) -> None:
        if not is_grpc_content_type(headers.get("content-type", "")):
            await _send_http(send, 415, [], b"")
            return
        limit_bytes = self._chain.limits.message_bytes

        def payload_of(body: bytes) -> bytes:
            return unframe(body, headers.get("grpc-encoding", ""), limit_bytes)

        refusal = None if "trailers" in headers.get("te", "") else _no_trailers()
        incoming = _Incoming(method, headers, receive, FRAME_HEADER_BYTES)
        answer = await self._exchange(incoming, payload_of, refusal)
        await _send_grpc(send, answer)

    async def _answer_rest(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        found = self._find_rest(scope["method"], scope["path"])
        if found is None:
            await _send_no_path(send, scope["path"])
            return
        route, values = found

        def payload_of(body: bytes) -> bytes:
            content_type = headers.get("content-type", "")
            request = twin_request(route.rule, route.method.request, values, content_type, body)
            return request.SerializeToString()

        incoming = _Incoming(route.method, headers, receive, 0)
        await _send_rest(send, await self._exchange(incoming, payload_of, None))

    def _find_rest(self, verb: str, path: str) -> tuple[_RestRoute, dict[str, str]] | None:
        for route in self._rest:
            match = route.path.fullmatch(path)
            if match is not None and verb == route.rule.verb:
                return route, dict(zip(route.rule.template.fields, match.groups(), strict=True))
        return None

    async def _exchange(
        self, incoming: _Incoming, payload_of: Callable[[bytes], bytes], refusal: ServiceError | None
    ) -> Answer:
        chain, method = self._chain, incoming.method
        try:
            timeout_s = parse_timeout(incoming.headers.get("grpc-timeout", ""))
        except ServiceError as error:
            timeout_s, refusal = None, error
        call = chain.accept(method, metadata_of(incoming.headers), timeout_s)
        if refusal is not None:
            return chain.refuse(method, call, refusal)
        try:
            limit_bytes = chain.limits.message_bytes + incoming.envelope_bytes
            payload = payload_of(await read_body(incoming.receive, chain, call, limit_bytes))
        except ServiceError as error:
            return chain.refuse(method, call, error)
        with self._sweeper.watch(incoming.receive):
            return await chain.unary(method, payload, call)


def _rest_routes(method: Method) -> Iterator[_RestRoute]:
    if not method.rest_path:
        return
    for rule in rules_of_service(method.service):
        if rule.method == method.name:
            # What needs decoding takes the other way: the edge routes only plain names here.
            yield _RestRoute(re.compile(rule.template.regex(PLAIN_SEGMENT), re.ASCII), rule, method)


async def _send_grpc(send: Send, answer: Answer) -> None:
    initial = _headers(answer.initial_metadata)
    trailers = _headers(answer.trailers)
    if answer.status is not None:
        await _send_grpc_error(send, answer.status, [*initial, *trailers])
        return
    headers = [CONTENT_TYPE, ACCEPT_ENCODING, *initial]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": frame(answer.body)})
    await send({"type": "http.response.trailers", "headers": [STATUS_OK, *trailers]})


async def _send_grpc_error(send: Send, status: Status, metadata: Sequence[Header]) -> None:
    """Send a trailers-only answer: everything in the headers, no body."""
    await _send_http(send, 200, [CONTENT_TYPE, *metadata, *status_headers(status)], b"")


async def _send_rest(send: Send, answer: Answer) -> None:
    body = HttpBody.FromString(answer.body)
    metadata = dict(answer.initial_metadata)
    http = int(metadata.pop(HTTP_STATUS_KEY, "200"))
    headers = [(b"content-type", body.content_type.encode()), *_headers(metadata)]
    await _send_http(send, http, headers, body.data)


async def _send_no_path(send: Send, path: str) -> None:
    http, body = error_answer(_status(_no_path(path)), path)
    await _send_http(send, http, [(b"content-type", body.content_type.encode())], body.data)


async def _send_http(send: Send, http: int, headers: list[Header], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": http, "headers": [*headers, length], "trailers": False})
    await send({"type": "http.response.body", "body": body})


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
