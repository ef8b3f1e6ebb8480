"""Settings of the edge, and the one place that touches the environment of a child or of the process inside Envoy."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, PositiveFloat, PositiveInt

from services.common.edge.config import LOOPBACK_ORIGINS
from services.common.settings import CommonSettings, LaunchedSettings

# Standard input of an Envoy; that it ends tells the Python inside to drain.
DRAIN_FD: Final = 0
# What belongs to one process and must not leak into its children.
_PRIVATE = frozenset({"NOTIFY_SOCKET", "LD_PRELOAD", "PYTHONHOME", "PYTHONPATH"})


class EdgeSettings(CommonSettings):
    """What the edge reads beside the common settings; the router reads the same when Python runs inside it."""

    edge_descriptor_path: Path | None = None
    """Descriptor set of the contract. Default: the one that is installed with the stubs."""
    edge_router_address: str = ""
    """gRPC address of the router that a plain edge stands in front of. Default: this machine's."""
    edge_services: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Public gRPC services by area, in place of those that the contract annotates with REST paths; JSON."""
    edge_origins: tuple[str, ...] = LOOPBACK_ORIGINS
    """Browser origins that may call; `*` matches any run of characters; JSON."""
    edge_stream_idle_s: PositiveFloat = 300.0
    """A stream that carries nothing for this long is closed. Seconds."""
    edge_connection_idle_s: PositiveFloat = 600.0
    """A connection without calls is closed after this. Seconds."""
    edge_max_connections: PositiveInt = 10_000
    """Connections beyond these are refused."""
    edge_max_streams: PositiveInt = 1024
    """Calls in flight on one connection."""
    edge_heap_limit_bytes: Annotated[int, Field(ge=0)] = 0
    """Heap that a plain edge may have: from 0.7 of it on, streams that hold most are ended, at 0.95 new calls are refused.
    Bytes; 0: any. With Python inside, its memory counts too."""
    edge_drain_time_s: PositiveInt = 2
    """From GOAWAY to the closed listener. Seconds."""
    edge_start_timeout_s: PositiveFloat = 60.0
    """Envoy, or the Python inside it, must answer this soon after the start. Seconds."""
    edge_probe_interval_s: PositiveFloat = 1.0
    """Between two questions to the Python inside; two without an answer restart it. Seconds."""
    edge_probe_timeout_s: PositiveFloat = 5.0
    """How long an answer to such a question may take; a busy machine must not look like a dead loop. Seconds."""


class DoorSettings(LaunchedSettings):
    """What the Python inside Envoy is told by its launcher: Envoy ends it when all is over, which is late to drain."""

    door_socket: str = ""
    """Path of the Unix socket for everything that is not hot."""


def door_environment(libpython: Path, additions: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an Envoy with Python inside: this interpreter, its packages, its settings."""
    return plain_environment() | {
        "LD_PRELOAD": str(libpython),
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry),
        # sys.executable inside is the first python3 on PATH: it must be this environment's.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **additions,
    }


def plain_environment() -> dict[str, str]:
    """Return the environment of a child without what is this process's own."""
    return {key: value for key, value in os.environ.items() if key not in _PRIVATE}


def forget_embedding() -> None:
    """Inside Envoy: remove what embedded Python here, so that children start as ordinary processes."""
    for name in ("LD_PRELOAD", "PYTHONHOME"):
        os.environ.pop(name, None)
