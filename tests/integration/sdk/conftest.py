"""A public API to call, and a client of it."""

from collections.abc import AsyncIterator

import pytest_asyncio

from interlock_sdk.client import Client, connect
from tests.fakes.public_api import FakePublicApi


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakePublicApi]:
    async with FakePublicApi.serve() as api:
        yield api


@pytest_asyncio.fixture
async def client(api: FakePublicApi) -> AsyncIterator[Client]:
    async with connect(api.target) as client:
        yield client
