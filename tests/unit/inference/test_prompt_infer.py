"""ModelInfer of inference without a task: queued, answered, refused and taken back by callbacks."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from inference import grpc_service_pb2 as oip_pb
from prometheus_client import CollectorRegistry

from services.common.call import Binding, Method, methods_of
from services.common.chain import Chain, Limits
from services.common.door_asgi import AsgiDoor
from services.common.door_sweeper import Sweeper
from services.common.grpc_wire import frame
from services.common.metrics import RequestMetrics
from services.common.shared_regions import SharedRegions
from services.common.tracing import Tracing
from services.inference.adapters.monotonic_clock import MonotonicClock
from services.inference.adapters.telemetry import PrometheusObserver, SpanTracer
from services.inference.domain.admission import QueueLimits
from services.inference.domain.instance import HostParts
from services.inference.domain.model_host import ModelHost
from services.inference.domain.replica import Replica
from services.inference.domain.version import BatchingPolicy, LoadState, VersionKey, VersionSpec
from services.inference.servicer.oip import OipServicer
from tests.fakes.envoy_like import EnvoyLike, count_of, grpc_scope
from tests.fakes.inference_runner import ANSWER, SPEC, FakeRunner

PATH = "/inference.GRPCInferenceService/ModelInfer"
QUEUE_ROWS = 64


class World:
    """Inference with one version, whose process answers when a test says so."""

    def __init__(self) -> None:
        registry, nothing = CollectorRegistry(), None
        self.chain = Chain(limits=Limits(), metrics=RequestMetrics("t", registry), tracing=Tracing("t"))
        anything: Any = nothing
        spec = VersionSpec(VersionKey("m", "1"), (), (SPEC,), (ANSWER,))
        parts = HostParts(
            artifacts=anything, launcher=anything, clock=MonotonicClock(self.chain.turns), observer=PrometheusObserver(registry),
            limits=QueueLimits(rows=QUEUE_ROWS), loads=anything, pauses=anything, arriving=self.chain.arrivals.count,
        )  # fmt: skip
        replica = Replica("r", "default", parts, lambda key, ready: None)
        self.host = replica.hosts[spec.key] = ModelHost(spec, BatchingPolicy(), parts, lambda host: None)
        self.host.state = LoadState.READY
        self.runner = FakeRunner(self.host.dispatcher)
        self.host.dispatcher.attach(self.runner, [(1, 1e-4), (64, 3e-4)])
        servicer = OipServicer(replica, SpanTracer(Tracing("t")), anything, "t", SharedRegions(0, 0, self.chain.budget))
        binding = Binding("inference.GRPCInferenceService", servicer, hot=frozenset({"ModelInfer"}))
        self.methods: tuple[Method, ...] = methods_of([binding])
        self._door = AsgiDoor(self.chain, self.methods)

    def ask(self, a: int, timeout: str = "20S") -> EnvoyLike:
        request = oip_pb.ModelInferRequest(model_name="m", id=f"id-{a}")
        request.inputs.add(name="x", datatype="UINT8", shape=[1, 1])
        request.raw_input_contents.append(bytes((a,)))
        server = EnvoyLike(frame(request.SerializeToString()))
        scope = grpc_scope(PATH, grpc_timeout=timeout)
        assert self._door.begin(scope, server.receive, server.send) is None
        return server

    async def know(self) -> None:
        """Have a request answered once: from then on its like need no task."""
        await self.all_answered([self.ask(0)])

    async def all_answered(self, servers: list[EnvoyLike]) -> None:
        while not all(server.sent for server in servers):
            if self.runner.out:
                self.runner.answer()
            await asyncio.sleep(0)

    def check_books(self) -> None:
        """Nothing of any call is left."""
        assert (self.chain.budget.used_bytes, len(self.chain.deadlines.watched)) == (0, 0)
        assert (self.host.dispatcher.in_flight, self.host.dispatcher.queue.waiting) == (0, 0)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_each_call_gets_its_own_rows_and_none_has_a_task() -> None:
    world = World()
    await world.know()
    servers = [world.ask(a) for a in range(40)]
    await until(lambda: world.host.dispatcher.in_flight == 40)
    assert not any(task.get_name() == "call" for task in asyncio.all_tasks())
    gc.disable()
    try:
        waiting = count_of("PromptCall", "_PromptAnswer")
        await world.all_answered(servers)
        # A circle of objects for each call would be for the collector, which costs more than having no task gains.
        assert waiting - count_of("PromptCall", "_PromptAnswer") == 80
    finally:
        gc.enable()
    for a, server in enumerate(servers):
        answer = oip_pb.ModelInferResponse.FromString(server.sent[1]["body"][5:])
        assert (answer.id, answer.model_name, answer.model_version) == (f"id-{a}", "m", "1")
        assert answer.raw_output_contents[0] == bytes((2 * a,))
    world.check_books()


async def test_the_deadline_takes_a_waiting_call_back() -> None:
    world = World()
    await world.know()
    busy = [world.ask(a) for a in range(2)]
    await until(lambda: world.runner.out)
    late = world.ask(9, timeout="50m")
    await until(lambda: late.sent)
    assert late.header(b"grpc-status") == b"4"
    await world.all_answered(busy)
    world.check_books()


async def test_a_caller_who_goes_is_nobodys_and_its_mates_are_answered() -> None:
    world = World()
    await world.know()
    sweeping = asyncio.ensure_future(Sweeper(world.chain.deadlines).run())
    servers = [world.ask(a) for a in range(6)]
    await until(lambda: world.host.dispatcher.in_flight == 6)
    servers[2].gone = True
    await until(lambda: world.host.dispatcher.in_flight == 5)
    await world.all_answered([server for server in servers if server is not servers[2]])
    assert servers[2].sent == []
    world.check_books()
    sweeping.cancel()


async def test_what_finds_a_full_queue_is_refused_and_the_rest_is_answered() -> None:
    world = World()
    await world.know()
    servers = [world.ask(a % 100) for a in range(4 * QUEUE_ROWS)]
    await until(lambda: any(server.sent for server in servers))
    await world.all_answered(servers)
    refused = [server for server in servers if server.header(b"grpc-status") == b"8"]
    assert 0 < len(refused) < len(servers)
    assert all(len(server.sent) == 3 for server in servers if server not in refused)
    world.check_books()


@pytest.mark.parametrize("model", ["other", "no/id"])
async def test_a_model_that_is_not_here_is_refused(model: str) -> None:
    world = World()
    request = oip_pb.ModelInferRequest(model_name=model)
    server = EnvoyLike(frame(request.SerializeToString()))
    assert AsgiDoor(world.chain, world.methods).begin(grpc_scope(PATH), server.receive, server.send) is None
    await until(lambda: server.sent)
    assert server.header(b"grpc-status") in {b"3", b"5"}
    world.check_books()
