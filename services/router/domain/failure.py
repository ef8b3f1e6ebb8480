"""Why the router refuses or fails a request, each with its reason of the contract."""

from collections.abc import Sequence
from typing import Final

from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Violation,
    echo,
)

_RETRY_AFTER_S: Final = 0.1
_SHOWN_VIOLATIONS: Final = 3


class InvalidFeatures(InvalidArgument):
    """Features are missing, unknown or illegal; the violations list all of them."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(_summary("feature", violations), reason="INVALID_FEATURES", violations=violations)


class InvalidTensors(InvalidArgument):
    """Tensors do not fit the signature; the violations list how."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(_summary("tensor", violations), reason="INVALID_TENSORS", violations=violations)


class InvalidField(InvalidArgument):
    """Fields of the request, other than features and tensors, are wrong."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(_summary("field", violations), reason="INVALID_FIELD", violations=violations)


class StreamProtocol(InvalidArgument):
    """A message of a stream is not what may stand there."""

    def __init__(self, want: str, got: str) -> None:
        super().__init__(f"want {want}, got {got}", reason="STREAM_PROTOCOL")


class ModelNotFound(NotFound):
    """The router's environment has no route for the model."""

    def __init__(self, model: str, hint: str = "") -> None:
        super().__init__(
            f"model {echo(model)} is not served here{hint}; deploy a version of it, or check the name",
            reason="MODEL_NOT_FOUND",
            metadata={"model": model},
        )


class VersionNotFound(NotFound):
    """The version is unknown, or not deployed in the router's environment."""

    def __init__(self, model: str, version: str, deployed: Sequence[str]) -> None:
        known = ", ".join(deployed[:8]) or "none"
        super().__init__(
            f"version {echo(version)} of model {echo(model)} is not deployed here; deployed: {known}",
            reason="VERSION_NOT_FOUND",
            metadata={"model": model, "version": version},
        )


class OutputNotFound(NotFound):
    """A requested output is none of the signature's."""

    def __init__(self, index: int, output: str, known: Sequence[str], hint: str) -> None:
        wrong = Violation(f"outputs[{index}].name", f"want one of {', '.join(known[:8])}, got {echo(output)}{hint}")
        super().__init__(
            f"{wrong.field}: {wrong.description}",
            reason="OUTPUT_NOT_FOUND",
            metadata={"output": output},
            violations=[wrong],
        )


class NoFeaturesInSignature(FailedPrecondition):
    """The version cannot be asked by features."""

    def __init__(self, model: str, version: str, why: str) -> None:
        super().__init__(
            f"version {version} of model {echo(model)} cannot be asked by features: {why}",
            reason="NO_FEATURES_IN_SIGNATURE",
            metadata={"model": model, "version": version},
        )


class FeaturesMissing(FailedPrecondition):
    """Features to be fetched are missing or too old, and may not be; the violations list all of them."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(_summary("fetched feature", violations), reason="FEATURES_MISSING", violations=violations)


class FeaturesUnavailable(Unavailable):
    """The features service does not answer, and the row cannot do without it; the violations list what is missing."""

    def __init__(self, violations: Sequence[Violation] = ()) -> None:
        message = "the features service does not answer, and what it should have given has nothing to stand in for it"
        super().__init__(message, reason="FEATURES_UNAVAILABLE", violations=violations)


class NoReplicaReady(Unavailable):
    """No replica that holds the version is ready."""

    def __init__(self, model: str, version: str) -> None:
        super().__init__(
            f"no replica is ready for version {version} of model {echo(model)}",
            reason="NO_REPLICA_READY",
            metadata={"model": model, "version": version},
        )


class NoConfiguration(Unavailable):
    """The router has had no configuration yet, neither from the registry nor from its disk."""

    def __init__(self) -> None:
        super().__init__("the router has had no configuration from the registry yet", reason="NO_CONFIGURATION")


class TooManyCalls(ResourceExhausted):
    """The process answers as many calls as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the router answers {limit} calls at the moment, as many as it may",
            reason="CALLS_IN_FLIGHT_EXCEEDED",
            metadata={"limit": str(limit)},
            retry_after_s=_RETRY_AFTER_S,
        )


class InvalidModelOutput(ServiceError):
    """The model answered something that its signature does not allow; nothing that the caller could mend."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the model's answer is unusable: {message}", reason="INVALID_MODEL_OUTPUT")


def _summary(what: str, violations: Sequence[Violation]) -> str:
    shown = "; ".join(f"{found.field}: {found.description}" for found in violations[:_SHOWN_VIOLATIONS])
    count = len(violations)
    more = f"; and {count - _SHOWN_VIOLATIONS} more" if count > _SHOWN_VIOLATIONS else ""
    head = f"1 {what} is wrong" if count == 1 else f"{count} {what}s are wrong"
    return f"{head}: {shown}{more}"
