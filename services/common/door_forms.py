"""How calls and their answers lie in HTTP requests and responses: as gRPC, and as REST."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final, Protocol

from google.rpc.status_pb2 import Status

from services.common.grpc_wire import (
    ACCEPT_ENCODING,
    CONTENT_TYPE,
    STATUS_OK,
    Header,
    frame,
    is_grpc_content_type,
    plain_message,
    status_headers,
)
from services.common.rest_twin import JSON_CONTENT_TYPE, error_answer

Event = MutableMapping[str, Any]
_GOOD_END: Final[Event] = {"type": "http.response.trailers", "headers": [STATUS_OK]}
_JSON: Final[Header] = (b"content-type", JSON_CONTENT_TYPE.encode())


class Form(Protocol):
    """How a call of one message, and its answer of one, lie in HTTP."""

    def fits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request with these headers is such a call."""

    def message(self, body: bytes) -> bytes | None:
        """Return the message of a whole body; None where the ordinary way must find out what it is."""

    def answer(self, message: bytes, request_id: Header) -> Sequence[Event]:
        """Return what to send for an answer."""

    def failure(self, status: Status, request_id: Header) -> Sequence[Event]:
        """Return what to send for an error."""


class GrpcForm:
    """A frame each way, and the status behind it or, for errors, in its place."""

    def fits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether its headers are those of gRPC."""
        return headers.get(b"te") == b"trailers" and is_grpc_content_type(headers.get(b"content-type", b""))

    def message(self, body: bytes) -> bytes | None:
        """Return the message of one frame that is not compressed."""
        return plain_message(body)

    def answer(self, message: bytes, request_id: Header) -> Sequence[Event]:
        """Return headers, one frame, and trailers."""
        return grpc_answer([request_id], message)

    def failure(self, status: Status, request_id: Header) -> Sequence[Event]:
        """Return headers that hold the status."""
        return _response(200, [CONTENT_TYPE, request_id, *status_headers(status)], b"")


class JsonForm:
    """A body of JSON each way; `path` decides what an error looks like."""

    def __init__(self, path: str) -> None:
        self._path = path

    def fits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether it is anything but gRPC."""
        return not is_grpc_content_type(headers.get(b"content-type", b""))

    def message(self, body: bytes) -> bytes:
        """Return the body."""
        return body

    def answer(self, message: bytes, request_id: Header) -> Sequence[Event]:
        """Return a response of status 200."""
        return sized_response(200, [_JSON, request_id], message)

    def failure(self, status: Status, request_id: Header) -> Sequence[Event]:
        """Return a response with the status that HTTP has for it, and the error as its body."""
        http, body = error_answer(status, self._path)
        return sized_response(http, [_JSON, request_id], body.data)


def grpc_answer(initial: Sequence[Header], message: bytes, trailers: Sequence[Header] = ()) -> Sequence[Event]:
    """Return what to send for a good answer: headers, one frame, and trailers."""
    headers = [CONTENT_TYPE, ACCEPT_ENCODING, *initial]
    return (
        {"type": "http.response.start", "status": 200, "headers": headers, "trailers": True},
        {"type": "http.response.body", "body": frame(message)},
        {"type": "http.response.trailers", "headers": [STATUS_OK, *trailers]} if trailers else _GOOD_END,
    )


def sized_response(http: int, headers: Sequence[Header], body: bytes) -> Sequence[Event]:
    """Return what to send for a whole response that says its length."""
    return _response(http, [*headers, (b"content-length", b"%d" % len(body))], body)


def _response(http: int, headers: Sequence[Header], body: bytes) -> Sequence[Event]:
    return (
        {"type": "http.response.start", "status": http, "headers": headers, "trailers": False},
        {"type": "http.response.body", "body": body},
    )
