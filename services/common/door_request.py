"""Reads requests for the ASGI door: the body within time, size and budget; headers as metadata; REST as a message."""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from services.common.chain import CLIENT_TIMEOUT_KEY, PRINCIPAL_KEY, Chain
from services.common.deadlines import ClientGone, Receive, Watched
from services.common.grpc_wire import Header, said_bytes, too_large
from services.common.http_rules import HttpRule

# What the transport and the edge say about themselves; everything else is the caller's metadata.
_RESERVED: Final = frozenset(
    {"content-type", "content-length", "te", "host", "connection", "transfer-encoding", "expect"}
    | {"grpc-timeout", "grpc-encoding", "grpc-accept-encoding", PRINCIPAL_KEY, CLIENT_TIMEOUT_KEY}
)

_Event = MutableMapping[str, Any]


class Headers(Mapping[str, str]):
    """A request's headers; as a mapping the caller's metadata, which is decoded when somebody asks: hardly ever."""

    __slots__ = ("raw",)

    def __init__(self, headers: Iterable[Header]) -> None:
        self.raw = dict(headers)
        """All of them, as they came."""

    def __getitem__(self, key: str) -> str:
        """Return one; reserved and binary ones are not there."""
        if key in _RESERVED or key.endswith("-bin"):
            raise KeyError(key)
        return self.raw[key.encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        """Give the names of those that are there."""
        names = (name.decode("latin-1") for name in self.raw)
        return (name for name in names if name not in _RESERVED and not name.endswith("-bin"))

    def __len__(self) -> int:
        """Return how many are there."""
        return sum(1 for _ in self)

    def text(self, name: bytes) -> str:
        """Return any header, empty where it is missing."""
        return self.raw.get(name, b"").decode("latin-1")


async def read_body(
    receive: Receive, chain: Chain, watched: Watched, limit_bytes: int, frame_header_bytes: int = 0
) -> bytes:
    """Return the whole body of a request; from then on its client is watched.

    Raises ResourceExhausted as soon as it passes `limit_bytes` and a header, or does not fit the process's budget,
    `ClientGone` when the client hung up.
    """
    before, watched.before = watched.before, "the request was complete"
    chain.arrivals.begin(watched)
    try:
        body, more = _chunk(await _uncancelled(receive()))
    finally:
        chain.arrivals.end(watched)
    held_bytes = limit_bytes + frame_header_bytes
    if len(body) <= held_bytes and more:
        body = await _collect(receive, chain, held_bytes, body)
    if len(body) > held_bytes:
        raise too_large("the request", limit_bytes, said_bytes(body, limit_bytes) if frame_header_bytes else None)
    watched.before = before
    watched.receive = receive
    return body


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
    """Return the whole body, or what came of it when it passed the limit."""
    chunks, size_bytes, more = [first], len(first), True
    # The chain counts the whole request once it is there; until then the parts that wait count here.
    with ExitStack() as held:
        while more and size_bytes <= limit_bytes:
            held.enter_context(chain.budget.hold(len(chunks[-1])))
            chunk, more = _chunk(await _uncancelled(receive()))
            size_bytes += len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)


def _chunk(event: _Event) -> tuple[bytes, bool]:
    """Return the next part of a body and whether more follow."""
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
