"""The features service as a process of its own, to be killed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.settings import PORTS
from tests.fakes.feature_values import Values
from tests.fakes.features_service import Features
from tests.fakes.ports import free_offset

ROOT = Path(__file__).parents[2]


class FeaturesProcess:
    """A running process and a client on it."""

    def __init__(self, process: asyncio.subprocess.Process, values: Values) -> None:
        self._process = process
        self.values = values

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody says goodbye."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def features_process(state_dir: Path, **settings: str) -> AsyncIterator[FeaturesProcess]:
    """Run features while the block runs."""
    offset = free_offset()
    given = {"state_dir": str(state_dir), "port_offset": str(offset), "drain_delay_s": "0", **settings}
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
        **{f"INTERLOCK_{name.upper()}": value for name, value in given.items()},
    }
    log = (state_dir / "features.out").open("ab")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.features", env=environment, stdout=log, stderr=log
    )
    log.close()
    address = f"127.0.0.1:{PORTS['features'] + offset}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)
            yield FeaturesProcess(process, Values(Features(None, address, channel)))  # type: ignore[arg-type]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
