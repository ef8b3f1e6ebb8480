"""Settings of inference, beside the common ones."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from services.common.names import ID_RULE, is_id
from services.common.settings import CommonSettings


def _id(value: str) -> str:
    if not is_id(value):
        raise ValueError(f"want {ID_RULE}")
    return value


class InferenceSettings(CommonSettings):
    """What one inference process reads."""

    inference_pool: Annotated[str, AfterValidator(_id)] = "default"
    """Pool that this process belongs to; it loads what is deployed there."""
    inference_processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share the port, to use as many cores, with `door = envoy`. The first has the queues and the models, the
    others hand it what they accept."""
    inference_frames: Literal["unix", "tcp", "off"] = "unix"
    """Where routers' requests are taken as frames, beside gRPC: on a Unix socket in the state folder, or on a TCP port
    of the bind host, which nothing guards but the network. Routers elsewhere use gRPC."""
    inference_intra_op_threads: Annotated[int, Field(ge=0, le=1024)] = 1
    """Threads of one run of a model. 0 = as many as affinity and cgroup allow."""
    inference_worker_memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Address space of one model process. Bytes; 0 = no limit."""
    inference_load_timeout_s: PositiveFloat = 120.0
    """From the start of a model process to READY. Seconds."""
    inference_start_wait_s: Annotated[float, Field(ge=0)] = 60.0
    """How long a start waits for the versions of the pool before the port is opened. Seconds."""
    inference_lease_s: Annotated[float, Field(ge=1, le=300)] = 15.0
    """How long a report to the registry holds; it is renewed after a third. Seconds."""
    inference_worker_hung_s: PositiveFloat = 5.0
    """Without a heartbeat for so long a model process is ended and replaced. Seconds."""
    inference_parallel_loads: PositiveInt = 1
    """Versions that load and warm up at once, at low priority."""
    inference_queue_rows: PositiveInt = 65_536
    """Most rows that wait for one version, unless its policy says otherwise."""
    inference_queue_bytes: PositiveInt = 64 * 1024 * 1024
    """Most bytes that wait for one version, unless its policy says otherwise."""
    system_shared_memory_bytes: Annotated[int, Field(ge=0)] = 0
    """POSIX shared memory that clients on this host may register for their tensors, in all. Bytes; 0: off. Whoever may call
    can then read and write, by its name, every such object that this process may."""
    inference_load_retry_first_s: PositiveFloat = 1.0
    """Pause after the first failed load; each further one is twice as long. Seconds."""
    inference_load_retry_longest_s: PositiveFloat = 60.0
    """Longest pause between failed loads. Seconds."""
    inference_restart_longest_s: PositiveFloat = 30.0
    """Longest pause before a model process that keeps dying is started again. Seconds."""
    inference_unload_wait_s: PositiveFloat = 30.0
    """How long a version that is unloaded may take for what it has accepted. Seconds."""
    inference_cache_unused_s: PositiveFloat = 7 * 24 * 3600.0
    """How long an artifact that no deployment needs stays in the local cache. Seconds."""

    @field_validator("inference_processes")
    @classmethod
    def _only_in_envoy(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("door") == "grpcio":
            raise ValueError("want 1 with INTERLOCK_DOOR=grpcio: only Envoys can share the port of one engine")
        return value

    @property
    def processes(self) -> int:
        """Processes on the port."""
        return self.inference_processes
