"""Start, replacement, drain, crash and hang of real processes, under load, on each door."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests.integration.door.conftest import (
    LAUNCHER,
    Running,
    client_of,
    end,
    make_running,
    running_door,
    spawn_edge,
    spawn_ready,
)
from tests.integration.door.probe_service import message


class Load:
    """Clients that call without pause, gRPC and REST, and count what failed; no call is ever retried by us."""

    def __init__(self, running: Running, *, sleep_s: float = 0.02) -> None:
        self._running = running
        self._sleep_s = sleep_s
        self._stopping = False
        self.answered = 0
        self.failures: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self, clients: int = 8) -> AsyncIterator["Load"]:
        tasks = [asyncio.ensure_future(self._call_grpc(number)) for number in range(clients)]
        try:
            await self.until(clients * 2)
            yield self
        finally:
            self._stopping = True
            await asyncio.gather(*tasks)

    async def until(self, answered: int) -> None:
        async with asyncio.timeout(20):
            while self.answered < answered:
                await asyncio.sleep(0.01)

    async def _call_grpc(self, number: int) -> None:
        while not self._stopping:
            # A new connection now and then: the new process must take calls while the old one still accepts.
            async with client_of(self._running) as client:
                for _ in range(50):
                    number += 100
                    try:
                        answer = await client.echo(id=number, action="sleep", sleep_s=self._sleep_s)
                    except grpc.aio.AioRpcError as error:
                        self.failures.append(f"{error.code()}: {error.details()}")
                        if self._stopping:
                            return
                        await asyncio.sleep(0.05)
                        continue
                    assert answer.id == number
                    self.answered += 1
                    if self._stopping:
                        return


async def test_sigterm_under_load_loses_no_accepted_call(kind: str, contract: Path) -> None:
    """Calls in flight when SIGTERM comes are answered, and the exit is clean and quick."""
    async with running_door(kind, contract) as running, client_of(running) as client:
        calls = [client.echo(id=number, action="sleep", sleep_s=1.0) for number in range(64)]
        await client.echo(id=1)
        async with httpx.AsyncClient(base_url=running.url) as rest:
            rest_call = asyncio.ensure_future(rest.post("/v1/echo", json={"action": "sleep", "sleep_s": 1.0}))
            await asyncio.sleep(0.2)
            ending = [asyncio.ensure_future(end(process)) for process in reversed(running.processes)][:1]
            answers = await asyncio.gather(*calls)
            assert (await rest_call).status_code == 200
        assert [answer.id for answer in answers] == list(range(64))
        assert await asyncio.gather(*ending) == [0], running.log()
        if kind == "grpcio":
            assert await end(running.processes[0]) == 0


async def test_a_replaced_process_fails_no_call(kind: str, contract: Path) -> None:
    """A second process takes the same port, then the first drains: callers notice nothing."""
    async with running_door(kind, contract, INTERLOCK_REPLACE="1") as running:
        async with Load(running).running() as load:
            old = list(running.processes)
            if kind == "grpcio":
                await spawn_ready(running, LAUNCHER)
            await spawn_edge(running)
            await load.until(load.answered + 50)
            for process in reversed(old):
                assert await end(process) == 0, running.log()
            await load.until(load.answered + 200)
        assert load.failures == []
        assert load.answered > 300


async def test_a_killed_envoy_is_back_soon(kind: str, contract: Path) -> None:
    """SIGKILL of Envoy: the supervisor has it serving again by itself."""
    async with running_door(kind, contract) as running:
        async with client_of(running) as client:
            assert (await client.echo(id=1)).id == 1
        killed = running.envoy_pid()
        os.kill(killed, signal.SIGKILL)
        await until_served(running)
        assert running.envoy_pid() != killed
        assert await end(running.edge) == 0


async def test_a_blocked_loop_is_restarted(contract: Path) -> None:
    """Envoy's admin and accept stay healthy while the Python loop is stuck: the watchdog must ask the loop."""
    async with running_door("envoy", contract) as running:
        stuck = running.envoy_pid()
        async with client_of(running) as client:
            call = asyncio.ensure_future(client.echo(action="block", sleep_s=60.0, timeout=30))
            async with asyncio.timeout(15):
                while running.envoy_pid_or_none() in {stuck, None}:
                    await asyncio.sleep(0.05)
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        await until_served(running)
        assert "process_hangs" in running.log()


