"""Starts and stops a whole service as an ASGI application's lifespan, and sends its requests to the door."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final

import structlog

from services.common.deadlines import Deadlines, Receive
from services.common.door_asgi import AsgiDoor, Scope, Send
from services.common.door_sweeper import Sweeper
from services.common.edge.settings import DoorSettings, forget_embedding
from services.common.logs import configure_logs
from services.common.server import Build, call_at_end, serving, settle_collections
from services.common.settings import SettingsT, read_settings
from services.common.tasks import spawn

OpenDoor = Callable[[], AbstractAsyncContextManager[AsgiDoor]]


class DoorApp:
    """The ASGI application: a service that is open exactly while the lifespan lasts.

    Most calls of the hot methods need no task; the server's loop is told so by `_task_of`.
    """

    _asgi_single_callable = True

    def __init__(self, open_door: OpenDoor) -> None:
        self._open_door = open_door
        self._door: AsgiDoor | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "lifespan":
            return self._lifespan(receive, send)
        if scope["type"] == "http" and self._door is not None:
            return self._door.begin(scope, receive, send) or NO_TASK
        return NO_TASK

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        asyncio.get_running_loop().set_task_factory(_task_of)
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


class _NoTask:
    """What stands where the server wants the task of a call that has none."""

    def add_done_callback(self, callback: object, **options: object) -> None:
        """Do nothing: it never ends."""


NO_TASK: Final = _NoTask()
"""What an application returns for a call that it answers by callbacks alone."""


def _task_of(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
    return work if work is NO_TASK else asyncio.Task(work, loop=loop, **options)


def asgi_app(name: str, kind: type[SettingsT], build: Build[SettingsT]) -> DoorApp:
    """Return service `name` as the application that Envoy imports.

    Its lifespan runs the whole service: everything that is not hot on the Unix socket that the launcher named.
    """

    @asynccontextmanager
    async def open_door() -> AsyncIterator[AsgiDoor]:
        forget_embedding()
        settings = read_settings(kind)
        launched = read_settings(DoorSettings)
        configure_logs(name, form=settings.log_format, level=settings.log_level, process=launched.process)
        addresses = [f"unix:{launched.door_socket}"]
        async with serving(name, settings, build, addresses, launched) as service:
            runtime = service.runtime
            settle_collections()
            async with _sweeping(runtime.chain.deadlines):
                with _told_to_drain(launched.drain_fd, runtime.drain):
                    yield AsgiDoor(runtime.chain, service.methods)
            gc.unfreeze()

    return DoorApp(open_door)


@contextmanager
def _told_to_drain(pipe: int | None, drain: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Drain as soon as the launcher closes its end of the pipe: it sees the signals, and nobody in here does."""
    if pipe is None:
        yield
        return
    call_at_end(pipe, lambda: spawn(drain(), "drain"))
    try:
        yield
    finally:
        asyncio.get_running_loop().remove_reader(pipe)


@asynccontextmanager
async def _sweeping(deadlines: Deadlines) -> AsyncIterator[None]:
    task = spawn(Sweeper(deadlines).run(), "door-sweeper")
    try:
        yield
    finally:
        task.cancel()
