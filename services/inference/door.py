"""Inference as Envoy imports it: ModelInfer inside the edge, for those who call this service directly.

`app` is the replica. `front` is a further process on its port, without an engine: it hands ModelInfer to the replica's
process; its Envoy sends everything else there by itself.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

from inference import grpc_service_pb2 as oip

from services.common.call import Binding, Call, raw
from services.common.door_lifespan import asgi_app
from services.common.health import WHOLE_SERVER
from services.common.server import Runtime
from services.common.unimplemented import unimplemented_bindings
from services.inference.adapters.engine_link import EngineLink
from services.inference.app import HOT_METHODS, OIP, SERVICE, Settings, build


@asynccontextmanager
async def build_front(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Sequence[Binding]]:
    """Wait for the replica's process, and give the binding that hands calls to it."""

    def tell(connected: bool) -> None:
        runtime.health.set(WHOLE_SERVER, serving=connected)

    assert runtime.launched is not None, "a front end is started by its launcher"
    link = EngineLink(runtime.launched.engine_socket, settings.message_limit_bytes, tell)
    async with runtime.in_background(link.run(), "engine-link"):
        await link.connected.wait()
        yield [Binding(OIP, _relayed(link), hot=HOT_METHODS)]


def _relayed(link: EngineLink) -> object:
    """Return a servicer whose hot methods are relayed; nobody asks it for another."""

    @raw
    async def infer(request: bytes, call: Call) -> bytes:
        return await link.ask(request, call)

    (refusing,) = (each.servicer for each in unimplemented_bindings(oip.DESCRIPTOR) if each.service == OIP)
    return SimpleNamespace(**vars(refusing) | dict.fromkeys(HOT_METHODS, infer))


app = asgi_app(SERVICE, Settings, build)
front = asgi_app(SERVICE, Settings, build_front)
