"""The plain HTTP port beside a service: Prometheus metrics and the probes of a supervisor or of Kubernetes.

/metrics, /health (the event loop answers), /health/ready (the whole server serves), /health/startup (start is over).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from services.common.health import HealthBoard

_READ_TIMEOUT_S: Final = 5.0
_HEAD_LIMIT_BYTES: Final = 8 * 1024
_TEXT: Final = "text/plain; charset=utf-8"


Page = tuple[HTTPStatus, bytes, str]


class PageServer(ABC):
    """Answers GET and HEAD, one request a connection."""

    @abstractmethod
    async def page(self, path: str) -> Page:
        """Return status, body and content type of what is asked for."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection and close it."""
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._response(head))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ConnectionError):
            # Nobody to answer, or nothing to answer to.
            return
        finally:
            writer.close()

    async def _response(self, head: bytes) -> bytes:
        verb, _, rest = head.partition(b" ")
        if verb not in (b"GET", b"HEAD"):
            return _http(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0].decode("latin-1")
        return _http(*await self.page(path), with_body=verb == b"GET")


class ProbeServer(PageServer):
    """The pages of one process."""

    def __init__(self, board: HealthBoard, registry: CollectorRegistry) -> None:
        self._board = board
        self._registry = registry
        self.started = False
        """Whether start-up is over; the process sets it once."""

    async def page(self, path: str) -> Page:
        """Return what the process says of itself."""
        match path:
            case "/metrics":
                return metrics_page(self._registry)
            case "/health":
                return alive_page()
            case "/health/ready":
                return ready_page(ready=self._board.ready)
            case "/health/startup":
                return startup_page(started=self.started)
            case _:
                return missing_page()


def metrics_page(registry: CollectorRegistry) -> Page:
    """Return all metrics of a registry in the text format."""
    return HTTPStatus.OK, generate_latest(registry), CONTENT_TYPE_LATEST


def alive_page() -> Page:
    """Return the answer of a loop that answers."""
    return HTTPStatus.OK, b"alive\n", _TEXT


def ready_page(*, ready: bool) -> Page:
    """Return whether traffic is welcome."""
    return _verdict(ready, b"ready\n", b"not ready\n")


def startup_page(*, started: bool) -> Page:
    """Return whether the start is over."""
    return _verdict(started, b"started\n", b"starting\n")


def missing_page() -> Page:
    """Return what there is to ask for."""
    return HTTPStatus.NOT_FOUND, b"want /metrics, /health, /health/ready or /health/startup\n", _TEXT


@asynccontextmanager
async def serve_probes(probes: PageServer, host: str, port: int) -> AsyncIterator[int]:
    """Listen while the block runs and give the bound port; a process that takes over may bind the same one."""
    server = await asyncio.start_server(probes.answer, host, port, reuse_port=True, limit=_HEAD_LIMIT_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # Without wait_closed(): a client that stays connected must not hold the exit.
        server.close()


@asynccontextmanager
async def serve_probes_on(probes: PageServer, socket_path: Path) -> AsyncIterator[None]:
    """Listen on a Unix socket while the block runs; one that a killed process has left there is taken over."""
    server = await asyncio.start_unix_server(probes.answer, socket_path, limit=_HEAD_LIMIT_BYTES)
    try:
        yield
    finally:
        server.close()


def _verdict(good: bool, yes: bytes, no: bytes) -> Page:
    return (HTTPStatus.OK, yes, _TEXT) if good else (HTTPStatus.SERVICE_UNAVAILABLE, no, _TEXT)


def _http(status: HTTPStatus, body: bytes, content_type: str = _TEXT, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
