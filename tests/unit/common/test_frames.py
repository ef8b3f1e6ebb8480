"""Frames on a socket, both ends in one process, and peers that break the rules."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from services.common.frames import MAGIC, BadFrame, FrameLink

HELLO = struct.pack("<4sI", MAGIC, 1 << 20)


class End:
    """One end: keeps what comes."""

    def __init__(self, limit_bytes: int = 1 << 20) -> None:
        self.link = FrameLink(self, limit_bytes)
        self.messages: list[bytes] = []
        self.error: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_over = asyncio.Event()
        self.has_room = asyncio.Event()

    def opened(self) -> None:
        self.is_open.set()

    def received(self, message: bytes) -> None:
        self.messages.append(message)
        if message == b"boom":
            raise ValueError("boom")

    def read_all(self) -> None:
        self.link.close()

    def room(self) -> None:
        self.has_room.set()

    def ended(self, error: Exception | None) -> None:
        self.error = error
        self.is_over.set()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@asynccontextmanager
async def served(end: End) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(lambda: end.link, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def pair(limit_bytes: int = 1 << 20) -> AsyncIterator[tuple[End, End]]:
    left, right = End(), End(limit_bytes)
    async with served(right) as port:
        await asyncio.get_running_loop().create_connection(lambda: left.link, "127.0.0.1", port)
        await asyncio.gather(left.is_open.wait(), right.is_open.wait())
        yield left, right
        left.link.abort()
        await asyncio.gather(left.is_over.wait(), right.is_over.wait())


async def test_messages_of_every_size_arrive_whole_and_in_order() -> None:
    sent = [bytes([number % 256]) * size for number, size in enumerate((0, 1, 3, 4, 5, 70_000, 1 << 20, 0, 200_000))]
    async with pair() as (left, right):
        assert left.link.peer_limit_bytes == 1 << 20
        for message in sent:
            left.link.send(message)
        left.link.stop_sending()
        left.link.send(b"after the end")
        await left.is_over.wait()
        assert right.messages == sent
        assert (left.error, right.error) == (None, None)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
async def test_a_stream_may_be_cut_anywhere(size: int) -> None:
    end = End()
    frames = HELLO + b"".join(struct.pack("<I", len(body)) + body for body in (b"", b"one", b"two" * 5))
    async with served(end) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for first in range(0, len(frames), size):
            writer.write(frames[first : first + size])
            await writer.drain()
        while len(end.messages) < 3:
            await asyncio.sleep(0)
        assert end.messages == [b"", b"one", b"two" * 5]
        writer.close()
        await end.is_over.wait()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "want b'ILF1' and a limit"),
        (struct.pack("<4sI", MAGIC, 0), "want b'ILF1' and a limit"),
        (HELLO + struct.pack("<I", (1 << 20) + 1), "want a message of at most 1048576 bytes, got one of 1048577"),
        (HELLO + struct.pack("<I", 4) + b"boom", "boom"),
    ],
)
async def test_what_breaks_the_rules_ends_the_connection(data: bytes, said: str) -> None:
    end = End()
    async with served(end) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        await end.is_over.wait()
        assert isinstance(end.error, BadFrame | ValueError)
        assert said in str(end.error)
        writer.close()


async def test_a_peer_that_reads_nothing_fills_the_link_and_frees_it_when_it_does() -> None:
    end = End()
    async with served(end) as port:
        client = socket.create_connection(("127.0.0.1", port))
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, HELLO)
        await end.is_open.wait()
        while not end.link.full:
            end.link.send(bytes(1 << 20))
            await asyncio.sleep(0)
        while not end.has_room.is_set():
            await loop.sock_recv(client, 1 << 20)
        assert not end.link.full
        end.link.abort()
        await end.is_over.wait()
        client.close()
