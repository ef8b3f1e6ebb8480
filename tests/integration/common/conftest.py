"""A real grpc.aio server over the echo contract, on a free port."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
from prometheus_client import CollectorRegistry

from services.common.call import methods_of
from services.common.chain import Chain, Limits
from services.common.door_grpc import DoorProfile, GrpcDoor
from services.common.health import HealthBoard, health_binding
from services.common.metrics import RequestMetrics
from services.common.tracing import Tracing
from tests.integration.common.echo_contract import EchoClient, EchoServicer, echo_binding

LIMITS = Limits(message_bytes=64 * 1024, bytes_in_flight=100 * 1024, default_deadline_s=5, deadline_cap_s=10)


@dataclass
class EchoServer:
    """The parts of a running server that tests look into."""

    servicer: EchoServicer
    board: HealthBoard
    chain: Chain
    door: GrpcDoor
    registry: CollectorRegistry
    address: str
    channel: grpc.aio.Channel

    @property
    def client(self) -> EchoClient:
        return EchoClient(self.channel)


@pytest.fixture
def limits() -> Limits:
    return LIMITS


@pytest.fixture
def tracing() -> Tracing:
    return Tracing("echo")


@pytest.fixture
async def server(limits: Limits, tracing: Tracing) -> AsyncIterator[EchoServer]:
    registry, board, servicer = CollectorRegistry(), HealthBoard(), EchoServicer()
    chain = Chain(limits=limits, metrics=RequestMetrics("echo", registry), tracing=tracing)
    methods = methods_of([echo_binding(servicer), health_binding(board)])
    door = GrpcDoor(chain, methods, DoorProfile(message_bytes=limits.message_bytes))
    (port,) = await door.listen(["127.0.0.1:0"])
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield EchoServer(servicer, board, chain, door, registry, address, channel)
        board.drain()
        await door.stop(0)
