"""What the domain needs from outside: a clock, model processes, artifacts, and someone who watches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Protocol

from services.inference.domain.batching import Batch
from services.inference.domain.frame import FrameTensor, RunFailure
from services.inference.domain.item import BatchAnswer, Item
from services.inference.domain.version import BatchingPolicy, FileSpec, VersionKey, VersionSpec


class Timer(Protocol):
    """A callback that is still to come."""

    def cancel(self) -> None:
        """Forget it."""


class Clock(Protocol):
    """Monotonic time and callbacks at a time, so that tests can bring their own."""

    def now(self) -> float:
        """Return monotonic seconds."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at `when`, monotonic seconds; soon when that is past."""

    def call_soon(self, callback: Callable[[], None], *, gathers: bool) -> None:
        """Call back once everything that has happened by now has been taken in; who `gathers` may have to wait for it."""


OnResult = Callable[[int, BatchAnswer | RunFailure], None]


class BatchRunner(Protocol):
    """A loaded model in a process of its own. Batches run in the order in which they are sent."""

    def run(self, ident: int, outputs: Sequence[int], tensors: Sequence[FrameTensor], traceparent: str) -> None:
        """Send a batch; its result comes through the callback that the runner was made with."""

    def interrupt(self, ident: int) -> None:
        """Stop a batch that nobody waits for; its result still comes."""

    def kill(self) -> None:
        """End the process now."""


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a model process ended; as text for people: "ended by signal 9 (SIGKILL)"."""

    exit_code: int
    """0 when a signal ended it."""
    signal: int
    """0 when none did."""
    memory_bytes: int
    """Resident memory when it was last looked at."""
    lines: tuple[str, ...]
    """Its last lines on standard error, for operators."""
    end_time: float
    """Seconds since 1970."""
    cause: str = ""
    """Why it was ended from here; empty when it ended by itself."""
    pid: int = 0
    """The process id that it had."""
    innocent: bool = False
    """Whether another version's model was at work, in a process that both shared."""

    def __str__(self) -> str:
        """Return how it ended, for people."""
        if self.cause:
            return self.cause
        if not self.signal:
            return f"ended with exit code {self.exit_code}"
        try:
            name = f" ({Signals(self.signal).name})"
        except ValueError:
            name = ""
        return f"ended by signal {self.signal}{name}"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a worker says once it has loaded, warmed and checked a version."""

    measured: tuple[tuple[int, float], ...]
    """Batch sizes and their seconds, warm."""
    memory_bytes: int
    """Resident memory of the process."""


class LoadFailure(Exception):
    """A version could not be loaded. The text is for people: it names no path and no class."""

    def __init__(self, message: str, *, corrupt_digest: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.corrupt_digest = corrupt_digest
        """The file whose bytes are not what they were; empty when that is not the cause."""


class ArtifactsUnavailable(Exception):
    """A version's files cannot be had at the moment: nobody's fault that loading again would not cure."""


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """A version's files on the local disk, by their relative path in the version."""

    root: Path
    paths: dict[str, Path]


class ArtifactStore(Protocol):
    """Local, verified copies of artifacts."""

    async def fetch(self, files: Sequence[FileSpec]) -> ModelBundle:
        """Return the files, fetched where they are not here yet.

        Raises `LoadFailure` when what comes is not what was announced, `ArtifactsUnavailable` when nothing comes.
        """

    async def discard(self, digest: str) -> None:
        """Throw a copy away, because its bytes turned out to be others."""


class ModelProcess(BatchRunner, Protocol):
    """A model's process from its start to its end."""

    @property
    def pid(self) -> int:
        """The process id, for logs."""

    async def load(self, spec: VersionSpec, bundle: ModelBundle, batching: BatchingPolicy) -> LoadReport:
        """Load, warm and check the version. Raises `LoadFailure`."""

    async def warm(self, sizes: Sequence[int]) -> None:
        """Warm more batch sizes. Raises `LoadFailure`."""

    @property
    def memory_bytes(self) -> int:
        """Resident memory, as it was lately."""

    def limit_memory(self, limit_bytes: int) -> None:
        """Let `outgrown` return above so much resident memory; 0: never."""

    async def outgrown(self) -> None:
        """Wait until the process holds more memory than its limit and than when it was loaded."""

    async def ended(self) -> WorkerExit:
        """Wait for the end of the process and return how it ended."""

    async def close(self) -> None:
        """Let the process go: it ends by itself, or is ended."""


class ProcessLauncher(Protocol):
    """Starts model processes."""

    async def start(self, spec: VersionSpec, policy: BatchingPolicy, on_result: OnResult) -> ModelProcess:
        """Start an empty process for a version. Raises `LoadFailure` when the machine cannot."""


class Observer(Protocol):
    """Who counts batches and answers; must be cheap and must not raise."""

    def batch_ran(self, key: VersionKey, batch: Batch, compute_s: float) -> None:
        """A batch was answered by the model."""

    def items_done(self, key: VersionKey, items: Sequence[Item], reason: str) -> None:
        """Items were answered; `reason` is empty for success, else the error's."""

    def forget(self, key: VersionKey) -> None:
        """The version is gone: keep no series of it."""
