"""The HTTP port of metrics and probes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from services.common.health import HealthBoard
from services.common.probes import ProbeServer, serve_probes


@pytest.fixture
def board() -> HealthBoard:
    return HealthBoard()


@pytest.fixture
def probes(board: HealthBoard) -> ProbeServer:
    registry = CollectorRegistry()
    Counter("interlock_test_things", "Things.", registry=registry).inc(3)
    return ProbeServer(board, registry)


@pytest.fixture
async def port(probes: ProbeServer) -> AsyncIterator[int]:
    async with serve_probes(probes, "127.0.0.1", 0) as port:
        yield port


async def _send(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), body


async def _get(port: int, path: str) -> tuple[int, bytes]:
    return await _send(port, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())


async def test_metrics_are_in_the_text_format(port: int) -> None:
    status, body = await _get(port, "/metrics")
    assert status == 200
    assert b"interlock_test_things_total 3.0" in body


async def test_ready_follows_the_board(port: int, board: HealthBoard) -> None:
    before = await _get(port, "/health/ready")
    board.open([])
    serving = await _get(port, "/health/ready?verbose=1")
    board.drain()
    after = await _get(port, "/health/ready")
    assert [before[0], serving[0], after[0]] == [503, 200, 503]


async def test_startup_is_over_once(port: int, probes: ProbeServer) -> None:
    before = await _get(port, "/health/startup")
    probes.started = True
    after = await _get(port, "/health/startup")
    assert [before[0], after[0]] == [503, 200]


async def test_alive_and_unknown_paths(port: int) -> None:
    assert (await _get(port, "/health"))[0] == 200
    assert (await _get(port, "/nope"))[0] == 404
    assert (await _send(port, b"POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
    assert await _send(port, b"HEAD /health HTTP/1.1\r\n\r\n") == (200, b"")


async def test_an_endless_or_broken_head_closes_the_connection_and_nothing_else(port: int) -> None:
    for garbage in (b"G" * 100_000, b"\x00\xff\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
    assert (await _get(port, "/health"))[0] == 200


async def test_a_second_process_may_bind_the_same_port(port: int, probes: ProbeServer) -> None:
    async with serve_probes(probes, "127.0.0.1", port) as second:
        assert second == port
