"""Which processes a stack has, with this machine's settings."""

import asyncio
import sys
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from interlock_cli.settings import StackSettings
from interlock_cli.stack.redis import redis_spec
from interlock_cli.stack.spec import Port, ServiceSpec, StackPlan
from interlock_cli.stack.state_folder import StateFolder
from services.common.edge.installation import shared_libpython
from services.common.settings import join_host_port
from services.common.unix_http import exchange

DRAIN_ORDER: Final = ("edge", "router", "inference", "features", "registry", "monitor", "redis")


@dataclass(frozen=True, slots=True)
class Doors:
    """The doors that are used, and why the router's is not the one that was asked for."""

    router: str
    inference: str
    reason: str = ""


def choose_doors(settings: StackSettings) -> Doors:
    """Return the doors of this stack: without a shared libpython nothing can run inside Envoy."""
    if "envoy" in (settings.door, settings.inference_door) and shared_libpython() is None:
        return Doors(
            "grpcio", "grpcio", "this Python has no shared libpython, so the door is grpcio behind a plain Envoy"
        )
    return Doors(settings.door, settings.inference_door)


def make_plan(settings: StackSettings, folder: StateFolder, doors: Doors) -> StackPlan:
    """Return the plan; raises CommandFailed when a program that it needs is missing."""
    builder = _Builder(settings, folder)
    registry, monitor = builder.service("registry"), builder.service("monitor")
    features = builder.service("features")
    inference = builder.service("inference", door=doors.inference)
    front = _front(builder, doors)
    waves = ((redis_spec(settings, folder), registry), (monitor, features, inference), front)
    names = {spec.name for wave in waves for spec in wave}
    return StackPlan(waves, tuple(name for name in DRAIN_ORDER if name in names))


def edge_address(settings: StackSettings) -> str:
    """Return the `host:port` of the public port."""
    return settings.address_of("edge")


def _front(builder: "_Builder", doors: Doors) -> tuple[ServiceSpec, ...]:
    """With Python inside Envoy the router is the edge; else an Envoy of its own stands before it."""
    if doors.router == "envoy":
        return (builder.service("router", door="envoy", listens_as="edge"),)
    return builder.service("router"), builder.edge()


class _Builder:
    def __init__(self, settings: StackSettings, folder: StateFolder) -> None:
        self._settings = settings
        self._environment = {
            "INTERLOCK_STATE_DIR": str(folder.path),
            "INTERLOCK_PORT_OFFSET": str(settings.port_offset),
            "INTERLOCK_BIND_HOST": settings.bind_host,
            "INTERLOCK_CLOCK_TOLERANCE_S": str(settings.clock_tolerance_s),
        }

    def service(self, name: str, *, door: str = "grpcio", listens_as: str = "") -> ServiceSpec:
        listens_as = listens_as or name
        ports = (
            Port(self._settings.port_of(listens_as), "public REST and gRPC" if listens_as == "edge" else "gRPC"),
            Port(self._settings.metrics_port_of(name), "metrics and health"),
        )
        spec = self._spec(name, f"services.{name}", door, listens_as, ports)
        if door == "envoy":
            return spec  # the launcher of that Envoy looks after the Python inside
        host, port = self._settings.bind_host, self._settings.metrics_port_of(name)
        return replace(spec, life=lambda: _answers(host, port))

    def edge(self) -> ServiceSpec:
        port = Port(self._settings.port_of("edge"), "public REST and gRPC")
        return self._spec("edge", "services.common.edge", "grpcio", "edge", (port,))

    def _spec(self, name: str, module: str, door: str, listens_as: str, ports: tuple[Port, ...]) -> ServiceSpec:
        address = join_host_port(self._settings.bind_host, self._settings.port_of(listens_as))
        return ServiceSpec(
            name=name,
            command=(sys.executable, "-m", module),
            environment={**self._environment, "INTERLOCK_DOOR": door},
            address=f"http://{address}" if listens_as == "edge" else address,
            ports=ports,
        )


async def _answers(host: str, port: int) -> bool:
    """Return whether the event loop of a service answers."""
    status, _ = await exchange(*await asyncio.open_connection(host, port), "GET", "/health", f"{host}:{port}")
    return status == HTTPStatus.OK
