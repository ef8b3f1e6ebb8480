"""Several processes on one port: both take calls, each is replaced alone, all drain together; on each door."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx

from tests.integration.door.conftest import (
    LAUNCHER,
    Client,
    Running,
    client_of,
    end,
    make_running,
    spawn_ready,
)
from tests.integration.door.test_life import lives

PROCESSES = 2
METRICS_PORT = 9101
ROUTER_PORT = 9001
EDGE_PORT = 8080


@dataclass
class Caller:
    """One connection, which stays with the process that took it, and what became of its calls."""

    client: Client
    pid: int
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                await self.client.echo(action="sleep", sleep_s=0.01)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code()}: {error.details()}")
            else:
                self.answered += 1


@contextlib.asynccontextmanager
async def running_several(kind: str, contract: Path) -> AsyncIterator[Running]:
    """A launcher with two processes; with grpcio nothing stands before them."""
    running = make_running(kind, contract, INTERLOCK_DOORTEST_PROCESSES=str(PROCESSES), INTERLOCK_REPLACE="1")
    if kind == "grpcio":
        running.port += ROUTER_PORT - EDGE_PORT
    try:
        await spawn_ready(running, LAUNCHER)
        yield running
    finally:
        await end_all(running)


async def end_all(running: Running) -> None:
    for process in running.processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def callers_of(running: Running, pids: set[int]) -> AsyncIterator[list[Caller]]:
    """Two connections or more to each of `pids`, none to anybody else; the kernel deals them out."""
    async with contextlib.AsyncExitStack() as stack:
        callers: list[Caller] = []
        async with asyncio.timeout(20):
            while any(sum(caller.pid == pid for caller in callers) < 2 for pid in pids):
                client = await stack.enter_async_context(client_of(running))
                callers.append(Caller(client, int((await client.echo(action="pid")).text)))
        assert {caller.pid for caller in callers} == pids
        yield callers


@contextlib.asynccontextmanager
async def calling(callers: list[Caller]) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    tasks = [asyncio.ensure_future(caller.run(stopping)) for caller in callers]
    try:
        yield
    finally:
        stopping.set()
        await asyncio.gather(*tasks)


def children_of(launcher: asyncio.subprocess.Process) -> set[int]:
    return set(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))


async def until_answered(callers: list[Caller], more: int = 5) -> None:
    wanted = [caller.answered + more for caller in callers]
    async with asyncio.timeout(20):
        while any(caller.answered < least for caller, least in zip(callers, wanted, strict=True)):
            await asyncio.sleep(0.01)


async def probe(running: Running, path: str) -> tuple[int, str]:
    base = running.port - (ROUTER_PORT if running.kind == "grpcio" else EDGE_PORT)
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{base + METRICS_PORT}{path}")
    return answer.status_code, answer.text


async def both_up(running: Running) -> bool:
    page = (await probe(running, "/metrics"))[1]
    return all(f'interlock_router_process_up{{process="{number}"}} 1.0' in page for number in range(PROCESSES))


async def test_each_of_two_processes_lives_by_itself(kind: str, contract: Path) -> None:
    async with running_several(kind, contract) as running:
        await lose_one(running)
        await check_pages(running)
        check_logs(running)
        if kind == "envoy":
            await take_over(running)
        await drain_under_load(running)


async def lose_one(running: Running) -> None:
    """A killed process costs what it was answering, and comes back."""
    before = children_of(running.edge)
    async with callers_of(running, before) as callers:
        killed = min(before)
        survivors = [caller for caller in callers if caller.pid != killed]
        async with calling(callers):
            await until_answered(callers)
            os.kill(killed, signal.SIGKILL)
            await until_answered(callers)
            async with asyncio.timeout(30):
                while not await both_up(running) or len(children_of(running.edge) - {killed}) < PROCESSES:
                    await asyncio.sleep(0.05)
            await until_answered(callers)
        assert [caller.failures for caller in survivors] == [[]] * len(survivors)
    after = children_of(running.edge)
    assert len(after & before) == 1
    async with callers_of(running, after) as again:
        async with calling(again):
            await until_answered(again)
        assert [caller.failures for caller in again] == [[]] * len(again)


async def take_over(running: Running) -> None:
    """Two new processes take the port from two, and nobody notices."""
    old = running.edge
    async with callers_of(running, children_of(old)) as callers:
        async with calling(callers):
            await spawn_ready(running, LAUNCHER)
            assert await end(old) == 0, running.log()
            await until_answered(callers)
        assert [caller.failures for caller in callers] == [[]] * len(callers)
        assert {int((await caller.client.echo(action="pid")).text) for caller in callers} <= children_of(running.edge)


async def drain_under_load(running: Running) -> None:
    """SIGTERM: what any of the processes has accepted is answered."""
    async with callers_of(running, children_of(running.edge)) as callers:
        calls = [caller.client.echo(id=number, action="sleep", sleep_s=1.0) for number, caller in enumerate(callers)]
        # Answered on the same connections: the calls before are being answered too.
        await asyncio.gather(*(caller.client.echo() for caller in callers))
        ending = asyncio.ensure_future(end(running.edge))
        assert [answer.id for answer in await asyncio.gather(*calls)] == list(range(len(callers)))
        assert await ending == 0, running.log()


async def check_pages(running: Running) -> None:
    assert (await probe(running, "/health/ready"))[0] == 200
    assert (await probe(running, "/health/startup"))[0] == 200
    page = (await probe(running, "/metrics"))[1]
    for number in range(PROCESSES):
        counted = 'interlock_router_requests_total{code="OK",method="doortest.v1.ProbeService/Echo",process="%d"}'
        assert counted % number in page
    assert page.count("# TYPE interlock_router_requests_total counter") == 1


def check_logs(running: Running) -> None:
    lines = [json.loads(line) for line in running.log().splitlines() if line.startswith("{")]
    assert {line["process"] for line in lines if line["event"] == "serving"} == set(range(PROCESSES))


async def test_processes_end_with_a_launcher_that_is_killed(contract: Path) -> None:
    async with running_several("grpcio", contract) as running:
        left = children_of(running.edge)
        await end(running.edge, signal.SIGKILL)
        async with asyncio.timeout(20):
            while any(lives(pid) for pid in left):
                await asyncio.sleep(0.05)
