"""Answers of the HttpBody twins as HTTP, the same bytes on both doors.

A twin answers OK with a body, errors too. On the grpcio door the HTTP status rides in initial metadata to the edge,
which applies it; the in-Envoy door answers HTTP itself. Both take what they say from here.
"""

import json
from typing import Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from services.common.errors import http_status

HTTP_STATUS_KEY: Final = "x-interlock-http-status"
JSON_CONTENT_TYPE: Final = "application/json"
# The transcoder and json_format resolve the details of a status by type, so the types must be in the default pool.
DETAIL_TYPES: Final = error_details_pb2.DESCRIPTOR


def error_answer(status: Status, path: str) -> tuple[int, HttpBody]:
    """Return HTTP status and body for an error: `{"error": ...}` for a path under /v2, else a google.rpc.Status."""
    return http_status(status), HttpBody(content_type=JSON_CONTENT_TYPE, data=_error_json(status, path))


def speaks_v2(path: str) -> bool:
    """Return whether a path, or a path template, belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith(("/v2/", "/v2?"))


def _error_json(status: Status, path: str) -> bytes:
    body = {"error": status.message} if speaks_v2(path) else _status_dict(status)
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _status_dict(status: Status) -> dict[str, object]:
    details = [json_format.MessageToDict(detail, preserving_proto_field_name=True) for detail in status.details]
    return {"code": status.code, "message": status.message, "details": details}
