"""The life of a real service process: ready, drain, replacement, start-up errors."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.channels import open_channel
from services.common.settings import METRICS_PORT_STEP, PORTS
from tests.fakes.ports import free_offset
from tests.integration.common.echo_contract import SERVICE, EchoClient

ROOT = Path(__file__).parents[3]


@dataclass
class EchoProcess:
    """A started process and what its supervisor heard from it."""

    process: asyncio.subprocess.Process
    supervisor: socket.socket
    states: list[str] = field(default_factory=list)

    async def heard(self, state: str) -> None:
        ended = asyncio.ensure_future(self.process.wait())
        while state not in self.states:
            told = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(self.supervisor, 4096))
            done, _ = await asyncio.wait({told, ended}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            if told not in done:
                told.cancel()
                said = await self.output() if ended in done else ""
                pytest.fail(f"never heard {state}; exit code {self.process.returncode}\n{said}")
            self.states.extend(told.result().decode().split("\n"))
        ended.cancel()

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)

    async def output(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.read()).decode()


class Stand:
    """Starts echo processes on one free pair of ports and ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offset = free_offset()
        self.port = PORTS["monitor"] + self.offset
        self.address = f"127.0.0.1:{self.port}"
        self.metrics_port = self.port + METRICS_PORT_STEP
        self._all: list[EchoProcess] = []

    async def spawn(self, **variables: str) -> EchoProcess:
        supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        supervisor.bind(str(self.folder / f"notify-{len(self._all)}"))
        supervisor.setblocking(False)
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("INTERLOCK_")},
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gen")]),
            "INTERLOCK_PORT_OFFSET": str(self.offset),
            "INTERLOCK_DRAIN_DELAY_S": "0.1",
            "NOTIFY_SOCKET": supervisor.getsockname(),
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.common.echo_process",
            cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._all.append(EchoProcess(process, supervisor))
        return self._all[-1]

    async def start(self, **variables: str) -> EchoProcess:
        started = await self.spawn(**variables)
        await started.heard("READY=1")
        return started

    async def close(self) -> None:
        for each in self._all:
            each.supervisor.close()
            with contextlib.suppress(ProcessLookupError):
                each.process.kill()
            # Read to the end: an unread pipe would keep its transport open.
            await each.output()
            await each.process.wait()

    async def fetch(self, path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.metrics_port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split(" ")[1]), body


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        stand = Stand(Path(folder))
        yield stand
        await stand.close()


async def test_a_service_says_ready_serves_and_drains(stand: Stand) -> None:
    process = await stand.start()
    async with open_channel(stand.address) as channel:
        in_flight = asyncio.ensure_future(EchoClient(channel).say("wait 400"))
        await EchoClient(channel).say("hi")
        health: Any = health_pb2_grpc.HealthStub
        assert (await health(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))).status == 1
        assert (await stand.fetch("/health/ready"))[0] == 200
        assert (await stand.fetch("/health/startup"))[0] == 200
        assert 'interlock_monitor_requests_total{code="OK"' in (await stand.fetch("/metrics"))[1]
        stopped = asyncio.ensure_future(process.stop())
        await process.heard("STOPPING=1")
        assert await in_flight == str(process.process.pid)
    assert await stopped == 0
    lines = (await process.output()).splitlines()
    assert [line for line in lines if line in {"drain callback", "build closed"}] == ["drain callback", "build closed"]


async def test_a_replacement_on_the_same_port_fails_no_call(stand: Stand) -> None:
    old = await stand.start()
    async with open_channel(stand.address, idempotent=[f"{SERVICE}/Echo"], attempt_timeout_s=1.0) as channel:
        load = _Load(EchoClient(channel))
        await load.answered(200)
        new = await stand.start(INTERLOCK_REPLACE="1")
        assert await old.stop() == 0
        await load.answered(len(load.answers) + 200)
        await load.stop()
    assert load.errors == []
    assert load.answers[-1] == str(new.process.pid)


async def test_a_taken_port_is_one_readable_line(stand: Stand) -> None:
    await stand.start()
    second = await stand.spawn()
    assert await asyncio.wait_for(second.process.wait(), 20) == 1
    lines = (await second.output()).splitlines()
    assert len(lines) == 1
    assert f"cannot listen on {stand.address}" in lines[0]
    assert "INTERLOCK_PORT_OFFSET" in lines[0]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("INTERLOCK_BIND_HOST", "0.0.0.0", "loopback"), ("INTERLOCK_PORT_OFFSET", "-3", "greater than or equal to 0")],
)
async def test_unfit_settings_are_one_readable_line(stand: Stand, variable: str, value: str, said: str) -> None:
    process = await stand.spawn(**{variable: value})
    assert await asyncio.wait_for(process.process.wait(), 20) == 1
    lines = (await process.output()).splitlines()
    assert len(lines) == 1
    assert variable in lines[0]
    assert said in lines[0]


async def test_a_second_signal_ends_the_process_at_once(stand: Stand) -> None:
    process = await stand.start(INTERLOCK_DRAIN_DELAY_S="30")
    process.process.send_signal(signal.SIGTERM)
    await process.heard("STOPPING=1")
    process.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.process.wait(), 5) == 1


async def test_a_signal_during_the_start_ends_it(stand: Stand) -> None:
    process = await stand.spawn(INTERLOCK_ECHO_START_S="30")
    async with asyncio.timeout(20):
        while True:
            # The probe port opens before the adapters do.
            with contextlib.suppress(OSError):
                assert (await stand.fetch("/health/startup"))[0] == 503
                break
            await asyncio.sleep(0.02)
    assert await process.stop() == 0


class _Load:
    """Eight callers without a pause."""

    def __init__(self, client: EchoClient) -> None:
        self.answers: list[str] = []
        self.errors: list[grpc.aio.AioRpcError] = []
        self._client = client
        self._over = False
        self._callers = [asyncio.ensure_future(self._call()) for _ in range(8)]

    async def answered(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.answers) < count and not self.errors:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._over = True
        await asyncio.gather(*self._callers)

    async def _call(self) -> None:
        while not self._over:
            try:
                self.answers.append((await self._client.echo(StringValue(value="wait 2"), timeout=5)).value)
            except grpc.aio.AioRpcError as error:
                self.errors.append(error)
