"""Why inference refuses or fails a request: the reasons of `interlock.inference.v1.InferenceErrorReason`."""

from collections.abc import Sequence

from services.common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Violation,
    echo,
)
from services.inference.domain.version import VersionKey


class InvalidTensors(InvalidArgument):
    """Tensors that do not fit the signature; each violation names the tensor, what was wanted and what came."""

    what = "the tensors do not fit the signature"

    def __init__(self, violations: Sequence[Violation]) -> None:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        super().__init__(f"{self.what}: {text}", reason="INVALID_TENSORS", violations=violations)


class NonFiniteTensors(InvalidTensors):
    """Numbers that are not finite, where the version's policy refuses them; each violation names the first of a tensor."""

    what = "the model takes finite numbers only"


class OutputNotFound(NotFound):
    """A requested output is none of the version's."""

    def __init__(self, index: int, output: str, known: str) -> None:
        wrong = Violation(f"outputs[{index}].name", f"want one of {known}, got {echo(output)}")
        super().__init__(
            f"{wrong.field}: {wrong.description}",
            reason="OUTPUT_NOT_FOUND",
            metadata={"output": output},
            violations=[wrong],
        )


class InvalidStreamMessage(InvalidArgument):
    """A message that breaks the rules of the coalesced stream; the stream ends."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="INVALID_STREAM_MESSAGE")


class VersionNotLoaded(NotFound):
    """This replica neither holds nor loads the version."""

    def __init__(self, model: str, version: str) -> None:
        wanted = f"version {echo(version)} of model {echo(model)}" if version else f"model {echo(model)}"
        super().__init__(
            f"{wanted} is not loaded here; deploy it to this replica's pool",
            reason="VERSION_NOT_LOADED",
            metadata={"model": model, "version": version},
        )


class VersionNotReady(Unavailable):
    """The version is loading, or failed to."""

    def __init__(self, key: VersionKey, state: str, message: str, retry_after_s: float | None = None) -> None:
        because = f": {message}" if message else ""
        super().__init__(
            f"version {key.version} of model {key.model} is not ready here, it is {state}{because}",
            reason="VERSION_NOT_READY",
            metadata={"model": key.model, "version": key.version, "state": state},
            retry_after_s=retry_after_s,
        )


class WorkerDied(Unavailable):
    """The model's process ended while it held the request; another one is being started."""

    def __init__(self, key: VersionKey, cause: str) -> None:
        super().__init__(
            f"the process of version {key.version} of model {key.model} {cause}; another one is being started",
            reason="WORKER_DIED",
            metadata={"model": key.model, "version": key.version},
        )


class QueueFull(ResourceExhausted):
    """The request would miss its deadline in the queue, or the queue holds as much as it may."""

    def __init__(self, message: str, retry_after_s: float, **metadata: str) -> None:
        super().__init__(message, reason="QUEUE_FULL", retry_after_s=retry_after_s, metadata=metadata)


class DeadlinePassed(DeadlineExceeded):
    """The request's time was over while it waited, or before its batch was done."""

    def __init__(self, where: str) -> None:
        super().__init__(f"the deadline passed {where}", reason="DEADLINE_EXCEEDED")


class BatchTooSlow(DeadlineExceeded):
    """The batch ran longer than the version allows."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"the batch ran longer than the version's max_batch_time of {limit_s:g} s", reason="BATCH_TOO_SLOW"
        )


class ModelOutOfMemory(ResourceExhausted):
    """The model has not the memory for this request, even alone and row by row."""

    def __init__(self) -> None:
        super().__init__("the model ran out of memory on one row of this request", reason="OUT_OF_MEMORY")


class ReplicaDraining(Unavailable):
    """The replica shuts down, or unloads the version: another one will answer."""

    def __init__(self, what: str = "this replica shuts down") -> None:
        super().__init__(f"{what}; send the request to another one", reason="DRAINING")


class ModelRefused(InvalidArgument):
    """The model itself refused the values of this request."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the model refused these values{': ' + detail if detail else ''}", reason="MODEL_REFUSED")


class InvalidModelOutput(ServiceError):
    """The model answered other rows or shapes than asked; its maker must look at it."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the model's answer is unusable: {detail}", reason="INVALID_MODEL_OUTPUT")


class RegistryDecides(FailedPrecondition):
    """Loading and unloading by hand: the registry alone decides."""

    def __init__(self) -> None:
        super().__init__(
            "the registry decides what is loaded: create or delete a deployment there", reason="REGISTRY_DECIDES"
        )
