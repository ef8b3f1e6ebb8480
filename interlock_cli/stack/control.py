"""How other commands talk to a running stack: JSON lines on a Unix socket in the state folder.

A request is one object, `{"do": "status"}`. The answer is one object: `{"ok": ...}` or `{"error": "...", "hints": [...]}`.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from interlock_cli.errors import CommandFailed

_LINE_LIMIT_BYTES: Final = 64 * 1024
_REQUEST_TIMEOUT_S: Final = 5.0

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]


@asynccontextmanager
async def serve_control(path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    """Answer requests on `path` while the block runs; a handler refuses with CommandFailed."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (ConnectionError, TimeoutError, asyncio.LimitOverrunError, ValueError)
        with contextlib.closing(writer), contextlib.suppress(*gone):
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                line = await reader.readline()
            writer.write(json.dumps(await _answer(line, handlers)).encode() + b"\n")
            await writer.drain()

    # The folder is this user's own, so the socket is too.
    server = await asyncio.start_unix_server(connected, path, limit=_LINE_LIMIT_BYTES)
    try:
        yield
    finally:
        server.close()


async def ask(path: Path, request: Mapping[str, Any], *, timeout_s: float) -> Any:
    """Return the answer of the stack that listens on `path`; raises CommandFailed when there is none, or it refuses."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=_LINE_LIMIT_BYTES)
            with contextlib.closing(writer):
                writer.write(json.dumps(dict(request)).encode() + b"\n")
                line = await reader.readline()
    except OSError:
        raise no_stack(path) from None
    if not line:
        raise CommandFailed("the stack ended before it answered")
    answer = json.loads(line)
    if "error" in answer:
        raise CommandFailed(answer["error"], answer.get("hints", ()))
    return answer["ok"]


def no_stack(path: Path) -> CommandFailed:
    """Return the error for a folder on which no stack runs."""
    return CommandFailed(
        f"no stack runs on {path.parent.parent}",
        ["start one with `interlock up`, or set INTERLOCK_STATE_DIR to the folder of the one you mean"],
    )


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> dict[str, Any]:
    try:
        request = json.loads(line)
        handler = handlers.get(request["do"])
    except (ValueError, KeyError, TypeError):
        return {"error": 'want one line of JSON such as {"do": "status"}'}
    if handler is None:
        return {"error": f"unknown request; want one of {', '.join(handlers)}"}
    try:
        return {"ok": await handler(request)}
    except CommandFailed as error:
        return {"error": error.message, "hints": list(error.hints)}
