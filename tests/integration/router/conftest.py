"""The router with fake peers: one world per test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.fakes.router_world import World


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of the real process: its timers are not asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def idle_world() -> AsyncIterator[World]:
    """Peers that run, and no router yet."""
    async with World() as world:
        yield world


@pytest.fixture
async def world(idle_world: World) -> World:
    """Peers and a router that is ready."""
    await idle_world.start_router()
    return idle_world
