"""Settings of the router; read from INTERLOCK_<FIELD>, like those that all services share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from services.common.names import parse_id
from services.common.settings import CommonSettings, join_host_port


def _environment(value: str) -> str:
    return parse_id(value, "environment")


class Settings(CommonSettings):
    """What the router reads beside the common settings."""

    door: Literal["envoy", "grpcio"] = "envoy"
    """How calls come in: through Python inside Envoy for the hot methods, or through grpcio for all."""
    environment: Annotated[str, AfterValidator(_environment)] = "production"
    """Environment whose routes this router serves."""
    pools: dict[str, list[str]] = Field(default_factory=dict)
    """gRPC addresses of the inference replicas of each pool, as JSON. Empty: this machine's one, as pool "default"."""
    gather_s: Annotated[float, Field(ge=0, le=0.1)] = 0.002
    """Longest wait of a request for others to leave with. Seconds; a lone request never waits."""
    replica_hope_s: Annotated[float, Field(ge=0, le=30)] = 5.0
    """Longest wait of a request for a version that was READY a moment ago, or whose replica is being dialled. Seconds."""
    attempt_timeout_s: Annotated[float, Field(ge=0.01, le=60)] = 0.25
    """Least time of a replica for an answer before another one is asked; more for versions that usually need more. Seconds."""
    hop: Literal["frames", "grpc"] = "frames"
    """How requests travel to inference: as frames where the replica offers them, or over gRPC everywhere."""
    features_timeout_s: Annotated[float, Field(ge=0.001, le=1)] = 0.04
    """Longest wait of a request for its features; then its policies decide. Seconds, inside the request's own deadline."""
    calls_in_flight_limit: PositiveInt = 4096
    """Calls that the process answers at a time; more are refused with a retry delay."""
    system_shared_memory_bytes: Annotated[int, Field(ge=0)] = 0
    """POSIX shared memory that clients on this host may register for their tensors, in all. Bytes; 0: off. Whoever may call
    can then read and write, by its name, every such object that this process may."""
    event_interval_s: PositiveFloat = 0.5
    """How long prediction events wait at most until they leave for the monitor; a full batch leaves at once. Seconds."""
    event_queue_limit: PositiveInt = 10_000
    """Predictions that may wait for the monitor; beyond that the oldest batch of them is dropped and counted."""
    event_queue_limit_bytes: PositiveInt = 64 * 1024 * 1024
    """Bytes that waiting predictions may hold."""
    event_flush_s: PositiveFloat = 2.0
    """What the last events get to leave when the process ends. Seconds."""

    router_processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share the router's port, to use as many cores; each is a router of its own, so limits hold for each."""

    @field_validator("router_processes")
    @classmethod
    def _alone_with_shared_memory(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("system_shared_memory_bytes"):
            raise ValueError(
                "want 1 with INTERLOCK_SYSTEM_SHARED_MEMORY_BYTES: a region is known to the process that registered it"
            )
        return value

    @property
    def processes(self) -> int:
        """Routers on the port."""
        return self.router_processes

    def pool_addresses(self) -> dict[str, list[str]]:
        """Return the addresses of every pool."""
        if self.pools:
            return self.pools
        return {"default": [join_host_port(self.bind_host, self.port_of("inference"))]}
