"""The router as Envoy imports it: the hot methods of the same handlers, inside the edge."""

from services.common.door_lifespan import asgi_app
from services.router.app import build
from services.router.settings import Settings

app = asgi_app("router", Settings, build)
