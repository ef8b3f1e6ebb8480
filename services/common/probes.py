"""The plain HTTP port beside a service: Prometheus metrics and the probes of a supervisor or of Kubernetes.

/metrics, /health (the event loop answers), /health/ready (the whole server serves), /health/startup (start is over).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from services.common.health import HealthBoard

_READ_TIMEOUT_S: Final = 5.0
_HEAD_LIMIT_BYTES: Final = 8 * 1024
_TEXT: Final = "text/plain; charset=utf-8"


class ProbeServer:
    """Answers GET and HEAD, one request a connection."""

    def __init__(self, board: HealthBoard, registry: CollectorRegistry) -> None:
        self._board = board
        self._registry = registry
        self.started = False
        """Whether start-up is over; the process sets it once."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection and close it."""
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ConnectionError):
            # Nobody to answer, or nothing to answer to.
            return
        finally:
            writer.close()

    def _response(self, head: bytes) -> bytes:
        verb, _, rest = head.partition(b" ")
        if verb not in (b"GET", b"HEAD"):
            return _http(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0].decode("latin-1")
        return _http(*self._page(path), with_body=verb == b"GET")

    def _page(self, path: str) -> tuple[HTTPStatus, bytes, str]:
        match path:
            case "/metrics":
                return HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_LATEST
            case "/health":
                return HTTPStatus.OK, b"alive\n", _TEXT
            case "/health/ready":
                return _verdict(self._board.ready, b"ready\n", b"not ready\n")
            case "/health/startup":
                return _verdict(self.started, b"started\n", b"starting\n")
            case _:
                return HTTPStatus.NOT_FOUND, b"want /metrics, /health, /health/ready or /health/startup\n", _TEXT


@asynccontextmanager
async def serve_probes(probes: ProbeServer, host: str, port: int) -> AsyncIterator[int]:
    """Listen while the block runs and give the bound port; a process that takes over may bind the same one."""
    server = await asyncio.start_server(probes.answer, host, port, reuse_port=True, limit=_HEAD_LIMIT_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # Without wait_closed(): a client that stays connected must not hold the exit.
        server.close()


def _verdict(good: bool, yes: bytes, no: bytes) -> tuple[HTTPStatus, bytes, str]:
    return (HTTPStatus.OK, yes, _TEXT) if good else (HTTPStatus.SERVICE_UNAVAILABLE, no, _TEXT)


def _http(status: HTTPStatus, body: bytes, content_type: str = _TEXT, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
