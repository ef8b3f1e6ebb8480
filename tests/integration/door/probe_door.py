"""What Envoy imports in the suite: the probe service behind the ASGI door."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.door_asgi import AsgiDoor
from services.common.door_lifespan import DoorApp
from services.common.door_sweeper import Sweeper
from services.common.tasks import spawn
from tests.integration.door.probe_service import open_service


@asynccontextmanager
async def open_door() -> AsyncIterator[AsgiDoor]:
    async with open_service([f"unix:{os.environ['INTERLOCK_DOOR_SOCKET']}"]) as (chain, methods):
        sweeper = Sweeper()
        sweeping = spawn(sweeper.run(), "sweeper")
        try:
            yield AsgiDoor(chain, methods, sweeper)
        finally:
            sweeping.cancel()


app = DoorApp(open_door)
