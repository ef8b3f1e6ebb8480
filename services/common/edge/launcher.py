"""The launcher: turns settings into one supervised Envoy, with Python inside (`launch`) or in front (`launch_plain`)."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.common.edge.areas import area_services, edge_areas
from services.common.edge.config import Area, Door, EdgeConfig, Upstream, render
from services.common.edge.installation import descriptor_path, shared_libpython
from services.common.edge.probe import HealthProbe
from services.common.edge.process import DRAIN_FD, EnvoyProcess, Launch, Probe
from services.common.edge.settings import EdgeSettings, door_environment, plain_environment
from services.common.edge.supervisor import Patience, Supervisor
from services.common.notify import notify
from services.common.server import DoorUnavailable, check_ports_free
from services.common.settings import CommonSettings, join_host_port, read_notify_socket, read_settings

ROUTER: Final = "router"
# For the adapters of the service inside to close, once its calls are answered.
_CLOSE_S: Final = 5.0
# A Unix socket's path has room for 107 bytes; names of ours take the rest.
_LONGEST_FOLDER: Final = 70


@dataclass(frozen=True, slots=True)
class _RunFolder:
    """Where this launcher keeps its sockets and its bootstrap."""

    path: Path

    @property
    def door_socket(self) -> Path:
        return self.path / "door.sock"

    @property
    def admin_socket(self) -> Path:
        return self.path / "admin.sock"

    @property
    def bootstrap(self) -> Path:
        return self.path / "envoy.yaml"


def launch(name: str, service: CommonSettings, door_app: str, *, hot: frozenset[str]) -> int:
    """Run service `name` inside Envoy until it is told to stop; returns the exit code of the launcher.

    `door_app` is the ASGI application (`module:attribute`), `hot` the full names of the methods that it answers
    itself. The router's Envoy is the edge: it takes the edge's port and routes to the other services too. Call it from
    the main thread. Raises `DoorUnavailable` before anything is started,
    `StartFailed` when another process holds the port.
    """
    # A service need not know the edge's settings; they come from the same environment.
    settings = service if isinstance(service, EdgeSettings) else read_settings(EdgeSettings)
    libpython = shared_libpython()
    if libpython is None:
        raise DoorUnavailable("this Python was built without a shared libpython, which Envoy needs to embed it")

    def parts(folder: _RunFolder) -> tuple[EdgeConfig, dict[str, str], Probe]:
        descriptors = _descriptors(settings)
        own = Area(Upstream(name, f"unix:{folder.door_socket}"), area_services(name, settings, descriptors, hot))
        areas = edge_areas(own, settings, descriptors) if name == ROUTER else (own,)
        port = settings.port_of("edge" if name == ROUTER else name)
        config = edge_config(settings, areas, folder.admin_socket, port, Door(door_app, hot))
        additions = {
            "INTERLOCK_DOOR": "envoy",
            "INTERLOCK_DOOR_SOCKET": str(folder.door_socket),
            "INTERLOCK_DOOR_DRAIN_FD": str(DRAIN_FD),
        }
        probe = HealthProbe(str(folder.door_socket), settings.edge_probe_timeout_s)
        return config, door_environment(libpython, additions), probe

    return _run(name, settings, parts)


def launch_plain(settings: EdgeSettings) -> int:
    """Run a plain edge in front of a router that is complete by itself; returns the exit code."""

    def parts(folder: _RunFolder) -> tuple[EdgeConfig, dict[str, str], None]:
        descriptors = _descriptors(settings)
        address = settings.edge_router_address or settings.address_of(ROUTER)
        router = Area(Upstream(ROUTER, address), area_services(ROUTER, settings, descriptors))
        areas = edge_areas(router, settings, descriptors)
        config = edge_config(settings, areas, folder.admin_socket, settings.port_of("edge"), None)
        return config, plain_environment(), None

    return _run("edge", settings, parts)


def edge_config(
    settings: EdgeSettings, areas: tuple[Area, ...], admin_socket: Path, port: int, door: Door | None
) -> EdgeConfig:
    """Return what the template needs, from settings."""
    return EdgeConfig(
        areas=areas,
        descriptor_path=descriptor_path(settings),
        admin_socket=admin_socket,
        door=door,
        bind_host=settings.bind_host,
        port=port,
        max_message_bytes=settings.message_limit_bytes,
        unary_cap_s=settings.deadline_cap_s,
        stream_idle_s=settings.edge_stream_idle_s,
        connection_idle_s=settings.edge_connection_idle_s,
        max_connection_age_s=settings.max_connection_age_s,
        max_connections=settings.edge_max_connections,
        max_streams_per_connection=settings.edge_max_streams,
        max_heap_bytes=settings.edge_heap_limit_bytes,
        drain_time_s=settings.edge_drain_time_s,
        origins=settings.edge_origins,
    )


def _run(
    name: str, settings: EdgeSettings, parts: Callable[[_RunFolder], tuple[EdgeConfig, Mapping[str, str], Probe | None]]
) -> int:
    folder = _RunFolder(_make_folder(settings.state_dir.absolute() / "run", name))
    try:
        config, environment, probe = parts(folder)
        if not settings.replace:
            check_ports_free([join_host_port(config.bind_host, config.port)])
        folder.bootstrap.write_text(render(config), "utf-8")
        start = Launch(folder.bootstrap, folder.admin_socket, environment, config.port, settings.edge_drain_time_s)
        return asyncio.run(_supervise(settings, start, probe))
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


async def _supervise(settings: EdgeSettings, start: Launch, probe: Probe | None) -> int:
    patience = Patience(
        start_s=settings.edge_start_timeout_s,
        probe_interval_s=settings.edge_probe_interval_s,
        drain_longest_s=settings.deadline_cap_s,
        stop_grace_s=settings.drain_delay_s + settings.drain_grace_s + _CLOSE_S,
    )
    address = read_notify_socket()
    return await Supervisor(
        lambda: EnvoyProcess.spawn(start, probe), patience, lambda state: notify(address, state)
    ).run()


def _make_folder(parent: Path, name: str) -> Path:
    """Make this launcher's own folder: two of one name run side by side during a replacement."""
    path = parent / f"{name}-{os.getpid()}"
    if len(os.fsencode(path)) > _LONGEST_FOLDER:
        return Path(tempfile.mkdtemp(prefix="il-"))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _descriptors(settings: EdgeSettings) -> FileDescriptorSet:
    return FileDescriptorSet.FromString(descriptor_path(settings).read_bytes())
