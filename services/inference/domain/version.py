"""What the registry wants loaded: versions with their files, tensors and golden rows, and deployments of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from services.inference.domain.tensor import Tensor, TensorSpec

DEFAULT_MAX_BATCH_SIZE: Final = 64
DEFAULT_MAX_DELAY_S: Final = 0.002


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
    """How requests are joined: most rows of a batch, and the longest wait for company in seconds."""

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    max_delay_s: float = DEFAULT_MAX_DELAY_S


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """A version that should be loaded."""

    name: str
    key: VersionKey
    batching: BatchingPolicy = field(default_factory=BatchingPolicy)


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
