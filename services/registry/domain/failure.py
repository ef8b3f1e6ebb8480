"""What the registry refuses and why; `reason` is a value of the contract's RegistryErrorReason."""

from collections.abc import Sequence
from typing import Final

from services.common.errors import (
    DEPENDENCY_UNAVAILABLE,
    DRAINING,
    INVALID_FIELD,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
    Unavailable,
    Unimplemented,
    Violation,
    echo,
)
from services.common.refusals import InvalidRequest

INVALID_SIGNATURE: Final = "INVALID_SIGNATURE"
SIGNATURE_FIELD: Final = "model_version.signature"
_NEXT_ATTEMPT_S: Final = 1.0


def refuse(violations: Sequence[Violation]) -> None:
    """Raise InvalidRequest when there is a violation; its reason is INVALID_SIGNATURE when all are the signature's."""
    if not violations:
        return
    of_signature = all(wrong.field.startswith(SIGNATURE_FIELD) for wrong in violations)
    raise InvalidRequest(violations, INVALID_SIGNATURE if of_signature else INVALID_FIELD)


class ResourceExists(AlreadyExists):
    """The id is taken, maybe by one that differs in case only."""

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(
            f"{echo(holder)} exists already; choose an id that differs in more than case",
            reason="RESOURCE_EXISTS",
            metadata={"name": name, "holder": holder},
        )


class ArtifactIncomplete(FailedPrecondition):
    """A version names content that has not been uploaded."""

    def __init__(self, digests: Sequence[str]) -> None:
        more = f" and {len(digests) - 1} more" if len(digests) > 1 else ""
        super().__init__(
            f"the artifact {digests[0]}{more} is not complete; upload it first",
            reason="ARTIFACT_INCOMPLETE",
            metadata={"digest": digests[0], "count": str(len(digests))},
        )


class DigestMismatch(DataLoss):
    """Content does not have the digest that names it."""

    def __init__(self, digest: str, message: str) -> None:
        super().__init__(message, reason="DIGEST_MISMATCH", metadata={"digest": digest})


class WrongOffset(InvalidArgument):
    """An upload does not go on where it stopped."""

    def __init__(self, got: int, received_bytes: int) -> None:
        description = f"want 0 or {received_bytes}, where the upload stopped; got {got}"
        super().__init__(
            f"start.offset_bytes: {description}",
            reason="WRONG_OFFSET",
            metadata={"received_bytes": str(received_bytes)},
            violations=[Violation("start.offset_bytes", description)],
        )


class UploadBusy(Unavailable):
    """Another process takes the same upload at the moment."""

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"the artifact {digest} is being uploaded by somebody else; ask again in a moment",
            reason=DEPENDENCY_UNAVAILABLE,
            metadata={"digest": digest},
            retry_after_s=_NEXT_ATTEMPT_S,
        )


class UploadTakenOver(InvalidArgument):
    """A later stream goes on with this upload; what this one sends no longer follows what is stored."""

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"a later stream has taken over the upload of {digest}", reason="WRONG_OFFSET", metadata={"digest": digest}
        )


class DeploymentInUse(FailedPrecondition):
    """The deployment still has traffic, or would have it if others failed."""

    def __init__(self, name: str, route: str, why: str) -> None:
        super().__init__(
            f"{name} {why}; take that away first",
            reason="DEPLOYMENT_IN_USE",
            metadata={"name": name, "route": route},
        )


class DeploymentNotReady(FailedPrecondition):
    """A variant names a deployment that cannot answer for the route."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{echo(name)} {why}", reason="DEPLOYMENT_NOT_READY", metadata={"name": name})


class AlreadyDeployed(FailedPrecondition):
    """The version is deployed there already."""

    def __init__(self, version: str, holder: str) -> None:
        super().__init__(
            f"{version} is deployed there already, as {holder}",
            reason="ALREADY_DEPLOYED",
            metadata={"model_version": version, "deployment": holder},
        )


class SignatureUnsatisfied(FailedPrecondition):
    """No feature view gives what a version fetches, or not as it wants it."""

    def __init__(self, version: str, violations: Sequence[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(
            f"{version} cannot get its features: {first.field}: {first.description}{more}",
            reason="SIGNATURE_UNSATISFIED",
            metadata={"model_version": version, "count": str(len(violations))},
            violations=violations,
        )


class FeaturesUnavailable(Unavailable):
    """The features service cannot be asked whether a version gets its features."""

    def __init__(self) -> None:
        super().__init__(
            "the features service does not answer, so nobody knows whether the version gets its features; "
            "nothing was changed",
            reason=DEPENDENCY_UNAVAILABLE,
            metadata={"service": "features"},
            retry_after_s=_NEXT_ATTEMPT_S,
        )


class WatchTokenExpired(OutOfRange):
    """The changes after the resume token are no longer kept."""

    def __init__(self) -> None:
        super().__init__("the resume token is too old; watch again without one", reason="WATCH_TOKEN_EXPIRED")


class WatchEnded(Unavailable):
    """The process drains; another one, or this one in a moment, goes on from the resume token."""

    def __init__(self) -> None:
        super().__init__("the registry is shutting down; watch again with the resume token", reason=DRAINING)


class NotActedUpon(Unimplemented):
    """The field is in the contract and not acted upon in this release."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what} in this release", reason="NOT_ACTED_UPON", metadata={"field": field})


class RequestIdReused(AlreadyExists):
    """The idempotency key was used with another body."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "request_id: want a new UUID for a new request, got one that was used with another body",
            reason="REQUEST_ID_REUSED",
            metadata={"request_id": request_id},
        )


class StoreUnavailable(Unavailable):
    """The store of content does not answer."""

    def __init__(self) -> None:
        super().__init__(
            "the registry's artifact store does not answer; try again",
            reason=DEPENDENCY_UNAVAILABLE,
            retry_after_s=_NEXT_ATTEMPT_S,
        )