async def test_a_slow_loop_within_its_time_is_left_alone(contract: Path) -> None:
    """One missed probe is no reason to kill: the block here is longer than one probe and shorter than two."""
    async with running_door("envoy", contract) as running:
        before = running.envoy_pid()
        async with client_of(running) as client:
            await client.echo(action="block", sleep_s=0.6)
            await asyncio.sleep(1.0)
            assert (await client.echo(id=2)).id == 2
        assert running.envoy_pid() == before


async def test_an_open_stream_is_told_of_the_drain_and_does_not_hold_it_up(kind: str, contract: Path) -> None:
    async with running_door(kind, contract) as running, client_of(running) as client:
        stream = client.chat()
        await stream.write(message("EchoRequest")(id=1))
        assert (await stream.read()).id == 1
        await stream.write(message("EchoRequest")(id=2, action="sleep", sleep_s=1.0))
        await stream.write(message("EchoRequest")(id=3))
        answered = set()
        while 3 not in answered:
            answered.add((await stream.read()).id)
        # That 3 is answered says that 2 has been taken.
        ending = asyncio.ensure_future(end(running.processes[0], wait_s=30))
        while 2 not in answered:
            answered.add((await stream.read()).id)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "drains" in str(refused.value.details())
        assert await ending == 0, running.log()


async def test_a_second_signal_ends_it_at_once(kind: str, contract: Path) -> None:
    async with running_door(kind, contract) as running, client_of(running) as client:
        call = asyncio.ensure_future(client.echo(action="sleep", sleep_s=20.0, timeout=30))
        await client.echo(id=1)
        running.edge.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert await end(running.edge) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_ctrl_c_reaches_envoy_through_its_supervisor_only(kind: str, contract: Path) -> None:
    """A terminal signals the whole process group: calls in flight must be answered all the same."""
    async with running_door(kind, contract) as running, client_of(running) as client:
        call = asyncio.ensure_future(client.echo(id=1, action="sleep", sleep_s=1.0))
        await client.echo(id=2)
        assert os.getpgid(running.envoy_pid()) != os.getpgid(running.edge.pid)
        assert await end(running.edge, signal.SIGINT) == 0
        assert (await call).id == 1


async def test_a_taken_port_is_refused_in_one_line(kind: str, contract: Path) -> None:
    async with running_door(kind, contract) as running:
        with pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1"):
            await spawn_edge(running)
        assert running.processes[-1].returncode == 1
        async with client_of(running) as client:
            assert (await client.echo(id=1)).id == 1


async def test_a_service_that_cannot_start_ends_the_launcher(contract: Path) -> None:
    """An error in the service's own start ends Envoy and the launcher; nothing hangs, no port stays open."""
    running = make_running("envoy", contract, INTERLOCK_DOORTEST_DESCRIPTORS="/nonexistent")
    with pytest.raises(AssertionError, match="envoy ended with code 1"):
        await spawn_edge(running)
    assert running.processes[-1].returncode == 1


async def test_nothing_outlives_the_launcher(kind: str, contract: Path) -> None:
    """When the supervisor itself is killed, Envoy goes with it."""
    async with running_door(kind, contract) as running:
        envoy = running.envoy_pid()
        await end(running.edge, signal.SIGKILL)
        async with asyncio.timeout(15):
            while lives(envoy):
                await asyncio.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


async def until_served(running: Running) -> None:
    async with asyncio.timeout(40):
        while True:
            async with client_of(running) as client:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert (await client.echo(id=9, timeout=1)).id == 9
                    return
            await asyncio.sleep(0.02)
