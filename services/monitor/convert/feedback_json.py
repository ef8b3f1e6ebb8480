"""SendFeedback as JSON: the fields of the messages, with plain values; what the contract does not have is refused."""

from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format, timestamp_pb2
from interlock.monitor.v1 import feedback_service_pb2 as pb
from interlock.types.v1 import feature_value_pb2 as value_pb

from services.common.errors import Violation
from services.common.json_body import Fields, decode_object, raise_violations
from services.common.refusals import refuse
from services.common.rest_twin import JSON_CONTENT_TYPE
from services.common.wording import describe
from services.monitor.convert.feedback import FEEDBACK_LIMIT

_REQUEST: Final = ("feedback", "request_id")
_FEEDBACK: Final = ("prediction_id", "label", "reward", "metric", "event_time", "source")
_INT64: Final = 1 << 63


def request_from_json(body: bytes) -> pb.SendFeedbackRequest:
    """Return the request; raises InvalidJson with the place of everything that does not fit."""
    fields = Fields(decode_object(body), _REQUEST)
    items, request_id = fields.items("feedback"), fields.text("request_id")
    fields.check()
    if len(items) > FEEDBACK_LIMIT:
        refuse([Violation("feedback", f"want 1 to {FEEDBACK_LIMIT}, got {len(items)}")])
    wrong: list[Violation] = []
    feedback = [_feedback(item, f"feedback[{index}]", wrong) for index, item in enumerate(items)]
    raise_violations(wrong)
    return pb.SendFeedbackRequest(feedback=feedback, request_id=request_id)


def response_to_json(response: pb.SendFeedbackResponse) -> HttpBody:
    """Return the answer."""
    text = json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None)
    return HttpBody(content_type=JSON_CONTENT_TYPE, data=text.encode())


def _feedback(item: Any, path: str, wrong: list[Violation]) -> pb.Feedback:
    if not isinstance(item, dict):
        wrong.append(Violation(path, f"want an object, got {describe(item)}"))
        return pb.Feedback()
    fields = Fields(item, _FEEDBACK, path)
    found = pb.Feedback(
        prediction_id=fields.text("prediction_id"), metric=fields.text("metric"), source=fields.text("source")
    )
    if fields.has("label") and fields.has("reward"):
        fields.add("reward", "want a label or a reward, got both")
    elif fields.has("label"):
        _set_label(found, item["label"], fields)
    elif fields.has("reward"):
        _set_reward(found, item["reward"], fields)
    if fields.has("event_time"):
        _set_time(found.event_time, item["event_time"], fields)
    wrong += fields.violations
    return found


def _set_label(found: pb.Feedback, value: Any, fields: Fields) -> None:
    match value:
        case bool():
            found.label.CopyFrom(value_pb.FeatureValue(bool_value=value))
        case int() if -_INT64 <= value < _INT64:
            found.label.CopyFrom(value_pb.FeatureValue(int64_value=value))
        case int() | float():
            found.label.CopyFrom(value_pb.FeatureValue(double_value=float(value)))
        case str():
            found.label.CopyFrom(value_pb.FeatureValue(string_value=value))
        case _:
            fields.add("label", f"want a class index, a class name or a number, got {describe(value)}")


def _set_reward(found: pb.Feedback, value: Any, fields: Fields) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        found.reward = float(value)
    else:
        fields.add("reward", f"want a number, got {describe(value)}")


def _set_time(stamp: timestamp_pb2.Timestamp, value: Any, fields: Fields) -> None:
    try:
        stamp.FromJsonString(value)
    except (ValueError, TypeError, AttributeError):
        fields.add("event_time", f'want a time such as "2026-01-31T12:00:00Z", got {describe(value)}')
