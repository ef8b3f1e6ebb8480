"""What the Envoy template needs to know, and the rendering of it."""

import importlib.util
import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from jinja2 import Environment, StrictUndefined

from services.common.edge.local_replies import local_replies
from services.common.edge.routes import PublicArea, Route, route_table
from services.common.http_rules import rules_of_set

_MIB: Final = 1 << 20
# A REST body travels as one field of a gRPC message, whose other fields and framing need room under the same limit.
_ENVELOPE_BYTES: Final = 8192
# Envoy's own timers are the backstop: the service answers first, with its own words.
_BACKSTOP_S: Final = 1.0
LOOPBACK_ORIGINS: Final = ("http://localhost:*", "http://127.0.0.1:*")


@dataclass(frozen=True, slots=True)
class Upstream:
    """One cluster: a name and where it is, `unix:/path` or `host:port`."""

    name: str
    address: str

    @property
    def pipe(self) -> str:
        """The path of the Unix socket, empty for a network address."""
        return self.address.removeprefix("unix:") if self.address.startswith("unix:") else ""

    @property
    def host(self) -> str:
        """The host of a network address, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of a network address."""
        return int(self.address.rpartition(":")[2])

    @property
    def discovery(self) -> str:
        """STATIC for a socket or an IP address, STRICT_DNS for a name that may have several replicas behind it."""
        if self.pipe:
            return "STATIC"
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return "STRICT_DNS"
        return "STATIC"


@dataclass(frozen=True, slots=True)
class Area:
    """One service behind the edge: where it is and which of its gRPC services are public."""

    upstream: Upstream
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Door:
    """Python inside Envoy: the ASGI application and the full names of the methods that it answers."""

    app: str
    """`module:attribute`."""
    hot: frozenset[str]


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """Everything that differs between two edges. Times in seconds, sizes in bytes."""

    areas: tuple[Area, ...]
    """The first one is the default: the router."""
    descriptor_path: Path
    admin_socket: Path
    door: Door | None = None
    bind_host: str = "127.0.0.1"
    port: int = 8080
    max_message_bytes: int = 32 * _MIB
    unary_cap_s: float = 60.0
    stream_idle_s: float = 300.0
    connection_idle_s: float = 600.0
    max_connection_age_s: float = 0.0
    """0: connections live as long as their clients want."""
    max_connections: int = 10_000
    max_streams_per_connection: int = 1024
    max_heap_bytes: int = 0
    """0: no overload actions by heap size."""
    drain_time_s: int = 2
    origins: tuple[str, ...] = LOOPBACK_ORIGINS
    """Browser origins that may call, `*` matches any run of characters."""
    refuse_foreign_origins: bool = True
    """The dev profile: no credentials protect the port, so a web page of somebody else must not reach it."""

    @property
    def descriptors(self) -> FileDescriptorSet:
        """The descriptor set that the transcoder loads."""
        return FileDescriptorSet.FromString(self.descriptor_path.read_bytes())


def render(config: EdgeConfig) -> str:
    """Return Envoy's bootstrap as YAML."""
    descriptors = config.descriptors
    max_rest_bytes = config.max_message_bytes - _ENVELOPE_BYTES
    template = _environment().from_string(files(__package__).joinpath("envoy.yaml.j2").read_text("utf-8"))
    return template.render(
        config=config,
        routes=routes_of(config, descriptors),
        transcoded=transcoded_services(config, descriptors),
        upstreams=[area.upstream for area in config.areas],
        door_filter=_door_filter(config.door),
        origin_regex=origin_regex(config.origins),
        local_replies=local_replies(max_rest_bytes),
        cap_s=duration(config.unary_cap_s + _BACKSTOP_S),
        unary_idle_s=duration(config.unary_cap_s + 2 * _BACKSTOP_S),
        stream_idle_s=duration(config.stream_idle_s),
        connection_idle_s=duration(config.connection_idle_s),
        max_connection_age_s=duration(config.max_connection_age_s),
        max_rest_bytes=max_rest_bytes,
    )


def routes_of(config: EdgeConfig, descriptors: FileDescriptorSet) -> tuple[Route, ...]:
    """Return the route table of this edge."""
    areas = [PublicArea(area.upstream.name, area.services) for area in config.areas]
    return route_table(descriptors, areas, config.door.hot if config.door else frozenset())


def transcoded_services(config: EdgeConfig, descriptors: FileDescriptorSet) -> list[str]:
    """Return the public services that have a REST path, in the order of the areas."""
    annotated = {rule.service for rule in rules_of_set(descriptors)}
    return [name for area in config.areas for name in area.services if name in annotated]


def origin_regex(origins: Sequence[str]) -> str:
    """Return one RE2 expression for the allow list; it matches nothing when the list is empty."""
    return "|".join(re.escape(origin).replace(r"\*", "[^/]*") for origin in origins) or "[^\\s\\S]"


def duration(seconds: float) -> str:
    """Return a protobuf Duration as YAML wants it."""
    return f"{seconds:.3f}s"


def _door_filter(door: Door | None) -> dict[str, str] | None:
    if door is None:
        return None
    spec = importlib.util.find_spec("pyvoy._pyvoy")
    if spec is None or spec.origin is None:
        raise RuntimeError("door = envoy needs the package pyvoy: install it, or set door = grpcio")
    value = {"app": door.app, "interface": "asgi", "lifespan": True, "loop": "uvloop", "worker_threads": 1}
    return {"filename": spec.origin, "value": json.dumps(value)}


def _environment() -> Environment:
    # YAML, not HTML: values are quoted by tojson where they stand.
    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)  # noqa: S701
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(value: Any) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value)
