"""Clients that reset what they ask: many impatient ones are served, a rapid-reset attacker is cut off."""

import asyncio
import contextlib
import random
import re
import struct

import grpc
import httpx
import pytest

from tests.integration.door.conftest import Client, Running, client_of
from tests.proof.processes import resident_bytes

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS_FRAME, RESET_FRAME, SETTINGS_FRAME = 1, 3, 4
END_HEADERS = 4


async def test_many_cancels_on_one_connection_cost_nobody_a_call_and_leave_nothing(door: Running) -> None:
    """HTTP/2 codecs drop a connection after some thousand resets by default, and with it every call in flight."""
    async with client_of(door) as client:
        await storm(client, 1_000)
        before = resident_bytes(process.pid for process in door.processes)
        # With the other door's 10,000, counting calls that were answered before they could be withdrawn.
        assert await storm(client, 12_500) > 3_000
        async with asyncio.timeout(10), httpx.AsyncClient() as http:
            while in_flight((await http.get(door.metrics_url)).text):
                await asyncio.sleep(0.01)
        assert resident_bytes(process.pid for process in door.processes) - before < 10 << 20


async def storm(client: Client, count: int) -> int:
    """Ask for so many and withdraw two of five at any time; returns how many had no answer by then."""
    limit, cancelled = asyncio.Semaphore(48), 0

    async def one(number: int) -> None:
        nonlocal cancelled
        async with limit:
            call = client.echo(id=number, action="sleep", sleep_s=0.005)
            if number % 5 < 2:
                await asyncio.sleep(random.random() * 0.005)
                call.cancel()
            try:
                assert (await call).id == number
            except asyncio.CancelledError:
                cancelled += 1

    await asyncio.gather(*(one(number) for number in range(count)))
    return cancelled


def in_flight(metrics: str) -> float:
    """Calls that are being answered, by the service's own account."""
    gauges = re.findall(r"^interlock_router_requests_in_flight\S* (\S+)$", metrics, re.MULTILINE)
    assert gauges
    return sum(map(float, gauges))


async def test_a_rapid_reset_attack_ends_with_its_connection(door: Running) -> None:
    """Streams that are opened only to be reset: the connection is cut soon, and a neighbour notices nothing."""
    async with client_of(door) as neighbour:
        stop = asyncio.Event()
        served = asyncio.ensure_future(call_until(neighbour, stop))
        host, _, port = door.target.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + h2_frame(SETTINGS_FRAME, 0, 0, b""))
        draining = asyncio.ensure_future(read_to_end(reader))
        opened = 0
        with contextlib.suppress(ConnectionError):
            while opened < 20_000 and not draining.done():
                stream = 2 * opened + 1
                writer.write(h2_frame(HEADERS_FRAME, END_HEADERS, stream, request_headers()))
                writer.write(h2_frame(RESET_FRAME, 0, stream, struct.pack(">I", 8)))
                opened += 1
                if opened % 50 == 0:
                    await writer.drain()
                    await asyncio.sleep(0.005)
        await asyncio.wait_for(draining, 5)
        writer.transport.abort()
        stop.set()
        assert await served > 0
        assert opened < 3000


async def call_until(client: Client, stop: asyncio.Event) -> int:
    served = 0
    while not stop.is_set():
        assert (await client.echo(id=served)).id == served
        served += 1
    return served


async def read_to_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


def h2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def request_headers() -> bytes:
    """HPACK without its tables: each header a literal that is not indexed."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/doortest.v1.ProbeService/Echo",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(b"\x00" + literal(name) + literal(value) for name, value in headers.items())


def literal(text: str) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text.encode()


async def test_calls_after_the_storm_are_answered(door: Running) -> None:
    async with client_of(door) as client:
        assert (await client.echo(id=1)).id == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await client.echo(action="fail", text="t")
