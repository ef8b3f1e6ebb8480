"""The coalescing stream as frames on a socket, for routers that take them; each connection is one stream."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
from interlock.inference.v1 import inference_service_pb2 as pb

from services.common.errors import ResourceExhausted, ServiceError, to_status
from services.common.frames import Connections, FrameLink
from services.inference.domain.failure import InvalidStreamMessage
from services.inference.domain.replica import Replica
from services.inference.servicer.coalesced_stream import CoalescedStream
from services.inference.servicer.oip import Tracer

_LOG: Final = structlog.get_logger(part="frames")
_MAX_CONNECTIONS: Final = 1_024
# What sun_path holds, less its final NUL.
_PATH_LIMIT_BYTES: Final = 107


class FramedStreams:
    """Makes the streams of all connections."""

    def __init__(self, replica: Replica, tracer: Tracer, limit_bytes: int) -> None:
        self.replica = replica
        self.tracer = tracer
        self.limit_bytes = limit_bytes
        self.connections = Connections()

    def connect(self) -> FrameLink:
        """Return the protocol of a new connection."""
        return FramedStream(self).link


class FramedStream:
    """One connection of a router."""

    def __init__(self, streams: FramedStreams) -> None:
        self._streams = streams
        self._stream: CoalescedStream | None = None
        self._over = False
        self.link = FrameLink(self, streams.limit_bytes)
        streams.connections.links.add(self.link)

    def opened(self) -> None:
        """The peer speaks our protocol."""
        if len(self._streams.connections.links) > _MAX_CONNECTIONS:
            self._end(ResourceExhausted("too many connections", reason="QUEUE_FULL", retry_after_s=1.0))

    def received(self, message: bytes) -> None:
        """Take a message; one that cannot be read ends the connection."""
        request = pb.CoalescedInferRequest.FromString(message)
        if self._stream is not None:
            self._stream.take(request)
        elif not self._over:
            self._open(request)

    def read_all(self) -> None:
        """The router sends nothing more."""
        if self._stream is not None:
            self._stream.read_all()
        else:
            self._end(InvalidStreamMessage("want open as the first message, got the end of the stream"))

    def room(self) -> None:
        """The router reads again."""
        self.link.stop_reading(stopped=False)
        self._flush()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self._stream is not None:
            self._stream.abandon()
        self._streams.connections.left(self.link)
        if error is not None and not isinstance(error, OSError):
            _LOG.warning("connection_ended", error=str(error) or type(error).__name__)

    def _open(self, request: pb.CoalescedInferRequest) -> None:
        streams = self._streams
        limit_bytes = min(streams.limit_bytes, self.link.peer_limit_bytes)
        try:
            self._stream = CoalescedStream(
                request, streams.replica, streams.tracer, limit_bytes=limit_bytes, on_change=self._flush
            )
        except ServiceError as error:
            self._end(error)
        else:
            self._flush()

    def _flush(self) -> None:
        """Send what waits, as long as the router reads; what a router that does not read wants is not taken either."""
        stream = self._stream
        if stream is None or self._over:
            return
        while stream.outbox and not self.link.full:
            self.link.send(stream.outbox.popleft().SerializeToString())
        if stream.outbox:
            self.link.stop_reading(stopped=True)
        elif stream.over:
            self._end(stream.error)

    def _end(self, error: BaseException | None) -> None:
        self._over = True
        if error is not None:
            self.link.send(pb.CoalescedInferResponse(ended=to_status(error, "")).SerializeToString())
            if not isinstance(error, ServiceError):
                _LOG.error("stream_failed", exc_info=error)
        self.link.close()


@asynccontextmanager
async def serve_unix(streams: FramedStreams, folder: Path, grace_s: float) -> AsyncIterator[str]:
    """Listen on a socket in `folder` while the block runs; gives the address to announce, empty where it cannot be.

    Each process has a socket of its own, so that a successor never takes over its predecessor's.
    """
    path = _free_path(folder)
    if len(os.fsencode(path)) > _PATH_LIMIT_BYTES:
        _LOG.warning("frames_not_offered", reason=f"want a path of at most {_PATH_LIMIT_BYTES} bytes, got {path}")
        yield ""
        return
    server = await asyncio.get_running_loop().create_unix_server(streams.connect, str(path))
    path.chmod(0o600)
    try:
        yield f"unix:{path}"
    finally:
        await streams.connections.close(server, grace_s)
        path.unlink(missing_ok=True)


@asynccontextmanager
async def serve_tcp(streams: FramedStreams, host: str, grace_s: float) -> AsyncIterator[str]:
    """Listen on a free port of `host` while the block runs; gives the address to announce."""
    server = await asyncio.get_running_loop().create_server(streams.connect, host, 0)
    try:
        yield f"tcp:{server.sockets[0].getsockname()[1]}"
    finally:
        await streams.connections.close(server, grace_s)


def _free_path(folder: Path) -> Path:
    """Return this process's path; the sockets of processes that were killed go."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"hop-{os.getpid()}.sock"
    for found in folder.glob("hop-*.sock"):
        number = found.stem.removeprefix("hop-")
        if found == path or (number.isdigit() and not Path(f"/proc/{number}").exists()):
            found.unlink(missing_ok=True)
    return path
