"""The router with fake peers: one world per test."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.router_world import World


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
