"""Doors for the suite: real Envoys, each with its own ports, sockets and supervisor."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.fakes.ports import free_offset
from tests.integration.door.probe_service import PROBE, TWIN, compile_contract, load_contract, message

REPOSITORY = Path(__file__).parents[3]
MESSAGE_BYTES = 1 << 20
LAUNCHER = "tests.integration.door.launch_door"


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The descriptor set of the test contract, loaded into this process too."""
    path = tmp_path_factory.mktemp("contract") / "doortest.binpb"
    compile_contract(path)
    load_contract(path)
    return path


@dataclass
class Running:
    """Processes that together are one door, and how to reach it."""

    kind: str
    port: int
    folder: Path
    environment: dict[str, str]
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.target}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{9101 + int(self.environment['INTERLOCK_PORT_OFFSET'])}/metrics"

    @property
    def edge(self) -> asyncio.subprocess.Process:
        """The launcher of the Envoy that holds the public port."""
        return self.processes[-1]

    def envoy_pid(self) -> int:
        pid = self.envoy_pid_or_none()
        assert pid is not None
        return pid

    def envoy_pid_or_none(self) -> int | None:
        """The Envoy that the launcher runs now, None between two."""
        children = Path(f"/proc/{self.edge.pid}/task/{self.edge.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


async def spawn_ready(running: Running, module: str, *, settle_s: float = 40.0) -> asyncio.subprocess.Process:
    """Start `python -m arguments` and return once it said READY on its own notify socket."""
    number = len(running.processes)
    notify_path = running.folder / f"notify-{number}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(notify_path))
        notifications.setblocking(False)
        with (running.folder / f"{number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, cwd=REPOSITORY, stdout=log, stderr=log,
                env={**os.environ, **running.environment, "NOTIFY_SOCKET": str(notify_path)},
            )  # fmt: skip
        running.processes.append(process)
        ready = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(notifications, 1024))
        ended = asyncio.ensure_future(process.wait())
        done, _ = await asyncio.wait({ready, ended}, timeout=settle_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, ended):
            task.cancel()
        # Before the socket is closed: a reader left in the loop would swallow the events of whatever gets its number
        # next, and grpc.aio's own wake-up socket is such a one.
        await asyncio.wait({ready, ended})
        assert ready in done, f"{module} did not get ready:\n{running.log()}"
        assert ready.result() == b"READY=1"
    return process


async def spawn_edge(running: Running) -> asyncio.subprocess.Process:
    """Start one more process that holds the public port."""
    module = LAUNCHER if running.kind == "envoy" else "services.common.edge"
    return await spawn_ready(running, module)


async def end(
    process: asyncio.subprocess.Process, number: signal.Signals = signal.SIGTERM, wait_s: float = 15.0
) -> int:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    return await asyncio.wait_for(process.wait(), wait_s)


def make_running(kind: str, contract: Path, **extra: str) -> Running:
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    offset = free_offset()
    environment = {
        "INTERLOCK_DOOR": kind,
        "INTERLOCK_DOORTEST_DESCRIPTORS": str(contract),
        "INTERLOCK_MESSAGE_LIMIT_BYTES": str(MESSAGE_BYTES),
        "INTERLOCK_STATE_DIR": str(folder),
        "INTERLOCK_PORT_OFFSET": str(offset),
        "INTERLOCK_EDGE_DESCRIPTOR_PATH": str(contract),
        "INTERLOCK_EDGE_SERVICES": json.dumps({"router": [PROBE, TWIN]}),
        "INTERLOCK_EDGE_DRAIN_TIME_S": "1",
        "INTERLOCK_EDGE_PROBE_INTERVAL_S": "0.3",
        "INTERLOCK_EDGE_PROBE_TIMEOUT_S": "0.5",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'gen'}",
        **extra,
    }
    return Running(kind, 8080 + offset, folder, environment)


@contextlib.asynccontextmanager
async def running_door(kind: str, contract: Path, **extra: str) -> AsyncIterator[Running]:
    running = make_running(kind, contract, **extra)
    try:
        if kind == "grpcio":
            await spawn_ready(running, LAUNCHER)
        await spawn_edge(running)
        yield running
    finally:
        for process in reversed(running.processes):
            if process.returncode is None:
                process.kill()
                await process.wait()
        shutil.rmtree(running.folder, ignore_errors=True)


DOORS = ("envoy", "grpcio")


@pytest_asyncio.fixture(params=DOORS, scope="module", loop_scope="module")
async def door(request: pytest.FixtureRequest, contract: Path) -> AsyncIterator[Running]:
    """One running door for all tests of a module; they leave it as they found it."""
    async with running_door(request.param, contract) as running:
        yield running


@pytest.fixture(params=DOORS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Client:
    """A gRPC client of the probe service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def _method(self, factory: Callable[..., Any], name: str) -> Any:
        return factory(
            f"/{PROBE}/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message("EchoResponse").FromString,
        )

    def echo(self, *, cold: bool = False, **fields: Any) -> Any:
        keywords = {key: fields.pop(key) for key in ("timeout", "metadata", "compression") if key in fields}
        call = self._method(self.channel.unary_unary, "EchoCold" if cold else "Echo")
        return call(message("EchoRequest")(**fields), **{"timeout": 10.0, **keywords})

    def count(self, **fields: Any) -> Any:
        return self._method(self.channel.unary_stream, "Count")(message("EchoRequest")(**fields), timeout=10)

    def collect(self, ids: list[int]) -> Any:
        requests = [message("EchoRequest")(id=number) for number in ids]
        return self._method(self.channel.stream_unary, "Collect")(iter(requests), timeout=10)

    def chat(self, ids: list[int] | None = None, timeout_s: float = 30) -> Any:
        """Send these and nothing more, or give a stream to write into."""
        requests = None if ids is None else iter([message("EchoRequest")(id=number) for number in ids])
        return self._method(self.channel.stream_stream, "Chat")(requests, timeout=timeout_s)

    async def raw(self, path: str, payload: bytes) -> bytes:
        """Send bytes as they are and return the answer's."""
        call: Any = self.channel.unary_unary(path)
        answer: bytes = await call(payload, timeout=10)
        return answer


@contextlib.asynccontextmanager
async def client_of(running: Running) -> AsyncIterator[Client]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(running.target, options=options) as channel:
        yield Client(channel)
