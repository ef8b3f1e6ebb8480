"""How calls and their answers lie in HTTP requests and responses: as gRPC, and as REST."""

from collections.abc import MutableMapping, Sequence
from typing import Any, Final, Protocol

from google.rpc.status_pb2 import Status

from services.common.grpc_wire import (
    ACCEPT_ENCODING,
    CONTENT_TYPE,
    STATUS_OK,
    Header,
    frame,
    plain_message,
    status_headers,
)
from services.common.rest_twin import JSON_CONTENT_TYPE, error_answer

Event = MutableMapping[str, Any]
_GOOD_END: Final[Event] = {"type": "http.response.trailers", "headers": [STATUS_OK]}
_JSON: Final[Header] = (b"content-type", JSON_CONTENT_TYPE.encode())


class Form(Protocol):
    """How a call of one message, and its answer of one, lie in HTTP."""

    def message(self, body: bytes) -> bytes | None:
        """Return the message of a whole body; None where the ordinary way must find out what it is."""

    def answer(self, message: bytes, request_id: Header) -> Sequence[Event]:
        """Return what to send for an answer."""

    def failure(self, status: Status, request_id: Header) -> Sequence[Event]:
        """Return what to send for an error."""


class GrpcForm:
    """A frame each way, and the status behind it or, for errors, in its place."""

    def message(self, body: bytes) -> bytes | None:
        """Return the message of one frame that is not compressed."""
        return plain_message(body)

    def answer(self, message: bytes, request_id: Header) -> Sequence[Event]:
        """Return headers, one frame, and trailers."""
        headers = [CONTENT_TYPE, ACCEPT_ENCODING, request_id]
        return (
            {"type": "http.response.start", "status": 200, "headers": headers, "trailers": True},
            {"type": "http.response.body", "body": frame(message)},
            _GOOD_END,
        )

    def failure(self, status: Status, request_id: Header) -> Sequence[Event]:
        """Return headers that hold the status."""
        return _whole(200, [CONTENT_TYPE, request_id, *status_headers(status)], b"")


class JsonForm:
    """A body of JSON each way; `path` decides what an error looks like."""

    def __init__(self, path: str) -> None:
        self._path = path

    def message(self, body: bytes) -> bytes:
        """Return the body."""
        return body

    def answer(self, message: bytes, request_id: Header) -> Sequence[Event]:
        """Return a response of status 200."""
        return _whole(200, [_JSON, request_id, (b"content-length", b"%d" % len(message))], message)

    def failure(self, status: Status, request_id: Header) -> Sequence[Event]:
        """Return a response with the status that HTTP has for it, and the error as its body."""
        http, body = error_answer(status, self._path)
        return _whole(http, [_JSON, request_id, (b"content-length", b"%d" % len(body.data))], body.data)


def _whole(http: int, headers: list[Header], body: bytes) -> Sequence[Event]:
    return (
        {"type": "http.response.start", "status": http, "headers": headers, "trailers": False},
        {"type": "http.response.body", "body": body},
    )
