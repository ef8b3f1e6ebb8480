"""What Envoy imports in the suite: the probe service behind the ASGI door."""

from services.common.door_lifespan import asgi_app
from tests.integration.door.probe_service import ProbeSettings, build

app = asgi_app("router", ProbeSettings, build)
