"""HTTP/2 without TLS, spoken frame by frame, so that nothing that a server sends goes unseen.

grpcio hides what the proof is about: it drops a second answer, sends a call again on another connection, and answers a
deadline itself. Here every frame that comes is told: frames of a stream that is over, streams that the server never
began (GOAWAY, REFUSED_STREAM), connections that end with calls open. Frames are those of RFC 9113; header blocks are
plain literals (RFC 7541).
"""

import asyncio
import contextlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol

from hpack import Decoder, Encoder

from services.common.tasks import spawn

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_REFUSED_STREAM, _CANCEL = 0x7, 0x8
_LARGEST_WINDOW: Final = 2**31 - 1
_LARGEST_FRAME: Final = 16_384
# A connection is left for a new one well before stream ids run out.
_LAST_STREAM: Final = 2**30
_REOPEN_PAUSE_S: Final = 0.02


class Caller(Protocol):
    """Who hears how a call ends. Exactly one of these is called, once, unless the server misbehaves."""

    def replied(self, call: "WireCall") -> None:
        """The server ended the stream, with whatever the call holds by now; again if more comes after that."""

    def unprocessed(self) -> None:
        """The server says that it never began."""

    def cut(self) -> None:
        """The connection ended first."""


@dataclass(slots=True)
class WireCall:
    """What has come of one stream."""

    caller: Caller
    headers: dict[str, str] = field(default_factory=dict)
    data: list[bytes] = field(default_factory=list)
    reset: int | None = None

    def messages(self) -> list[bytes]:
        """Return the gRPC messages of the body."""
        body, at, found = b"".join(self.data), 0, []
        while at + 5 <= len(body):
            size = int.from_bytes(body[at + 1 : at + 5], "big")
            found.append(body[at + 5 : at + 5 + size])
            at += 5 + size
        return found


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.usable = asyncio.Event()
        self.ended = asyncio.Event()
        self.leaving = False
        self._transport: Any = None
        self._calls: dict[int, WireCall] = {}
        self._over: dict[int, WireCall] = {}
        self._next_stream = 1
        self._buffer = b""
        self._decoder = Decoder()
        self._decoder.header_table_size = 0
        self._block: tuple[int, int, bytes] | None = None
        self._window = 65_535
        self._waiting: list[tuple[int, bytes]] = []
        self.credit = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        # Table size 0 keeps the server's header blocks free of state, push is off, windows are as wide as they get.
        settings = struct.pack(">HIHIHI", 0x1, 0, 0x2, 0, 0x4, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - 65_535)
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable.clear()
        self.ended.set()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.caller.cut()

    @property
    def open_count(self) -> int:
        return len(self._calls)

    @property
    def takes_calls(self) -> bool:
        return self.usable.is_set() and not self.leaving

    def call(self, headers: bytes, body: bytes, caller: Caller) -> int:
        """Send a request; returns its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.leaving = self.leaving or self._next_stream > _LAST_STREAM
        self._calls[stream] = WireCall(caller)
        self._transport.write(_frame(_HEADERS, _END_HEADERS, stream, headers))
        self._send(stream, body)
        return stream

    def cancel(self, stream: int) -> bool:
        """Withdraw a request; what the server has sent by then is still told. Returns whether it was open."""
        call = self._calls.pop(stream, None)
        if call is None:
            return False
        self._over[stream] = call
        self._forget_old()
        self._transport.write(_frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)))
        return True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        data, at = self._buffer + data, 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if len(data) < end:
                break
            self._take(data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end])
            at = end
        self._buffer = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        match kind:
            case 0:
                self._took_data(stream, flags, payload)
            case 1 | 9:
                self._took_headers(kind, flags, stream, payload)
            case 3:
                self._took_reset(stream, int.from_bytes(payload, "big"))
            case 7:
                self._took_goaway(int.from_bytes(payload[:4], "big"))
            case 4 | 6 | 8:
                self._took_housekeeping(kind, flags, stream, payload)

    def _took_housekeeping(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
            waiting, self._waiting = self._waiting, []
            for later, body in waiting:
                self._send(later, body)
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
            self.usable.set()
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))

    def _took_data(self, stream: int, flags: int, payload: bytes) -> None:
        self.credit += len(payload)
        if self.credit > _LARGEST_WINDOW // 2:
            self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self.credit)))
            self.credit = 0
        call = self._found(stream)
        if call is None:
            return
        call.data.append(payload)
        if flags & _END_STREAM:
            self._ended(stream, call)

    def _took_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS:
            self._block = (stream, flags, payload)
        else:
            assert self._block is not None
            first, first_flags, begun = self._block
            self._block = (first, first_flags | flags & _END_HEADERS, begun + payload)
        stream, flags, block = self._block
        if not flags & _END_HEADERS:
            return
        call = self._found(stream)
        if call is None:
            return
        fields = self._decoder.decode(block)
        call.headers.update({_text(name): _text(value) for name, value in fields})
        if flags & _END_STREAM:
            self._ended(stream, call)

    def _took_reset(self, stream: int, code: int) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        if code == _REFUSED_STREAM:
            del self._calls[stream]
            call.caller.unprocessed()
            return
        if "grpc-status" in call.headers or call.headers.get(":status", "200") != "200":
            return
        call.reset = code
        self._ended(stream, call)

    def _took_goaway(self, last_stream: int) -> None:
        self.leaving = True
        for stream in [stream for stream in self._calls if stream > last_stream]:
            self._calls.pop(stream).caller.unprocessed()

    def _found(self, stream: int) -> WireCall | None:
        return self._calls.get(stream) or self._over.get(stream)

    def _ended(self, stream: int, call: WireCall) -> None:
        if stream in self._calls:
            self._over[stream] = self._calls.pop(stream)
            self._forget_old()
        call.caller.replied(call)
        if self.leaving and not self._calls:
            self.close()

    def _forget_old(self) -> None:
        while len(self._over) > 1_000:
            del self._over[next(iter(self._over))]

    def _send(self, stream: int, body: bytes) -> None:
        # Bodies here are far below a stream's own window; the connection's is kept, in order.
        if len(body) > self._window or self._waiting:
            self._waiting.append((stream, body))
            return
        self._window -= len(body)
        parts = [body[at : at + _LARGEST_FRAME] for at in range(0, len(body), _LARGEST_FRAME)] or [b""]
        for part in parts[:-1]:
            self._transport.write(_frame(_DATA, 0, stream, part))
        self._transport.write(_frame(_DATA, _END_STREAM, stream, parts[-1]))


class Wires:
    """Some connections to one address, opened again when the server ends them."""

    def __init__(self, address: str, count: int) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self.authority = address
        self._wires: list[Wire] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._turn = 0
        self._count = count

    async def open(self) -> None:
        """Open all connections; each is opened again for as long as this lives."""
        self._keepers = [spawn(self._keep(), "keep-wire") for _ in range(self._count)]

    async def close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        for keeper in self._keepers:
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        for wire in self._wires:
            wire.close()
            await wire.ended.wait()

    def pick(self) -> Wire | None:
        """Return a connection that takes calls, each in turn; None when there is none at the moment."""
        usable = [wire for wire in self._wires if wire.takes_calls]
        self._turn += 1
        return usable[self._turn % len(usable)] if usable else None

    async def _keep(self) -> None:
        while True:
            try:
                _, wire = await asyncio.get_running_loop().create_connection(Wire, *self._target)
            except OSError:
                await asyncio.sleep(_REOPEN_PAUSE_S)
                continue
            self._wires.append(wire)
            spawn(self._drop_at_end(wire), "drop-wire")
            while not wire.ended.is_set() and not wire.leaving:
                await asyncio.sleep(_REOPEN_PAUSE_S)

    async def _drop_at_end(self, wire: Wire) -> None:
        await wire.ended.wait()
        self._wires.remove(wire)


@lru_cache(maxsize=1024)
def header_block(fields: tuple[tuple[str, str], ...]) -> bytes:
    """Return request headers as the server gets them."""
    encoder = Encoder()
    encoder.header_table_size = 0
    block: bytes = encoder.encode(list(fields), huffman=False)
    return block


def request_headers(authority: str, path: str, content_type: str, extra: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return the block of a POST."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", content_type),
        *extra,
    )
    return header_block(fields)


def grpc_frame(message: bytes) -> bytes:
    """Return a message as gRPC puts it into a body."""
    return b"\0" + struct.pack(">I", len(message)) + message


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
