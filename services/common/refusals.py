"""What every service refuses in the same words; `reason` is a value that each area's enum has."""

import uuid
from collections.abc import Iterable, Sequence

from services.common.errors import INVALID_FIELD, Aborted, InvalidArgument, NotFound, Violation, echo


class InvalidRequest(InvalidArgument):
    """One or more fields break the contract; all of them are listed."""

    def __init__(self, violations: Sequence[Violation], reason: str = INVALID_FIELD) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(
            f"{first.field}: {first.description}{more}",
            reason=reason,
            metadata={"field": first.field},
            violations=violations,
        )


def refuse(violations: Iterable[Violation], reason: str = INVALID_FIELD) -> None:
    """Raise InvalidRequest when there is a violation."""
    found = list(violations)
    if found:
        raise InvalidRequest(found, reason)


def request_id_of(text: str) -> str:
    """Return an idempotency key in one form, empty when there is none; raises InvalidRequest unless it is a UUID."""
    if not text:
        return ""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidRequest([Violation("request_id", f"want a UUID, got {echo(text)}")]) from None


class ResourceNotFound(NotFound):
    """No resource of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{echo(name)} does not exist", reason="RESOURCE_NOT_FOUND", metadata={"name": name})


class EtagMismatch(Aborted):
    """Somebody changed the resource since the caller read it."""

    def __init__(self, name: str, want: str, got: str) -> None:
        super().__init__(
            f"{echo(name)} has changed: want the etag {echo(want)}, got {echo(got)}; read it again",
            reason="ETAG_MISMATCH",
            metadata={"name": name, "etag": want},
        )
