"""PushFeatures as JSON: the fields of the messages, with plain values; what the contract does not have is refused.

Whether a value is of its feature's type is seen where rows of every form are checked.
"""

import asyncio
from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from interlock.features.v1 import feature_service_pb2 as pb
from interlock.types.v1 import feature_value_pb2 as value_pb

from services.common.errors import Violation
from services.common.json_body import Fields, decode_object, raise_violations
from services.common.refusals import InvalidRequest
from services.common.rest_twin import JSON_CONTENT_TYPE
from services.common.wording import describe
from services.features.convert.value import value_to_proto
from services.features.domain.push import ROW_LIMIT, ROWS_AT_A_TIME

_REQUEST: Final = ("rows", "request_id")
_ROW: Final = ("entities", "values", "event_time", "event_id", "known_at")
_WANT: Final = "want a number, a text, true or false, a list of these, or null"
_VIOLATION_LIMIT: Final = 50
_INT64: Final = range(-(2**63), 2**63)


async def request_from_json(feature_view: str, body: bytes) -> pb.PushFeaturesRequest:
    """Return the request; raises InvalidJson with the place of everything that does not fit. Lets others run in between."""
    fields = Fields(decode_object(body), _REQUEST)
    rows = fields.items("rows")
    request = pb.PushFeaturesRequest(feature_view=feature_view, request_id=fields.text("request_id"))
    fields.check()
    if len(rows) > ROW_LIMIT:
        raise InvalidRequest([Violation("rows", f"want 1 to {ROW_LIMIT} rows, got {len(rows)}")])
    wrong: list[Violation] = []
    for index, row in enumerate(rows):
        _read_row(row, f"rows[{index}]", request.rows.add(), wrong)
        if len(wrong) >= _VIOLATION_LIMIT:
            break
        if index % ROWS_AT_A_TIME == ROWS_AT_A_TIME - 1:
            await asyncio.sleep(0)
    raise_violations(wrong)
    return request


def response_to_json(response: pb.PushFeaturesResponse) -> HttpBody:
    """Return the answer."""
    text = json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None)
    return HttpBody(content_type=JSON_CONTENT_TYPE, data=text.encode())


def _read_row(found: Any, path: str, row: pb.FeatureRow, wrong: list[Violation]) -> None:
    if not isinstance(found, dict):
        wrong.append(Violation(path, f"want an object, got {describe(found)}"))
        return
    fields = Fields(found, _ROW, path)
    keys, row.event_id = fields.texts("entities"), fields.text("event_id")
    for name in ("event_time", "known_at"):
        time_us = fields.moment_us(name)
        if time_us is not None:
            getattr(row, name).FromMicroseconds(time_us)
    for name, value in fields.members("values").items():
        row.values[name].CopyFrom(_value(value, name, fields))
    if not fields.violations:
        row.entities.update(keys)
    wrong += fields.violations


def _value(value: Any, name: str, fields: Fields) -> value_pb.FeatureValue:
    elements = value if isinstance(value, list) else [value]
    for element in elements:
        if not isinstance(element, float | int | str) and not (element is None and value is None):
            place = " in a list" if elements is value else ""
            fields.add(f"values.{name}", f"{_WANT}, got {describe(element)}{place}")
            return value_pb.FeatureValue()
    if isinstance(value, list):
        return value_to_proto(tuple(map(_fitting, value)))
    return value_to_proto(_fitting(value))


def _fitting(value: Any) -> Any:
    """Return a scalar; a whole number beyond INT64 can only be a DOUBLE."""
    return float(value) if type(value) is int and value not in _INT64 else value
