"""Inference as Envoy imports it: ModelInfer inside the edge, for those who call this service directly."""

from services.common.door_lifespan import asgi_app
from services.inference.app import SERVICE, Settings, build

app = asgi_app(SERVICE, Settings, build)
