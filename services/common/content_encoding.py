"""REST bodies that the client has compressed (RFC 9110, 8.4.1): read within the limit on messages, whatever they promise."""

import zlib
from typing import Final

from services.common.errors import INVALID_FIELD, InvalidArgument, Violation, echo
from services.common.grpc_wire import WINDOW_BITS, inflate

CONTENT_ENCODING_KEY: Final = "content-encoding"
_WINDOW_BITS: Final = WINDOW_BITS | {"x-gzip": WINDOW_BITS["gzip"]}


def decoded(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return a body as it was before it was compressed; `encoding` is the header's text, empty when there is none.

    Raises InvalidArgument for an encoding that is not known and a body that is not in it, ResourceExhausted when it
    comes to more than `limit_bytes`.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in _WINDOW_BITS:
        raise _refused(f"want gzip, deflate or identity, got {echo(encoding)}")
    try:
        found, behind = inflate(body, _WINDOW_BITS[name], limit_bytes, "the body")
    except zlib.error:
        raise _refused(f"want a body in {name}, got another one") from None
    if behind is None:
        raise _refused(f"want a whole body in {name}, got one that ends early")
    return found


def _refused(text: str) -> InvalidArgument:
    wrong = Violation(CONTENT_ENCODING_KEY, text)
    return InvalidArgument(f"{CONTENT_ENCODING_KEY}: {text}", reason=INVALID_FIELD, violations=[wrong])
