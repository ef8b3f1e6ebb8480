"""Starts and stops a whole service as an ASGI application's lifespan, and sends its requests to the door."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import structlog

from services.common.door_asgi import AsgiDoor, Scope, Send
from services.common.door_sweeper import Receive

OpenDoor = Callable[[], AbstractAsyncContextManager[AsgiDoor]]


class DoorApp:
    """The ASGI application: a service that is open exactly while the lifespan lasts."""

    def __init__(self, open_door: OpenDoor) -> None:
        self._open_door = open_door
        self._door: AsgiDoor | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http" and self._door is not None:
            await self._door.answer(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        phase = "startup"
        try:
            async with self._open_door() as self._door:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                phase = "shutdown"
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the server must hear of it and end
            structlog.get_logger("door").error("service_failed", phase=phase, exc_info=error)
            await send({"type": f"lifespan.{phase}.failed", "message": "the service failed; its log says why"})
            return
        await send({"type": "lifespan.shutdown.complete"})
