"""A closed-loop gRPC load generator on raw HTTP/2 frames: one thread, distinct bodies, every answer checked.

A client that is made of grpcio spends more on a call than the server under test does, and the usual C tools repeat one
body. This one writes prepared frames and reads only what it must: DATA, and the trailers' grpc-status.
Frames and settings follow RFC 9113; header blocks are plain literals, RFC 7541.
"""

import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
LARGEST_WINDOW = 2**31 - 1


@dataclass
class Tally:
    """What came of the calls: latencies of the good ones in seconds, and the rest by grpc-status."""

    latencies_s: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    answers: dict[int, bytes] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def ok_count(self) -> int:
        return len(self.latencies_s)

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Connection:
    """One HTTP/2 connection with a fixed number of calls in flight."""

    def __init__(self, host: str, port: int, path: str, load: "Load") -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._load = load
        self._next_stream = 1
        self._started: dict[int, tuple[int, float]] = {}
        self._bodies: dict[int, list[bytes]] = {}
        self._buffer = b""
        self._out: list[bytes] = []
        self._window = 65_535
        self._statuses: dict[bytes, str] = {}
        # The table size 0 that we announce keeps every block of the server stateless, so that blocks can be cached.
        self._decoder = Decoder()
        self._decoder.header_table_size = 0
        self._headers = _header_block(host, port, path)
        settings = struct.pack(">HIHI", 0x1, 0, 0x4, LARGEST_WINDOW)
        window = struct.pack(">I", LARGEST_WINDOW - 65_535)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window))

    def fill(self, in_flight: int) -> None:
        while len(self._started) < in_flight and self._window > 65_536 // 4 and self._load.wants_more():
            index, body = self._load.take()
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._out.append(frame(HEADERS, END_HEADERS, stream, self._headers) + frame(DATA, END_STREAM, stream, body))
            self._window -= len(body)
            self._started[stream] = (index, time.perf_counter())
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    @property
    def idle(self) -> bool:
        return not self._started

    def receive(self) -> None:
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise ConnectionError("the server closed the connection under load")
        data, at = self._buffer + chunk, 0
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + size:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._handle(data[at + 3], data[at + 4], stream, data[at + 9 : at + 9 + size])
            at += 9 + size
        self._buffer = data[at:]

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (GOAWAY, CONTINUATION):
            raise ConnectionError(f"unexpected frame of type {kind} under load")
        if kind == DATA:
            self._bodies.setdefault(stream, []).append(payload)
        elif kind == HEADERS and flags & END_STREAM:
            self._finish(stream, self._status(payload))
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._out.append(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == RST_STREAM:
            self._finish(stream, "reset")

    def _status(self, block: bytes) -> str:
        known = self._statuses.get(block)
        if known is None:
            known = dict(self._decoder.decode(block)).get("grpc-status", "none")
            self._statuses[block] = known
        return known

    def _finish(self, stream: int, status: str) -> None:
        index, started = self._started.pop(stream)
        body = b"".join(self._bodies.pop(stream, ()))
        self._load.done(index, status, body, time.perf_counter() - started)


class Load:
    """Sends `bodies` round and round until the time is over, then waits for what is in flight."""

    def __init__(self, bodies: Sequence[bytes], *, keep_answers: bool) -> None:
        self._bodies = [b"\0" + struct.pack(">I", len(body)) + body for body in bodies]
        self._keep = keep_answers
        self._next = 0
        self._stop_at = 0.0
        self._stop_after: int | None = None
        self.tally = Tally()

    def wants_more(self) -> bool:
        if self._stop_after is not None:
            return self._next < self._stop_after
        return time.perf_counter() < self._stop_at

    def take(self) -> tuple[int, bytes]:
        index = self._next % len(self._bodies)
        self._next += 1
        return index, self._bodies[index]

    def done(self, index: int, status: str, body: bytes, seconds: float) -> None:
        if status == "0" and len(body) > 5:
            self.tally.latencies_s.append(seconds)
            if self._keep:
                self.tally.answers[index] = body[5:]
        else:
            self.tally.failures[status] = self.tally.failures.get(status, 0) + 1

    def run(self, host: str, port: int, path: str, *, in_flight: int, connections: int, seconds: float | None) -> Tally:
        """Runs for `seconds`, or, when None, once through all bodies."""
        self._stop_after = len(self._bodies) if seconds is None else None
        selector = selectors.DefaultSelector()
        links = [Connection(host, port, path, self) for _ in range(connections)]
        begun = time.perf_counter()
        self._stop_at = begun + (seconds or 0.0)
        for link in links:
            selector.register(link.socket, selectors.EVENT_READ, link)
            link.fill(in_flight // connections)
        while self.wants_more() or not all(link.idle for link in links):
            for key, _ in selector.select(timeout=5.0):
                key.data.receive()
                key.data.fill(in_flight // connections)
        self.tally.elapsed_s = time.perf_counter() - begun
        for link in links:
            link.socket.close()
        return self.tally


def _header_block(host: str, port: int, path: str) -> bytes:
    encoder = Encoder()
    encoder.header_table_size = 0
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": f"{host}:{port}",
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-timeout": "5S",
    }
    return encoder.encode(list(fields.items()), huffman=False)
