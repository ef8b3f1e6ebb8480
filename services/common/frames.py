"""Messages as length-prefixed frames on a socket: a stream between two services without what HTTP/2 costs.

A frame is the length of a message in 4 bytes, little-endian, and the message. Before its first frame each side says which
protocol it speaks and the length of the longest message that it takes. Callbacks on the event loop, no tasks; writes of
one turn of the loop leave together. Neither authenticated nor encrypted: a Unix socket is guarded by its folder.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol, cast

MAGIC: Final = b"ILF1"
_HELLO: Final = struct.Struct("<4sI")
_LENGTH: Final = struct.Struct("<I")
_HELLO_LIMIT_S: Final = 5.0
# What was written last gets to leave before a connection is cut.
_LINGER_S: Final = 5.0
# Below it a copy is cheaper than a second buffer.
_PIECE_BYTES: Final = 4 * 1024
"""Smaller pieces are sooner joined than handed to the kernel each."""
# A peer whose host has gone is noticed after 10 s of silence and 3 s of questions. (TCP only.)
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3))


class BadFrame(Exception):
    """The peer broke the rules of frames; the text says what was wanted and what came."""


class FrameOwner(Protocol):
    """Who uses a link. An exception out of `opened` or `received` ends the connection and comes back in `ended`."""

    def opened(self) -> None:
        """The peer speaks our protocol: messages may be sent."""

    def received(self, message: bytes) -> None:
        """Take a message."""

    def read_all(self) -> None:
        """The peer sends nothing more; it still listens."""

    def room(self) -> None:
        """The link may be written again: it is not `full` any more."""

    def ended(self, error: Exception | None) -> None:
        """The connection is gone; called once, last. `error` is None when it was closed in order."""


class FrameLink(asyncio.Protocol):
    """One connection. `limit_bytes` is the longest message that is taken."""

    def __init__(self, owner: FrameOwner, limit_bytes: int) -> None:
        self._owner = owner
        self._limit_bytes = limit_bytes
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _HELLO.size
        self._error: Exception | None = None
        self._said_all = False
        self.full = False
        """Whether more is written than the peer reads: nothing should be sent until `room`."""
        self.peer_limit_bytes = 0
        """The longest message that the peer takes; 0 until it has said so."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are, and wait for the peer to do so."""
        # uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        _keep_alive(self._transport)
        self._transport.write(_HELLO.pack(MAGIC, self._limit_bytes))
        self._timer = asyncio.get_running_loop().call_later(_HELLO_LIMIT_S, self._no_hello)

    def send(self, *message: bytes) -> None:
        """Send a message, given in pieces, not longer than `peer_limit_bytes`; it is lost where the connection is."""
        if self._transport is None or self._said_all or self._transport.is_closing():
            return
        size = sum(map(len, message))
        pieces = (_LENGTH.pack(size), *message)
        if size <= _PIECE_BYTES * len(pieces):
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def stop_sending(self) -> None:
        """Tell the peer that nothing more comes; what it has to say is still taken."""
        if self._transport is not None and not self._said_all and not self._transport.is_closing():
            self._said_all = True
            self._transport.write_eof()

    def stop_reading(self, *, stopped: bool) -> None:
        """Take nothing from the peer for a while, or again."""
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.pause_reading if stopped else self._transport.resume_reading)()

    def close(self) -> None:
        """Close once everything that was sent has left; after a while in any case."""
        if self._transport is not None and not self._transport.is_closing():
            self._set_timer(_LINGER_S, self._transport.abort)
            self._transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """Cut the connection."""
        self._error = self._error or error
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what came apart."""
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
        try:
            rest = self._take(data)
        except Exception as error:  # noqa: BLE001 - a bad peer costs its connection, and nothing else
            self.abort(error)
            return
        if rest < len(data):
            self._parts = [data[rest:] if rest else data]
            self._have = len(data) - rest

    def eof_received(self) -> bool:
        """Keep our direction open: there may be answers to give."""
        self._owner.read_all()
        return True

    def pause_writing(self) -> None:
        """More waits to leave than should."""
        self.full = True

    def resume_writing(self) -> None:
        """It has left."""
        self.full = False
        self._owner.room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        self._stop_timer()
        self._transport = None
        self._owner.ended(self._error or exc)

    def _take(self, data: bytes) -> int:
        """Hand on every message that is whole; returns where the first one begins that is not."""
        at, size = 0, len(data)
        if not self.peer_limit_bytes:
            if size < _HELLO.size:
                return 0
            at = self._take_hello(data)
        while size - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > self._limit_bytes:
                raise BadFrame(f"want a message of at most {self._limit_bytes} bytes, got one of {length}")
            end = at + _LENGTH.size + length
            if end > size:
                self._need = end - at
                return at
            self._owner.received(data[at + _LENGTH.size : end])
            at = end
        self._need = _LENGTH.size
        return at

    def _take_hello(self, data: bytes) -> int:
        magic, limit_bytes = _HELLO.unpack_from(data)
        if magic != MAGIC or not limit_bytes:
            raise BadFrame(f"want {MAGIC!r} and a limit of bytes, got {data[: _HELLO.size]!r}")
        self._stop_timer()
        self.peer_limit_bytes = limit_bytes
        self._owner.opened()
        return _HELLO.size

    def _no_hello(self) -> None:
        self.abort(BadFrame(f"want {MAGIC!r} within {_HELLO_LIMIT_S:g} s, got {self._have} bytes"))

    def _set_timer(self, delay_s: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connections:
    """The connections that a listener has accepted, until the end of them all."""

    def __init__(self) -> None:
        self.links: set[FrameLink] = set()
        self._emptied = asyncio.Event()

    def left(self, link: FrameLink) -> None:
        """Take note of the end of a connection."""
        self.links.discard(link)
        if not self.links:
            self._emptied.set()

    async def close(self, listener: asyncio.Server, grace_s: float) -> None:
        """Accept no more, wait until every connection has ended, and cut what is left after `grace_s` seconds."""
        listener.close()
        if self.links:
            # It may have been empty before.
            self._emptied.clear()
            try:
                async with asyncio.timeout(grace_s):
                    await self._emptied.wait()
            except TimeoutError:
                for link in list(self.links):
                    link.abort()
        await listener.wait_closed()


def _keep_alive(transport: asyncio.Transport) -> None:
    found = transport.get_extra_info("socket")
    if found is None or found.family == socket.AF_UNIX:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        found.setsockopt(socket.IPPROTO_TCP, option, value)
