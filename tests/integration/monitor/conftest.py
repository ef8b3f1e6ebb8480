"""A whole monitor in this process, reached through its grpcio door; its registry is a fake."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from interlock.monitor.v1 import alert_service_pb2_grpc as alert_rpc
from interlock.monitor.v1 import monitor_service_pb2_grpc as rpc
from interlock.monitor.v1 import monitoring_policy_service_pb2_grpc as policy_rpc

from services.common.server import Serving, serving
from services.monitor.app import build
from services.monitor.settings import Settings
from tests.fakes.monitor_registry import FakeRegistry, model_version, serve_registry
from tests.fakes.ports import free_offset


@dataclass
class Monitor:
    """The running service, its registry, and clients of it."""

    serving: Serving[Settings]
    channel: grpc.aio.Channel
    registry: FakeRegistry

    @property
    def stub(self) -> "rpc.MonitorServiceAsyncStub":
        return rpc.MonitorServiceStub(self.channel)

    @property
    def policies(self) -> "policy_rpc.MonitoringPolicyServiceAsyncStub":
        return policy_rpc.MonitoringPolicyServiceStub(self.channel)

    @property
    def alerts(self) -> "alert_rpc.AlertServiceAsyncStub":
        return alert_rpc.AlertServiceStub(self.channel)


@asynccontextmanager
async def running_monitor(state_dir: Path, registry: FakeRegistry, **changes: Any) -> AsyncIterator[Monitor]:
    """Run a monitor on a state folder; what it keeps there outlives it."""
    async with serve_registry(registry) as registry_address:
        settings = Settings(
            state_dir=state_dir,
            port_offset=free_offset(),
            drain_delay_s=0,
            drain_grace_s=5,
            prediction_count_limit=50,
            registry_address=registry_address,
            **changes,
        )
        async with (
            serving("monitor", settings, build, ["127.0.0.1:0"]) as running,
            grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel,
        ):
            yield Monitor(running, channel, registry)


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    async with running_monitor(tmp_path, FakeRegistry([model_version()])) as running:
        yield running
