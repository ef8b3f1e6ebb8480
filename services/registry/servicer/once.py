"""Mutations: one transaction each, and the same answer for the same request_id."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from services.common.call import Call
from services.common.refusals import request_id_of
from services.registry.domain.audit import Author
from services.registry.domain.ports import Change, Store

ResponseT = TypeVar("ResponseT", bound=Message)


def author_of(call: Call) -> Author:
    """Return who makes a change, by which RPC, in which call."""
    return Author(call.principal, call.method.rpartition("/")[2], call.request_id)


async def once(
    store: Store,
    request: Message,
    call: Call,
    answer_type: type[ResponseT],
    work: Callable[[Change], Awaitable[ResponseT]],
) -> ResponseT:
    """Return the answer that `work` gives in a transaction, or gave when the same request came before."""
    request_id = request_id_of(getattr(request, "request_id", ""))
    async with store.change(author_of(call)) as change:
        if not request_id:
            return await work(change)
        fingerprint = _fingerprint(call.method, request)
        known = await change.recall(request_id, fingerprint)
        if known is not None:
            return answer_type.FromString(known)
        answer = await work(change)
        await change.remember(request_id, fingerprint, answer.SerializeToString())
        return answer


def _fingerprint(method: str, request: Message) -> str:
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return hashlib.sha256(method.encode() + b"\0" + body.SerializeToString(deterministic=True)).hexdigest()
