"""What the registry wants loaded: versions with their files, tensors and golden rows, and deployments of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final, NamedTuple

from services.inference.domain.tensor import Tensor, TensorSpec

DEFAULT_MAX_BATCH_SIZE: Final = 64
DEFAULT_MAX_DELAY_S: Final = 0.002
DEFAULT_AGEING_S: Final = 0.5
DEFAULT_MAX_BATCH_TIME_S: Final = 30.0


class VersionKey(NamedTuple):
    """Names a version: model id and decimal version id."""

    model: str
    version: str

    def __str__(self) -> str:
        """Return the form that logs and health use."""
        return f"{self.model}/{self.version}"


class LoadState(IntEnum):
    """State of a version on this replica; numbers are those of `interlock.inference.v1.LoadState`."""

    FETCHING = 1
    LOADING = 2
    READY = 3
    FAILED = 4
    UNLOADING = 5


class Placement(Enum):
    """Where a model runs."""

    PROCESS = "PROCESS"
    """In processes of its own."""
    INLINE = "INLINE"
    """In the front end's own process, when it is small."""
    SHARED = "SHARED"
    """In a process with other versions, when it is small."""


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file of a version: relative path, SHA-256 in hexadecimal, size in bytes."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GoldenRow:
    """Inputs and the outputs that must come of them: |got - want| <= absolute + relative * |want|."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    absolute_tolerance: float
    relative_tolerance: float


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """An immutable version, as far as inference cares."""

    key: VersionKey
    files: tuple[FileSpec, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden_rows: tuple[GoldenRow, ...] = ()
    runtime: str = "onnx"
    defect: str = ""
    """Why it can never be loaded here, for people; empty when nothing is known to be wrong."""


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """How requests are joined into batches, and how the version's processes are kept. Times in seconds, 0 for none."""

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    """Most rows of a batch."""
    max_delay_s: float = DEFAULT_MAX_DELAY_S
    """The longest wait for company."""
    batch_sizes: tuple[int, ...] = ()
    """The only sizes that the model may see, ascending, `max_batch_size` last; empty: all of them."""
    latency_target_s: float = 0.0
    """From arrival to answer; with it the wait and the largest batch follow the measured batch times."""
    max_queue_rows: int = 0
    """0: the replica's own limit."""
    max_queue_bytes: int = 0
    """0: the replica's own limit."""
    ageing_s: float = DEFAULT_AGEING_S
    """A request that has waited so long is old: now and then the oldest go first."""
    max_batch_time_s: float = DEFAULT_MAX_BATCH_TIME_S
    """The longest run of one batch."""
    instances: int = 1
    """Model processes."""
    memory_limit_bytes: int = 0
    """Resident memory above which a process is replaced; 0: none."""
    length_buckets: tuple[int, ...] = ()
    """Row lengths to which variable dimensions are filled up; empty: none."""
    placement: Placement = Placement.PROCESS
    """Where the model should run."""
    refuse_non_finite: bool = False
    """Whether a request with NaN or an infinity in its tensors is refused."""

    def sizes(self) -> tuple[int, ...]:
        """Return the batch sizes to warm and to measure: the allowed ones, or powers of two up to the largest."""
        return self.batch_sizes or warm_sizes(self.max_batch_size)

    def filled(self, rows: int) -> int:
        """Return the size of the batch that so many rows run in: the next allowed one."""
        return next((size for size in self.batch_sizes if size >= rows), rows)


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """A version that should be loaded."""

    name: str
    key: VersionKey
    batching: BatchingPolicy = field(default_factory=BatchingPolicy)
    defect: str = ""
    """Why this replica cannot load it, for people; empty when it can."""


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that the pool should hold, as of an epoch of the registry."""

    deployments: Mapping[str, DeploymentSpec]
    versions: Mapping[VersionKey, VersionSpec]
    epoch: int


def warm_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes to warm: the powers of two up to the largest batch, and that itself."""
    sizes = [1 << power for power in range(max_batch_size.bit_length()) if 1 << power <= max_batch_size]
    return tuple(sizes) if sizes[-1] == max_batch_size else (*sizes, max_batch_size)
