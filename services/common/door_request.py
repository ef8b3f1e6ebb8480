"""Reads requests for the ASGI door: the body within time, size and budget; headers as metadata; REST as a message."""

import asyncio
from collections.abc import Awaitable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from services.common.call import Call
from services.common.chain import Chain
from services.common.door_sweeper import ClientGone, Receive
from services.common.grpc_wire import Header, is_grpc_content_type, too_large
from services.common.http_rules import HttpRule

# What the transport says about itself; everything else is the caller's metadata.
_RESERVED: Final = frozenset(
    {"content-type", "content-length", "te", "host", "connection", "transfer-encoding", "expect"}
    | {"grpc-timeout", "grpc-encoding", "grpc-accept-encoding"}
)
# What differs from one request of a client to its next.
_OF_ONE_CALL: Final = frozenset(
    {b"x-correlation-id", b"grpc-timeout", b"x-interlock-client-timeout", b"traceparent", b"content-length"}
)
_HEADS_LIMIT: Final = 256

_Event = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What a request's headers say, without those that differ from call to call."""

    metadata: Mapping[str, str]
    """The caller's metadata, without reserved and binary keys."""
    content_type: str
    is_grpc: bool
    takes_trailers: bool
    grpc_encoding: str


class Heads:
    """Reads headers. A client sends the same ones with every call, so each set is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Header, ...], Head] = {}

    def read(self, headers: Sequence[Header]) -> tuple[Head, dict[str, str], str]:
        """Return the head, the call's whole metadata, and its `grpc-timeout`, empty when it names none."""
        own: dict[str, str] = {}
        shared = []
        for header in headers:
            if header[0] in _OF_ONE_CALL:
                own[header[0].decode("latin-1")] = header[1].decode("latin-1")
            else:
                shared.append(header)
        key = tuple(shared)
        head = self._known.get(key)
        if head is None:
            head = self._learn(key)
        timeout = own.pop("grpc-timeout", "")
        own.pop("content-length", None)
        own.update(head.metadata)
        return head, own, timeout

    def _learn(self, key: tuple[Header, ...]) -> Head:
        if len(self._known) >= _HEADS_LIMIT:
            self._known.clear()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in key}
        content_type = headers.get("content-type", "")
        head = self._known[key] = Head(
            metadata={k: v for k, v in headers.items() if k not in _RESERVED and not k.endswith("-bin")},
            content_type=content_type,
            is_grpc=is_grpc_content_type(content_type),
            takes_trailers="trailers" in headers.get("te", ""),
            grpc_encoding=headers.get("grpc-encoding", ""),
        )
        return head


async def read_body(receive: Receive, chain: Chain, call: Call, limit_bytes: int) -> bytes:
    """Return the whole body of a request.

    Raises ResourceExhausted as soon as it passes `limit_bytes` or does not fit the process's budget, DeadlineExceeded
    when it is not complete in time, `ClientGone` when the client hung up.
    """
    with chain.deadlines.watch(call, "the request was complete"):
        arriving = chain.arrivals.begin()
        try:
            body, more = await _chunk(receive)
        finally:
            chain.arrivals.end(arriving)
        if len(body) > limit_bytes:
            raise too_large("the request", limit_bytes)
        return await _collect(receive, chain, limit_bytes, body) if more else body


def twin_request(
    rule: HttpRule, message: type[Message], values: Mapping[str, str], content_type: str, body: bytes
) -> Message:
    """Return the request of an HttpBody twin: path variables in their fields, the body where the rule wants it."""
    request = message()
    for field, value in values.items():
        *parents, name = field.split(".")
        target = request
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)
    if rule.body:
        held = getattr(request, rule.body) if rule.body != "*" else request
        held.CopyFrom(HttpBody(content_type=content_type, data=body))
    return request


async def _collect(receive: Receive, chain: Chain, limit_bytes: int, first: bytes) -> bytes:
    chunks, size_bytes, more = [first], len(first), True
    # The chain counts the whole request once it is there; until then the parts that wait count here.
    with ExitStack() as held:
        while more:
            held.enter_context(chain.budget.hold(len(chunks[-1])))
            chunk, more = await _chunk(receive)
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise too_large("the request", limit_bytes)
            chunks.append(chunk)
        return b"".join(chunks)


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    """Return the next part of a body and whether more follow."""
    event = await _uncancelled(receive())
    if event["type"] == "http.disconnect":
        raise ClientGone
    return event.get("body", b""), event.get("more_body", False)


def _uncancelled(question: Awaitable[_Event]) -> "asyncio.Future[_Event]":
    """Return a future for what `receive` returned, which must never be cancelled: its server completes it later.

    asyncio.shield does the same and costs twice as much.
    """
    answer: asyncio.Future[_Event] = asyncio.get_running_loop().create_future()
    asyncio.ensure_future(question).add_done_callback(partial(_pass_on, answer))
    return answer


def _pass_on(answer: "asyncio.Future[_Event]", question: "asyncio.Future[_Event]") -> None:
    if question.cancelled():
        answer.cancel()
        return
    error = question.exception()
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(question.result())
