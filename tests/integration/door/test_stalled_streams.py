"""Callers that converse and never read: each stalls its own stream alone, and little is held for it."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.integration.door.conftest import Client, Running, client_of, running_door
from tests.integration.door.probe_service import message
from tests.proof.processes import resident_bytes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

STREAMS, MESSAGES, PAYLOAD_BYTES = 48, 512, 64 * 1024
# Windows of the caller that grew with its traffic would take in what the service must hold back.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
LEAST_SENT = 4
"""Messages of a stream that go out before anything may hold it back."""
# Far more than Envoy's windows, and far less than the 1.5 GiB that all of them would send.
MOST_HELD_BYTES = STREAMS * 3 * 1024 * 1024


async def test_a_caller_that_does_not_read_stalls_its_own_stream_alone(door: Running) -> None:
    async with grpc.aio.insecure_channel(door.target, options=NARROW) as channel:
        client, sent, pids = Client(channel), [0] * STREAMS, [process.pid for process in door.processes]
        before_bytes = resident_bytes(pids)
        calls = [client.chat(timeout_s=170) for _ in range(STREAMS)]
        writers = [asyncio.create_task(write_all(call, sent, at)) for at, call in enumerate(calls)]
        try:
            told: list[int] = []
            while told != sent or min(sent) < LEAST_SENT:
                told = list(sent)
                await asyncio.sleep(1)
            assert max(sent) < MESSAGES
            assert resident_bytes(pids) - before_bytes < MOST_HELD_BYTES
            for number in range(4):
                assert (await client.echo(id=number, cold=number % 2 == 1, timeout=60)).id == number
            assert [answer.id async for answer in client.chat([5, 6, 7])] == [5, 6, 7]
        finally:
            await give_up(calls, writers)


async def test_where_memory_gets_short_stalled_streams_end_and_nobody_else_is_refused(contract: Path) -> None:
    """Streams that all together would hold twice the limit, a few more at a time, and callers who ask meanwhile."""
    async with (
        running_door("grpcio", contract, INTERLOCK_EDGE_HEAP_LIMIT_BYTES=str(64 << 20)) as running,
        grpc.aio.insecure_channel(running.target, options=NARROW) as channel,
        client_of(running) as other,
    ):
        client, sent = Client(channel), [0] * 400
        calls: list[Any] = []
        writers: list[asyncio.Task[None]] = []
        try:
            while len(calls) < len(sent):
                for _ in range(10):
                    calls.append(client.chat(timeout_s=170))
                    writers.append(asyncio.create_task(write_all(calls[-1], sent, len(writers))))
                while not all(call.done() or sent[at] >= LEAST_SENT for at, call in enumerate(calls)):
                    await asyncio.sleep(0.05)
                # Envoy looks at its memory four times a second.
                await asyncio.sleep(0.3)
                async with asyncio.timeout(10), grpc.aio.insecure_channel(running.target) as new:
                    assert (await Client(new).echo(id=len(calls))).id == len(calls)
                assert (await other.echo(id=1, timeout=10)).id == 1
            assert sum(call.done() for call in calls) > len(calls) // 4
        finally:
            await give_up(calls, writers)


async def write_all(call: Any, sent: list[int], number: int) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        for ident in range(MESSAGES):
            await call.write(message("EchoRequest")(id=ident, payload=bytes(PAYLOAD_BYTES)))
            sent[number] += 1


async def give_up(calls: Sequence[Any], writers: Sequence[asyncio.Task[None]]) -> None:
    for call, writer in zip(calls, writers, strict=True):
        call.cancel()
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)
