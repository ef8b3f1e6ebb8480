"""Settings that every service shares; a service subclasses `CommonSettings` and adds its own fields.

Each field is read from the environment as INTERLOCK_<FIELD>. Nothing else reads the environment.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

PORTS: Final[Mapping[str, int]] = {
    "edge": 8080,
    "router": 9001,
    "inference": 9002,
    "features": 9003,
    "registry": 9004,
    "monitor": 9005,
}
METRICS_PORT_STEP: Final = 100

_METADATA_KEY: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)
_RESERVED_KEYS: Final = ("x-interlock-", "grpc-")

SettingsT = TypeVar("SettingsT", bound="CommonSettings")


class InvalidSettings(Exception):
    """The environment does not make valid settings; the text names each variable, what it wants and what it got."""


def join_host_port(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _only_loopback(host: str) -> str:
    if host == "localhost":
        return host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            "want a loopback address such as 127.0.0.1: without an identity source every caller is the principal "
            "local, so nobody else may reach the ports"
        )
    return host


def _metadata_key(key: str) -> str:
    if key and (not _METADATA_KEY.fullmatch(key) or key.startswith(_RESERVED_KEYS) or key.endswith("-bin")):
        raise ValueError(
            "want lower-case letters, digits, - and _, a letter first, nothing that begins with x-interlock- (the edge takes "
            "those out) or grpc-, or ends with -bin"
        )
    return key


def _peer(service: str) -> Any:
    def address(known: dict[str, Any]) -> str:
        return join_host_port(known["bind_host"], PORTS[service] + known["port_offset"])

    return Field(default_factory=address)


class CommonSettings(BaseSettings):
    """What every service reads; frozen, so that a setting never changes under a running process."""

    model_config = SettingsConfigDict(
        env_prefix="INTERLOCK_", frozen=True, extra="ignore", use_attribute_docstrings=True, env_ignore_empty=True
    )

    state_dir: Path = Path(".interlock")
    """Folder of everything this machine keeps: sockets, caches, snapshots, databases."""
    bind_host: Annotated[str, AfterValidator(_only_loopback)] = "127.0.0.1"
    """Address that all listeners bind. Only loopback while there is no identity source."""
    port_offset: Annotated[int, Field(ge=0, le=56_000)] = 0
    """Added to every port, so that two stacks can live on one machine. 0 to 56,000."""
    door: Literal["envoy", "grpcio"] = "grpcio"
    """How calls come in: through Python inside Envoy for the hot methods, or through grpcio for all."""
    replace: bool = False
    """Start beside a process that holds the same port, to take over from it."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto` is console on a terminal, else JSON, one object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    otlp_endpoint: str = ""
    """OTLP gRPC endpoint for traces, for example http://127.0.0.1:4317. Empty: no tracing."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of traces that begin here which are recorded, 0 to 1; a caller's decision goes before."""

    message_limit_bytes: PositiveInt = 32 * 1024 * 1024
    """Largest message, request or answer, on every door. Bytes."""
    bytes_in_flight_limit: PositiveInt = 256 * 1024 * 1024
    """Bytes of requests that one process answers at a time; more is refused."""
    stream_limit_bytes: PositiveInt = 1024 * 1024
    """Bytes that one stream of predictions may hold, requests in hand and answers that nobody reads; then nothing more is
    read from it. A single message may be larger."""
    stream_stall_s: PositiveFloat = 30.0
    """A stream ends when its caller has made no room for the next answer for so long. Seconds."""
    default_deadline_s: PositiveFloat = 5.0
    """Deadline of a unary call, or of a message of a stream, that names none. Seconds."""
    deadline_cap_s: PositiveFloat = 60.0
    """Longest deadline of a unary call, or of a message of a stream; a longer one is cut. Seconds."""
    criticality_header: Annotated[str, AfterValidator(_metadata_key)] = ""
    """Metadata key, such as x-criticality, by which callers of router and inference may say `critical`, `default` or
    `sheddable`: what is refused last and first under overload. Empty: all calls are `default`, since nothing tells yet who
    may call himself critical."""
    max_connection_age_s: Annotated[float, Field(ge=0)] = 0.0
    """Age after which a client is asked to reconnect. Seconds; 0 is never. For public ports only."""

    clock_tolerance_s: Annotated[float, Field(ge=0)] = 60.0
    """How far ahead of this machine's clock an event time or an as-of time may lie. Seconds; more for replays."""

    drain_delay_s: Annotated[float, Field(ge=0)] = 0.5
    """From NOT_SERVING to refusing calls, so that load balancers notice. Seconds; 3 to 5 under Kubernetes."""
    drain_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """What calls in flight get to finish once new ones are refused. Seconds."""

    registry_address: str = _peer("registry")
    """gRPC address of the registry. Default: this machine's."""
    features_address: str = _peer("features")
    """gRPC address of the features service. Default: this machine's."""
    monitor_address: str = _peer("monitor")
    """gRPC address of the monitor. Default: this machine's."""

    @property
    def processes(self) -> int:
        """Processes of the service that share its port; router and inference have a setting for it."""
        return 1

    def port_of(self, service: str) -> int:
        """Return the gRPC port of a service, or the edge's, with the offset."""
        return PORTS[service] + self.port_offset

    def metrics_port_of(self, service: str) -> int:
        """Return the port of a service's /metrics and /health."""
        return self.port_of(service) + METRICS_PORT_STEP

    def address_of(self, service: str) -> str:
        """Return the `host:port` that a service's gRPC port is bound to."""
        return join_host_port(self.bind_host, self.port_of(service))


class LaunchedSettings(CommonSettings):
    """What a process is told by its launcher."""

    process: int | None = None
    """Number of this process among those that share the service's port, from 0; none for the only one."""
    probe_socket: str = ""
    """Path of the Unix socket for metrics and health, where the launcher has the port and answers for all processes."""
    drain_fd: int | None = None
    """Pipe whose end says that the drain begins."""
    engine_socket: str = ""
    """Path of the Unix socket where the process that has the engine takes the calls of the others."""


def read_settings(kind: type[SettingsT]) -> SettingsT:
    """Return the settings of the environment; raises InvalidSettings with one readable line."""
    try:
        return kind()
    except ValidationError as error:
        raise InvalidSettings("; ".join(_complaints(error))) from None
    except SettingsError as error:
        # Text that is no JSON; it may hold a secret, so it is not shown.
        raise InvalidSettings(f"{error}: want JSON") from None


def child_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: this process's own, without what belongs to it alone."""
    return {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"} | dict(additions)


def read_notify_socket() -> str:
    """Return the address of the supervisor's sd_notify socket, or an empty string when nobody waits for us."""
    return os.environ.get("NOTIFY_SOCKET", "")


def _complaints(error: ValidationError) -> list[str]:
    # A default that builds on a broken field fails with it; the broken field says enough.
    wrong = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
    return [f"INTERLOCK_{_place(e['loc'])}{_got(e)}: {e['msg']}" for e in wrong]


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join([str(loc[0]).upper(), *map(str, loc[1:])])


def _got(error: Any) -> str:
    # What lies deeper in a setting may be a secret.
    return f"={error['input']!r}" if len(error["loc"]) == 1 and isinstance(error["input"], str) else ""
