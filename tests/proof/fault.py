"""What is broken while the load runs. Each fault says whether requests may be refused meanwhile, and waits until all is whole."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from interlock.router.v1.router_service_pb2 import PredictRequest
from interlock.router.v1.router_service_pb2_grpc import RouterServiceStub

from services.common.channels import open_channel
from tests.proof.fleet import Fleet, Service
from tests.proof.history import OK, FaultBegan, FaultEnded
from tests.proof.large import send_everywhere
from tests.proof.load import MODEL, Load
from tests.proof.oracle import COLUMNS
from tests.proof.processes import standing_still

Fault = Callable[[Fleet, Load], Awaitable[None]]

CLOCK_JUMP: Final = "clock-jump"
_LONGEST_S: Final = 90.0
# Answers without a refusal after which what was broken counts as whole.
_QUIET_COUNT: Final = 100
# Answers that come while a process stands still. What was asked of it is open meanwhile, or refused.
_FROZEN_COUNT: Final = 200
_CLOCK_JUMPS_S: Final = (300.0, -300.0, 86_400.0, -86_400.0, 0.0)
_JUMP_LASTS_S: Final = 3.0
_CLOCK_SLACK_S: Final = 60.0
# A grpcio server that stops answers CANCELLED for calls that it has not handed over yet (grpc/grpc#41785): they never
# began and may be sent again. The edge does so, but not for ever. Our own code answers nobody like that.
_NEVER_BEGUN: Final = "CANCELLED"


async def kill_worker(fleet: Fleet, load: Load) -> None:
    """A model process dies with requests inside."""
    replica = _next(fleet.replicas, load)
    victim = replica.workers()[0]
    async with _window(fleet, load, "worker killed"):
        victim.kill()
        await _until(lambda: victim.pid not in {one.pid for one in replica.workers()})


async def freeze_worker(fleet: Fleet, load: Load) -> None:
    """A model process stands still, and goes on if nobody has replaced it by then."""
    replica = _next(fleet.replicas, load)
    victim = replica.workers()[-1]
    async with _window(fleet, load, "worker frozen"):
        with standing_still([victim]):
            load.clear()
            await _until(lambda: load.ended_since >= _FROZEN_COUNT or not victim.is_running())


async def freeze_replica(fleet: Fleet, load: Load) -> None:
    """A whole replica stands still, model processes and all."""
    replica = _next(fleet.replicas, load)
    frozen = replica.processes()
    async with _window(fleet, load, "replica frozen"):
        with standing_still(frozen):
            load.clear()
            await _until(lambda: load.ended_since >= _FROZEN_COUNT)


async def reload_version(fleet: Fleet, load: Load) -> None:
    """Version 2 is taken from the traffic, unloaded, loaded again, and given its traffic back: nobody may notice."""
    load.pinned = ("1",)
    await fleet.split(10_000, 0)
    await _until_unused("2", load)
    await fleet.undeploy("2")
    await fleet.deploy("2")
    await fleet.until_whole()
    await fleet.split(5_000, 5_000)
    load.pinned = ("1", "2")
    await _until_answers(load, _QUIET_COUNT)


async def restart_router(fleet: Fleet, load: Load) -> None:
    """A router is replaced: nobody may notice, but for calls that a grpcio server never began."""
    async with _window(fleet, load, "router restarting", allows=_NEVER_BEGUN):
        await _next(fleet.routers, load).restart()


async def restart_replica(fleet: Fleet, load: Load) -> None:
    """A replica of inference is replaced: nobody may notice, but for calls that a grpcio server never began."""
    async with _window(fleet, load, "replica restarting", allows=_NEVER_BEGUN):
        await _next(fleet.replicas, load).restart()


async def send_large_tensors(fleet: Fleet, load: Load) -> None:
    """20 MB through every door, half sent and then half answered while every surface answers others."""
    await send_everywhere(fleet, lambda: _until_answers(load, 1))


async def move_clock(fleet: Fleet, load: Load) -> None:
    """The time of day of one service jumps by minutes and by a day, there and back: nobody may notice."""
    load.turn += 1
    clocks = [(service, service.clock) for service in fleet.services if service.clock is not None]
    service, clock = clocks[load.turn % len(clocks)]
    for ahead_s in _CLOCK_JUMPS_S:
        clock.move(ahead_s)
        # Longer than anything that is done regularly.
        await asyncio.sleep(_JUMP_LASTS_S)
        if service in fleet.routers:
            # The time is in the prediction's id.
            told_s = await _time_told(fleet, service)
            assert abs(told_s - time.time() - ahead_s) < _CLOCK_SLACK_S, f"{service.name} did not follow its clock"
        await _until_answers(load, _QUIET_COUNT)


async def _time_told(fleet: Fleet, router: Service) -> float:
    edge = next(edge for edge in fleet.edges if edge.offset == router.offset)
    request = PredictRequest(model=MODEL)
    for name in COLUMNS:
        request.features[name].int64_value = 0
    async with open_channel(edge.address) as channel:
        answer = await RouterServiceStub(channel).Predict(request, timeout=10, wait_for_ready=True)
    return int(UUID(answer.prediction.prediction_id).hex[:12], 16) / 1_000


FAULTS: Final[dict[str, Fault]] = {
    "worker-kill": kill_worker,
    "worker-freeze": freeze_worker,
    "replica-freeze": freeze_replica,
    "reload": reload_version,
    "router-restart": restart_router,
    "replica-restart": restart_replica,
    "large-tensors": send_large_tensors,
    CLOCK_JUMP: move_clock,
}
"""All but the last one need nothing besides the suite."""


@asynccontextmanager
async def _window(fleet: Fleet, load: Load, name: str, allows: str = "UNAVAILABLE") -> AsyncIterator[None]:
    """Tell the judge that something is broken, until all is whole and nothing has been refused for a while."""
    load.tell(FaultBegan(load.now(), name, allows))
    yield
    await fleet.until_whole()
    await _until_answers(load, _QUIET_COUNT, without=allows)
    load.tell(FaultEnded(load.now(), name))


async def _until_answers(load: Load, count: int, *, without: str = "") -> None:
    """Return when so many requests in a row have been answered OK, by surface too, with none refused in this way."""
    async with asyncio.timeout(_LONGEST_S):
        load.clear()
        while load.since[OK] < count or not all(load.since[f"{surface.name} {OK}"] for surface in load.surfaces):
            await asyncio.sleep(0.02)
            if without and load.since[without]:
                load.clear()


async def _until_unused(version: str, load: Load) -> None:
    """Return when no answer comes from a version any more and none of its requests is open."""
    async with asyncio.timeout(_LONGEST_S):
        load.clear()
        while load.since[OK] < _QUIET_COUNT or not all(load.since[f"{one.name} {OK}"] for one in load.surfaces):
            await asyncio.sleep(0.02)
            if load.since[f"version {version}"]:
                load.clear()
        await _until(lambda: load.judge.oldest_open_at() >= load.cleared_at)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_LONGEST_S):
        while not condition():
            await asyncio.sleep(0.02)


def _next(services: list[Service], load: Load) -> Service:
    """Return each service in turn."""
    load.turn += 1
    return services[load.turn % len(services)]
