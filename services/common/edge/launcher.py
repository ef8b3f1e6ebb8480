"""The launcher: turns settings into one supervised Envoy, with Python inside (`launch`) or in front (`launch_plain`)."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.common.edge.areas import area_services, edge_areas
from services.common.edge.config import Area, Door, EdgeConfig, Upstream, render
from services.common.edge.installation import descriptor_path, shared_libpython
from services.common.edge.probe import HealthProbe
from services.common.edge.process import EnvoyProcess, Launch, Probe
from services.common.edge.settings import DRAIN_FD, EdgeSettings, door_environment, plain_environment
from services.common.run_folder import RunFolder, run_folder
from services.common.server import DoorUnavailable, check_ports_free
from services.common.settings import CommonSettings, join_host_port, read_settings
from services.common.several import CLOSE_S, supervise
from services.common.supervisor import Patience, Start

ROUTER: Final = "router"
Parts = tuple[EdgeConfig, Mapping[str, str], Probe | None]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one Envoy of a launcher keeps its sockets and its bootstrap."""

    folder: RunFolder
    process: int | None
    """Its number; None for the only one."""

    @property
    def door_socket(self) -> Path:
        return self.folder.of("door.sock", self.process)

    @property
    def admin_socket(self) -> Path:
        return self.folder.of("admin.sock", self.process)

    @property
    def probe_socket(self) -> Path:
        return self.folder.of("probes.sock", self.process)

    @property
    def engine_socket(self) -> Path:
        return self.folder.of("engine.sock", None)

    @property
    def first(self) -> "_Place":
        """The place of the first process."""
        return self if self.process is None else _Place(self.folder, 0)

    @property
    def bootstrap(self) -> Path:
        return self.folder.of("envoy.yaml", self.process)


def launch(name: str, service: CommonSettings, door_app: str, *, hot: frozenset[str], front_app: str = "") -> int:
    """Run service `name` inside Envoy until it is told to stop; returns the exit code of the launcher.

    `door_app` is the ASGI application (`module:attribute`), `hot` the full names of the methods that it answers
    itself. The router's Envoy is the edge: it takes the edge's port and routes to the other services too. Call it from
    the main thread. With several processes, each is such an Envoy on the same port; where `front_app` is given, only the
    first runs `door_app`, and the others hand to it what they accept: the hot methods by themselves, the rest by their
    Envoys. Raises `DoorUnavailable` before anything is started, `StartFailed` when another process holds the port.
    """
    # A service need not know the edge's settings; they come from the same environment.
    settings = service if isinstance(service, EdgeSettings) else read_settings(EdgeSettings)
    libpython = shared_libpython()
    if libpython is None:
        raise DoorUnavailable("this Python was built without a shared libpython, which Envoy needs to embed it")

    def parts(place: _Place) -> Parts:
        descriptors = _descriptors(settings)
        engine = place.first if front_app else place
        own = Area(Upstream(name, f"unix:{engine.door_socket}"), area_services(name, settings, descriptors, hot))
        areas = edge_areas(own, settings, descriptors) if name == ROUTER else (own,)
        door = Door(door_app if engine == place else front_app, hot)
        port = settings.port_of("edge" if name == ROUTER else name)
        config = edge_config(settings, areas, place.admin_socket, port, door)
        additions = {
            "INTERLOCK_DOOR": "envoy",
            "INTERLOCK_DOOR_SOCKET": str(place.door_socket),
            "INTERLOCK_DRAIN_FD": str(DRAIN_FD),
        }
        if place.process is not None:
            additions["INTERLOCK_PROCESS"] = str(place.process)
            additions["INTERLOCK_PROBE_SOCKET"] = str(place.probe_socket)
            if front_app:
                additions["INTERLOCK_ENGINE_SOCKET"] = str(place.engine_socket)
        probe = HealthProbe(str(place.door_socket), settings.edge_probe_timeout_s)
        return config, door_environment(libpython, additions), probe

    return _run(name, settings, service.processes, parts)


def launch_plain(settings: EdgeSettings) -> int:
    """Run a plain edge in front of a router that is complete by itself; returns the exit code."""

    def parts(place: _Place) -> Parts:
        descriptors = _descriptors(settings)
        address = settings.edge_router_address or settings.address_of(ROUTER)
        router = Area(Upstream(ROUTER, address), area_services(ROUTER, settings, descriptors))
        areas = edge_areas(router, settings, descriptors)
        config = edge_config(settings, areas, place.admin_socket, settings.port_of("edge"), None)
        return config, plain_environment(), None

    return _run("edge", settings, 1, parts)


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


def _run(name: str, settings: EdgeSettings, processes: int, parts: Callable[[_Place], Parts]) -> int:
    with run_folder(settings.state_dir, name) as folder:
        places = [_Place(folder, number) for number in range(processes)] if processes > 1 else [_Place(folder, None)]
        prepared = [(place, parts(place)) for place in places]
        config = prepared[0][1][0]
        if not settings.replace:
            ports = [config.port, *([settings.metrics_port_of(name)] if processes > 1 else [])]
            check_ports_free(join_host_port(config.bind_host, port) for port in ports)
        starts = [_start_of(*each, settings.edge_drain_time_s, processes) for each in prepared]
        patience = Patience(
            start_s=settings.edge_start_timeout_s,
            probe_interval_s=settings.edge_probe_interval_s,
            drain_longest_s=settings.deadline_cap_s,
            stop_grace_s=settings.drain_delay_s + settings.drain_grace_s + CLOSE_S,
        )
        sockets = [place.probe_socket for place in places if place.process is not None]
        return asyncio.run(supervise(name, settings, starts, patience, sockets))


def _start_of(place: _Place, parts: Parts, drain_time_s: int, processes: int) -> Start:
    config, environment, probe = parts
    place.bootstrap.write_text(render(config), "utf-8")
    how = Launch(place.bootstrap, place.admin_socket, environment, config.port, drain_time_s, processes)
    return lambda: EnvoyProcess.spawn(how, probe)


def _descriptors(settings: EdgeSettings) -> FileDescriptorSet:
    return FileDescriptorSet.FromString(descriptor_path(settings).read_bytes())
