"""Feedback of the contract; reading one checks it."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from uuid import RFC_4122, UUID

from interlock.monitor.v1 import feedback_service_pb2 as pb
from interlock.types.v1 import feature_value_pb2 as value_pb

from services.common.errors import INVALID_FIELD, InvalidArgument, Violation, echo, to_status
from services.common.refusals import InvalidRequest, refuse
from services.monitor.convert.time import time_from_proto
from services.monitor.convert.value import scalar_from_proto
from services.monitor.domain.feedback import LABEL, Feedback
from services.monitor.domain.feedback_desk import Result

FEEDBACK_LIMIT: Final = 1_000
UNNAMED_REWARD: Final = "reward"
"""The metric of a reward that has no name."""
_METRIC_LIMIT_BYTES: Final = 128
_SOURCE_LIMIT_CHARS: Final = 200
_TEXT_LIMIT_CHARS: Final = 1_000
_UUID_VERSION: Final = 7


class FeedbackReader:
    """Reads feedback as of a moment; times are microseconds since 1970."""

    def __init__(self, now_us: int, tolerance_us: int) -> None:
        self._now_us = now_us
        self._latest_us = now_us + tolerance_us

    def read_all(self, messages: Sequence[pb.Feedback], field: str) -> list[Feedback | InvalidArgument]:
        """Return each as it is, or what is wrong with it; raises InvalidArgument for none at all or too many."""
        if not 1 <= len(messages) <= FEEDBACK_LIMIT:
            refuse([Violation(field, f"want 1 to {FEEDBACK_LIMIT}, got {len(messages)}")])
        return [self.read(message) for message in messages]

    def read(self, message: pb.Feedback) -> Feedback | InvalidArgument:
        """Return feedback, or all that is wrong with it."""
        prediction_id = id_from_text(message.prediction_id)
        wrong = [
            *self._id_violations(message, prediction_id),
            *_outcome_violations(message),
            *_text_violations(message),
        ]
        made_us = int.from_bytes((prediction_id or b"")[:6], "big") * 1000
        event_us = self._event_us(message, made_us)
        if isinstance(event_us, Violation):
            wrong.append(event_us)
        if wrong or isinstance(event_us, Violation) or prediction_id is None:
            return InvalidRequest(wrong)
        value = message.reward if message.HasField("reward") else scalar_from_proto(message.label)
        return Feedback(
            prediction_id=prediction_id,
            metric=(message.metric or UNNAMED_REWARD) if message.HasField("reward") else LABEL,
            number=None if value is None or isinstance(value, str) else float(value),
            text=value if isinstance(value, str) else None,
            event_us=event_us,
            event_given=message.HasField("event_time"),
            source=message.source,
        )

    def _id_violations(self, message: pb.Feedback, prediction_id: bytes | None) -> Iterator[Violation]:
        if prediction_id is None:
            yield Violation(
                "prediction_id", f"want a UUIDv7, as the prediction gave it, got {echo(message.prediction_id)}"
            )
        elif int.from_bytes(prediction_id[:6], "big") * 1000 > self._latest_us:
            yield Violation("prediction_id", "want the id of a prediction that was made, got one of the future")

    def _event_us(self, message: pb.Feedback, made_us: int) -> int | Violation:
        if not message.HasField("event_time"):
            # A replay predicts ahead of the clock, and nothing becomes true before it was predicted.
            return max(self._now_us, made_us)
        event_us = time_from_proto(message.event_time)
        if event_us is None:
            return Violation("event_time", "want a time of the years 1 to 9999, got another")
        if event_us > self._latest_us:
            return Violation("event_time", "want a time that has come, got one of the future")
        # Ids have milliseconds.
        if event_us < made_us - made_us % 1000:
            return Violation("event_time", "want a time not before the prediction, got an earlier one")
        return event_us


def id_from_text(text: str) -> bytes | None:
    """Return the 16 bytes of a UUIDv7; None for anything else."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found.bytes if found.version == _UUID_VERSION and found.variant == RFC_4122 and len(text) == 36 else None


def digest_of(request: pb.SendFeedbackRequest) -> bytes:
    """Return what tells the content of two requests apart."""
    content = pb.SendFeedbackRequest(feedback=request.feedback).SerializeToString(deterministic=True)
    return hashlib.sha256(content).digest()


def response_of(call_id: str) -> Callable[[Iterable[Result]], bytes]:
    """Return what makes the bytes of a SendFeedbackResponse; `call_id` goes into errors."""

    def encode(results: Iterable[Result]) -> bytes:
        return pb.SendFeedbackResponse(
            results=[result_to_proto(found, call_id) for found in results]
        ).SerializeToString()

    return encode


def result_to_proto(result: Result, call_id: str) -> pb.FeedbackResult:
    """Return what became of one feedback."""
    outcome = pb.FeedbackOutcome.ValueType(result.outcome)
    if result.error is None:
        return pb.FeedbackResult(outcome=outcome)
    return pb.FeedbackResult(outcome=outcome, error=to_status(result.error, call_id))


def refusals_of(sequence: int, response: pb.SendFeedbackResponse) -> list[pb.FeedbackRefusal]:
    """Return the results of a batch that are neither TAKEN nor WAITING."""
    return [
        pb.FeedbackRefusal(sequence=sequence, feedback_index=index, result=found)
        for index, found in enumerate(response.results)
        if found.outcome not in (pb.FEEDBACK_OUTCOME_TAKEN, pb.FEEDBACK_OUTCOME_WAITING)
    ]


def sequence_refusal(field: str, description: str) -> InvalidArgument:
    """Return the refusal of a message that does not follow in its stream."""
    return InvalidRequest([Violation(field, description)], INVALID_FIELD)


def _outcome_violations(message: pb.Feedback) -> Iterator[Violation]:
    match message.WhichOneof("outcome"):
        case "label":
            yield from _label_violations(message.label)
            if message.metric:
                yield Violation("metric", f"want none with a label, got {echo(message.metric)}")
        case "reward":
            if not math.isfinite(message.reward):
                yield Violation("reward", f"want a finite number, got {message.reward}")
        case _:
            yield Violation("label", "want a label or a reward, got none")


def _label_violations(label: value_pb.FeatureValue) -> Iterator[Violation]:
    value = scalar_from_proto(label)
    if value is None:
        yield Violation("label", "want a class index, a class name or a number, got null, a list or nothing")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Violation("label", f"want a finite number, got {value}")
    elif isinstance(value, str) and not 1 <= len(value) <= _TEXT_LIMIT_CHARS:
        yield Violation("label", f"want 1 to {_TEXT_LIMIT_CHARS} characters, got {len(value)}")


def _text_violations(message: pb.Feedback) -> Iterator[Violation]:
    size = len(message.metric.encode())
    if size > _METRIC_LIMIT_BYTES:
        yield Violation("metric", f"want at most {_METRIC_LIMIT_BYTES} bytes, got {size}")
    if len(message.source) > _SOURCE_LIMIT_CHARS:
        yield Violation("source", f"want at most {_SOURCE_LIMIT_CHARS} characters, got {len(message.source)}")
    if any("\0" in text for text in (message.metric, message.source, message.label.string_value)):
        yield Violation("feedback", "want texts without a zero character, got one with it")
