"""What Envoy's own refusals say to REST clients: the same shapes and reasons as the services'."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from google.rpc.code_pb2 import Code

from services.common.errors import (
    DEADLINE_PASSED,
    DEPENDENCY_UNAVAILABLE,
    INTERNAL,
    MALFORMED_REQUEST,
    MESSAGE_TOO_LARGE,
)
from services.common.grpc_wire import too_large

FOREIGN_ORIGIN: Final = "FOREIGN_ORIGIN"
_NOT_IMPLEMENTED: Final = "NOT_IMPLEMENTED"


@dataclass(frozen=True, slots=True)
class LocalReply:
    """One HTTP status that Envoy answers by itself, and the google.rpc.Status that stands in its body under /v1."""

    http: int
    code: int
    reason: str
    early: bool = False
    """Refused before the filters run, mostly by path and header rules: there is no text and no id yet."""
    sized: bool = False
    """Only where the request says in a header how long it is."""
    words: str = "%LOCAL_REPLY_BODY%"
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the ErrorInfo."""

    @property
    def text(self) -> str:
        """Envoy's format of the message."""
        if self.early:
            return "the path or the headers of the request are malformed: %RESPONSE_CODE_DETAILS%"
        return self.words

    @property
    def request_id(self) -> str:
        """Envoy's format of the correlation id."""
        return "%UNIQUE_ID%" if self.early else "%REQ(x-correlation-id)%"


_TOO_LARGE: Final = LocalReply(413, Code.RESOURCE_EXHAUSTED, MESSAGE_TOO_LARGE)
_LENGTH: Final = "%REQ(content-length)%"


def local_replies(limit_bytes: int) -> tuple[LocalReply, ...]:
    """Return all of them, for an edge that takes bodies of at most `limit_bytes`; the first that fits answers."""
    unsized = too_large("the body", limit_bytes)
    sized = replace(
        _TOO_LARGE,
        sized=True,
        words=f"the body has {_LENGTH} bytes, the limit is {limit_bytes}",
        metadata={"limit_bytes": str(limit_bytes), "size_bytes": _LENGTH},
    )
    return (
        LocalReply(400, Code.INVALID_ARGUMENT, MALFORMED_REQUEST, early=True),
        LocalReply(414, Code.INVALID_ARGUMENT, MALFORMED_REQUEST, early=True),
        LocalReply(431, Code.RESOURCE_EXHAUSTED, MESSAGE_TOO_LARGE, early=True),
        LocalReply(400, Code.INVALID_ARGUMENT, MALFORMED_REQUEST),
        LocalReply(401, Code.UNAUTHENTICATED, MALFORMED_REQUEST),
        LocalReply(403, Code.PERMISSION_DENIED, FOREIGN_ORIGIN),
        LocalReply(404, Code.NOT_FOUND, MALFORMED_REQUEST),
        LocalReply(405, Code.UNIMPLEMENTED, MALFORMED_REQUEST),
        LocalReply(408, Code.DEADLINE_EXCEEDED, DEADLINE_PASSED),
        sized,
        replace(_TOO_LARGE, words=unsized.message, metadata=unsized.metadata),
        LocalReply(415, Code.INVALID_ARGUMENT, MALFORMED_REQUEST),
        LocalReply(429, Code.RESOURCE_EXHAUSTED, DEPENDENCY_UNAVAILABLE),
        LocalReply(500, Code.INTERNAL, INTERNAL),
        LocalReply(501, Code.UNIMPLEMENTED, _NOT_IMPLEMENTED),
        LocalReply(502, Code.UNAVAILABLE, DEPENDENCY_UNAVAILABLE),
        LocalReply(503, Code.UNAVAILABLE, DEPENDENCY_UNAVAILABLE),
        LocalReply(504, Code.DEADLINE_EXCEEDED, DEADLINE_PASSED),
    )
