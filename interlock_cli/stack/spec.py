"""What a stack consists of: one description per service, no process yet."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

# Asks a service whether it serves; False, or OSError, means not yet.
ReadyProbe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port that a service will bind, and the setting that moves it."""

    number: int
    purpose: str
    setting: str = "INTERLOCK_PORT_OFFSET"


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """How one service is started and known."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """Additions to ours."""
    address: str
    """Where it is reached, for people."""
    ports: tuple[Port, ...] = ()
    probe: ReadyProbe | None = None
    """How readiness is asked for; None: the process tells by itself, with sd_notify."""
    life: ReadyProbe | None = None
    """How it is asked whether it still answers anybody; False, OSError or silence is no. None: nobody asks."""
    shares_port: bool = True
    """Whether a second process may start beside the first and take over from it."""


@dataclass(frozen=True, slots=True)
class StackPlan:
    """What starts when, and what stops when."""

    start_waves: tuple[tuple[ServiceSpec, ...], ...]
    """Those of one wave start together, once the wave before is ready."""
    drain_order: tuple[str, ...] = field(default=())

    @property
    def services(self) -> tuple[ServiceSpec, ...]:
        """Every service, in the order of the drain: the edge first, as people read it."""
        known = {spec.name: spec for wave in self.start_waves for spec in wave}
        return tuple(known[name] for name in self.drain_order)

    @property
    def ports(self) -> tuple[tuple[str, Port], ...]:
        """Every port, with the service that will bind it."""
        return tuple((spec.name, port) for spec in self.services for port in spec.ports)
