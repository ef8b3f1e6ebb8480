"""Reads requests for the ASGI door: the body within time, size and budget; headers as metadata; REST as a message."""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from services.common.call import Call
from services.common.chain import Chain
from services.common.door_sweeper import Receive
from services.common.errors import DEADLINE_PASSED, DeadlineExceeded
from services.common.grpc_wire import too_large
from services.common.http_rules import HttpRule

# What the transport says about itself; everything else is the caller's metadata.
_RESERVED: Final = frozenset(
    {"content-type", "content-length", "te", "host", "connection", "transfer-encoding", "expect"}
    | {"grpc-timeout", "grpc-encoding", "grpc-accept-encoding"}
)


class ClientGone(Exception):
    """The client hung up before its request was complete: there is nobody to answer."""


def metadata_of(headers: Mapping[str, str]) -> list[tuple[str, str | bytes]]:
    """Return a request's headers as gRPC metadata, without reserved and binary ones."""
    return [(key, value) for key, value in headers.items() if key not in _RESERVED and not key.endswith("-bin")]


async def read_body(receive: Receive, chain: Chain, call: Call, limit_bytes: int) -> bytes:
    """Return the whole body of a request.

    Raises ResourceExhausted as soon as it passes `limit_bytes` or does not fit the process's budget, DeadlineExceeded
    when it is not complete in time, `ClientGone` when the client hung up.
    """
    try:
        async with asyncio.timeout(call.remaining_s()):
            return await _collect(receive, chain, limit_bytes)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the request was complete", reason=DEADLINE_PASSED) from None


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


async def _collect(receive: Receive, chain: Chain, limit_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size_bytes = 0
    # The chain counts the whole request once it is there; until then the parts that wait count here.
    with ExitStack() as held:
        while True:
            # Shielded, for what receive() returned must never be cancelled: its server completes it later.
            event = await asyncio.shield(receive())
            if event["type"] == "http.disconnect":
                raise ClientGone
            chunk = event.get("body", b"")
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise too_large("the request", limit_bytes)
            chunks.append(chunk)
            if not event.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            held.enter_context(chain.budget.hold(len(chunk)))
