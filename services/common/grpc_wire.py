"""gRPC on the wire, for the door that has no gRPC library under it: frames, time-outs, status headers."""

import base64
import functools
import zlib
from typing import Final

from google.rpc.status_pb2 import Status

from services.common.errors import (
    MALFORMED_REQUEST,
    MESSAGE_TOO_LARGE,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
)

Header = tuple[bytes, bytes]

FRAME_HEADER_BYTES: Final = 5
CONTENT_TYPE: Final[Header] = (b"content-type", b"application/grpc")
ACCEPT_ENCODING: Final[Header] = (b"grpc-accept-encoding", b"identity,deflate,gzip")
STATUS_OK: Final[Header] = (b"grpc-status", b"0")

_TIMEOUT_DIGITS: Final = 8
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# zlib's window arguments: 31 reads a gzip header, 15 a zlib one (which is what HTTP calls deflate).
WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}


@functools.lru_cache(256)
def parse_timeout(value: bytes) -> float | None:
    """Return the seconds of a `grpc-timeout` header, None when there is none; raises InvalidArgument."""
    if not value:
        return None
    seconds = _UNIT_S.get(value[-1:])
    digits = value[:-1]
    if seconds is None or not (len(digits) <= _TIMEOUT_DIGITS and digits.isdigit()):
        raise InvalidArgument(
            "grpc-timeout: want up to 8 digits and one of H M S m u n, got something else", reason=MALFORMED_REQUEST
        )
    return int(digits) * seconds


@functools.lru_cache(256)
def is_grpc_content_type(value: bytes) -> bool:
    """Return whether a content type is gRPC with protobuf messages."""
    return value.partition(b";")[0].strip() in {b"application/grpc", b"application/grpc+proto"}


def unframe(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return the one message of a unary request's body, decompressed.

    Raises InvalidArgument for broken frames, ResourceExhausted past `limit_bytes` of message, Unimplemented for a
    compression that this door does not know.
    """
    if len(body) < FRAME_HEADER_BYTES:
        raise _malformed(f"want one message with a header of 5 bytes, got {len(body)} bytes")
    flag, size_bytes = body[0], int.from_bytes(body[1:FRAME_HEADER_BYTES], "big")
    held_bytes = len(body) - FRAME_HEADER_BYTES
    if size_bytes > held_bytes:
        raise _malformed(f"the message says {size_bytes} bytes, {held_bytes} came")
    if size_bytes < held_bytes:
        raise _malformed("want exactly one message, got more")
    if flag > 1:
        raise _malformed(f"the compressed flag must be 0 or 1, got {flag}")
    message = body[FRAME_HEADER_BYTES:]
    return _decompress(message, encoding, limit_bytes) if flag else message


def plain_message(body: bytes) -> bytes | None:
    """Return the one uncompressed message of a body; None says nothing about what is there instead."""
    if len(body) < FRAME_HEADER_BYTES or body[0] or int.from_bytes(body[1:5], "big") != len(body) - FRAME_HEADER_BYTES:
        return None
    return body[FRAME_HEADER_BYTES:]


def said_bytes(body: bytes, limit_bytes: int) -> int | None:
    """Return what the first header of a body past the limit says that its message has; None if that is not past it."""
    size_bytes = int.from_bytes(body[1:FRAME_HEADER_BYTES], "big")
    return size_bytes if size_bytes > limit_bytes else None


def frame(message: bytes) -> bytes:
    """Return a message with its header, uncompressed: the transcoder does not decompress answers."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def status_headers(status: Status) -> list[Header]:
    """Return grpc-status, grpc-message and grpc-status-details-bin for a status."""
    return [
        (b"grpc-status", str(status.code).encode()),
        (b"grpc-message", percent_encode(status.message)),
        # grpcio sends the details without padding; a decoder must take both.
        (b"grpc-status-details-bin", base64.b64encode(status.SerializeToString()).rstrip(b"=")),
    ]


def percent_encode(text: str) -> bytes:
    """Return UTF-8 as grpc-message wants it: printable ASCII as it is, `%` and everything else as %XX."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text.encode()
    )


def too_large(what: str, limit_bytes: int, size_bytes: int | None = None) -> ResourceExhausted:
    """Return the error for a message past the limit; no retry delay, for it will never fit.

    `size_bytes` is None where nobody reads on to find out.
    """
    size = f"more than {limit_bytes}" if size_bytes is None else str(size_bytes)
    return ResourceExhausted(
        f"{what} has {size} bytes, the limit is {limit_bytes}",
        reason=MESSAGE_TOO_LARGE,
        metadata={"limit_bytes": str(limit_bytes)} | ({} if size_bytes is None else {"size_bytes": str(size_bytes)}),
    )


def inflate(data: bytes, window_bits: int, limit_bytes: int, what: str) -> tuple[bytes, bytes | None]:
    """Return what was compressed, and what came behind it: None where it ends early.

    Raises zlib.error for data in another form, and ResourceExhausted that names `what` when it comes to more than
    `limit_bytes`, of which no more is ever unpacked.
    """
    inflater = zlib.decompressobj(window_bits)
    plain = inflater.decompress(data, limit_bytes + 1)
    if len(plain) > limit_bytes:
        raise too_large(what, limit_bytes)
    return plain, inflater.unused_data if inflater.eof else None


def _decompress(message: bytes, encoding: str, limit_bytes: int) -> bytes:
    if encoding in {"", "identity"}:
        raise _malformed("the message is marked compressed, but no grpc-encoding came")
    if encoding not in WINDOW_BITS:
        raise Unimplemented("grpc-encoding: want identity, gzip or deflate, got another", reason=MALFORMED_REQUEST)
    try:
        plain, behind = inflate(message, WINDOW_BITS[encoding], limit_bytes, "the request, decompressed,")
    except zlib.error:
        raise _malformed(f"the message is not valid {encoding}") from None
    if behind != b"":
        raise _malformed(f"the message is not one whole {encoding} stream")
    return plain


def _malformed(text: str) -> InvalidArgument:
    return InvalidArgument(f"gRPC framing: {text}", reason=MALFORMED_REQUEST)
