"""The registry as a process of its own, to be killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.registry.settings import RegistrySettings
from tests.fakes.registry_service import Registry

ROOT = Path(__file__).parents[2]
# The child limits itself: a function that runs before its start would need a fork, which gRPC does not survive.
_WITH_LIMIT = """
import resource, runpy, sys
limit = int(sys.argv.pop())
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("services.registry", run_name="__main__", alter_sys=True)
"""


@dataclass
class RegistryProcess:
    """A running process and a client on it."""

    process: asyncio.subprocess.Process
    registry: Registry

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody says goodbye."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """SIGTERM, and the exit code after the drain."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@asynccontextmanager
async def registry_process(
    state_dir: Path, port_offset: int, *, file_limit_bytes: int = 0, **settings: str
) -> AsyncIterator[RegistryProcess]:
    """Run the registry while the block runs; with a limit, the kernel lets no file of it grow beyond."""
    given = {"state_dir": str(state_dir), "port_offset": str(port_offset), "drain_delay_s": "0", **settings}
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
        "INTERLOCK_ARTIFACT_LEAST_FREE_SHARE": "0",
        **{f"INTERLOCK_{name.upper()}": value for name, value in given.items()},
    }
    with _open_log(state_dir) as log:
        command = ["-c", _WITH_LIMIT, str(file_limit_bytes)] if file_limit_bytes else ["-m", "services.registry"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=environment, stdout=log, stderr=log
        )
    found = RegistrySettings(state_dir=state_dir, port_offset=port_offset)
    address = found.address_of("registry")
    try:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            await _until_serving(channel, process)
            yield RegistryProcess(process, Registry(found, address, channel))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _open_log(state_dir: Path) -> BinaryIO:
    state_dir.mkdir(parents=True, exist_ok=True)
    return (state_dir / "log").open("ab")


async def _until_serving(channel: grpc.aio.Channel, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(30):
        request = health_pb2.HealthCheckRequest(service="interlock.registry.v1.RegistryService")
        stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        while process.returncode is None:
            try:
                answer = await stub.Check(request, wait_for_ready=True, timeout=0.5)
            except grpc.aio.AioRpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise RuntimeError(f"the registry ended with {process.returncode}; its log is in the state folder")
