"""A whole monitor in this process, reached through its grpcio door."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from interlock.monitor.v1 import monitor_service_pb2_grpc as rpc

from services.common.server import Serving, serving
from services.monitor.app import build
from services.monitor.settings import Settings
from tests.fakes.ports import free_offset


@dataclass
class Monitor:
    """The running service and a client of it."""

    serving: Serving[Settings]
    channel: grpc.aio.Channel
    stub: "rpc.MonitorServiceAsyncStub"


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    settings = Settings(
        state_dir=tmp_path, port_offset=free_offset(), drain_delay_s=0, drain_grace_s=5, prediction_count_limit=50
    )
    async with (
        serving("monitor", settings, build, ["127.0.0.1:0"]) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel,
    ):
        yield Monitor(running, channel, rpc.MonitorServiceStub(channel))
