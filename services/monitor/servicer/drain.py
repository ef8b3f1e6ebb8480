"""Streams that end when the process drains: an open one would hold the server's stop for its whole grace."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from services.common.errors import DRAINING, Unavailable

RequestT = TypeVar("RequestT")


async def until_drained(draining: asyncio.Event, requests: AsyncIterator[RequestT]) -> AsyncIterator[RequestT]:
    """Yield messages until the caller ends the stream; raises Unavailable once the process drains."""
    drained = asyncio.ensure_future(draining.wait())
    following: asyncio.Future[RequestT | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(_next(requests))
            await asyncio.wait((following, drained), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise Unavailable("the process is draining; send to another one", reason=DRAINING)
            request = following.result()
            if request is None:
                return
            yield request
    finally:
        await _cancel(drained)
        if following is not None:
            # Awaited, for the stream cannot be closed while a task still reads from it.
            await _cancel(following)


async def _next(requests: AsyncIterator[RequestT]) -> RequestT | None:
    return await anext(requests, None)


async def _cancel(future: "asyncio.Future[Any]") -> None:
    future.cancel()
    await asyncio.wait((future,))
