"""ModelInfer of the router through the door inside Envoy, where it needs no task: the same answers, whatever breaks."""

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from inference import grpc_service_pb2 as oip_pb

from services.common.door_asgi import AsgiDoor
from services.common.door_sweeper import Sweeper
from services.common.grpc_wire import frame
from tests.fakes.envoy_like import EnvoyLike
from tests.fakes.router_inference import status_of
from tests.fakes.router_models import PAIR
from tests.fakes.router_world import STANDARD_READY, World, eventually

PATH = "/inference.GRPCInferenceService/ModelInfer"
ROWS = (1, 2, 3)


class Door:
    """The door over the router of a world, in this process."""

    def __init__(self, world: World) -> None:
        self.chain = world.running.runtime.chain
        self._door = AsgiDoor(self.chain, world.running.methods)

    async def know(self) -> None:
        """Have requests of each size answered once: from then on they need no task."""
        for rows in ROWS:
            assert value_of(await self.answered(self.ask(0, rows))) == (0.5,) * rows

    def ask(self, a: int, rows: int = 1, timeout: str = "20S") -> EnvoyLike:
        request = oip_pb.ModelInferRequest(model_name=PAIR, id=f"id-{a}")
        request.inputs.add(name="x", datatype="FP64", shape=[rows, 2])
        request.raw_input_contents.append(struct.pack(f"<{2 * rows}d", *([float(a), 0.5] * rows)))
        server = EnvoyLike(frame(request.SerializeToString()))
        headers = {"content-type": "application/grpc", "te": "trailers", "grpc-timeout": timeout}
        pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": PATH, "headers": pairs}
        assert self._door.begin(scope, server.receive, server.send) is None
        return server

    async def answered(self, server: EnvoyLike) -> EnvoyLike:
        await eventually(lambda: (len(server.sent) >= 2 and not server.sent[0]["trailers"]) or len(server.sent) == 3)
        return server

    async def check_books(self) -> None:
        """Nothing of any call is left."""
        await eventually(lambda: not self.chain.deadlines.watched)
        assert (self.chain.budget.used_bytes, self.chain.arrivals.count()) == (0, 0)


def value_of(server: EnvoyLike) -> tuple[float, ...]:
    answer = oip_pb.ModelInferResponse.FromString(server.sent[1]["body"][5:])
    data = answer.raw_output_contents[0]
    return struct.unpack(f"<{len(data) // 8}d", data)


def has_task() -> bool:
    return any(task.get_name() in {"call", "retry"} for task in asyncio.all_tasks())


@asynccontextmanager
async def opened(replicas: int = 1, **overrides: object) -> AsyncIterator[tuple[World, Door]]:
    async with World(replicas=replicas) as world:
        world.overrides |= overrides
        await world.start_router()
        await eventually(lambda: all(replica.streams == len(STANDARD_READY) for replica in world.replicas))
        door = Door(world)
        await door.know()
        sweeping = asyncio.ensure_future(Sweeper(door.chain.deadlines).run())
        for replica in world.replicas:
            replica.items.clear()
        yield world, door
        await door.check_books()
        sweeping.cancel()


async def all_right(door: Door, first: int, count: int) -> None:
    servers = [door.ask(a, 1 + a % 3) for a in range(first, first + count)]
    for a, server in enumerate(servers, first):
        assert value_of(await door.answered(server)) == (a * 1000 + 0.5,) * (1 + a % 3)


async def test_a_call_waits_for_its_answer_without_a_task() -> None:
    async with opened() as (world, door):
        world.replica.hold = asyncio.Event()
        servers = [door.ask(a) for a in range(50)]
        await eventually(lambda: len(world.replica.items) == 50)
        assert not has_task()
        world.replica.hold.set()
        for a, server in enumerate(servers):
            assert value_of(await door.answered(server)) == (a * 1000 + 0.5,)
            answer = oip_pb.ModelInferResponse.FromString(server.sent[1]["body"][5:])
            assert (answer.id, answer.model_name, answer.parameters["served_by"].string_param != "") == (
                f"id-{a}", PAIR, True,
            )  # fmt: skip
        answered = world.metric("interlock_router_requests_total", method=PATH[1:], code="OK")
        assert answered == 50 + len(ROWS)


async def test_thousands_of_calls_whose_callers_go_never_mix_answers_up() -> None:
    async with opened() as (world, door):
        world.replica.delay_s = 0.002
        chance = random.Random(7)

        async def one(a: int) -> str:
            await asyncio.sleep(chance.random() * 0.5)
            server = door.ask(a, 1 + a % 3)
            if a % 2:
                await asyncio.sleep(chance.random() * 0.05)
                server.gone = True
            await eventually(lambda: len(server.sent) == 3 or server.gone)
            if not server.sent:
                return "gone"
            assert value_of(server) == (a * 1000 + 0.5,) * (1 + a % 3)
            return "answered"

        outcomes = await asyncio.gather(*(one(a) for a in range(1000)))
        assert outcomes.count("answered") >= 500
        world.replica.delay_s = 0
        await all_right(door, 5000, 30)


async def test_a_worker_that_died_costs_one_more_try() -> None:
    async with opened() as (world, door):
        world.replica.refuse = lambda item: (
            status_of(grpc.StatusCode.UNAVAILABLE, "WORKER_DIED") if item.attempt == 1 else None
        )
        assert value_of(await door.answered(door.ask(3))) == (3000.5,)
        assert [item.attempt for item in world.replica.items] == [1, 2]
        assert world.metric("interlock_router_inference_retries_total") == 1


@pytest.mark.parametrize(
    ("code", "reason", "status", "items"),
    [
        (grpc.StatusCode.UNAVAILABLE, "WORKER_DIED", b"14", 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", b"8", 1),
    ],
)
async def test_what_inference_refuses_reaches_the_caller(
    code: grpc.StatusCode, reason: str, status: bytes, items: int
) -> None:
    async with opened() as (world, door):
        world.replica.refuse = lambda _: status_of(code, reason)
        server = await door.answered(door.ask(1))
        assert (server.header(b"grpc-status"), len(world.replica.items)) == (status, items)


async def test_a_broken_stream_loses_no_call() -> None:
    async with opened() as (world, door):
        world.replica.delay_s = 0.005
        world.replica.break_after_items = 20
        await all_right(door, 1, 100)


async def test_a_frozen_replica_costs_no_call() -> None:
    async with opened(3, attempt_timeout_s=0.1) as (world, door):
        frozen = world.replicas[0]
        frozen.silent, frozen.hold = True, asyncio.Event()
        for first in range(0, 200, 20):
            await all_right(door, first, 20)
        assert world.metric("interlock_router_inference_retries_total") > 0
        frozen.silent = False
        frozen.hold.set()
        await all_right(door, 200, 50)


async def test_the_deadline_ends_a_call_and_takes_it_back() -> None:
    async with opened() as (world, door):
        world.replica.hold = asyncio.Event()
        server = await door.answered(door.ask(1, timeout="100m"))
        assert server.header(b"grpc-status") == b"4"
        await eventually(lambda: len(world.replica.cancelled) == 1)
        world.replica.hold.set()
        await all_right(door, 2, 3)


async def test_without_a_replica_a_call_hears_so() -> None:
    async with opened() as (world, door):
        world.replica.set_ready([])
        await eventually(lambda: world.replica.streams == 0)
        server = await door.answered(door.ask(1, timeout="1S"))
        assert server.header(b"grpc-status") == b"14"
        assert b"replica" in (server.header(b"grpc-message") or b"")
