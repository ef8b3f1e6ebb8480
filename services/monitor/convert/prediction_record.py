"""Logged predictions as records of the contract, and what is asked of the log."""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from interlock.monitor.v1 import prediction_event_pb2 as event_pb
from interlock.monitor.v1 import prediction_log_service_pb2 as pb
from interlock.router.v1 import prediction_pb2
from interlock.types.v1 import feature_value_pb2 as value_pb

from services.common.errors import Violation, echo
from services.common.names import VERSION, id_violation
from services.common.pagination import Page, parse_page
from services.common.refusals import refuse
from services.monitor.convert.feedback import id_from_text
from services.monitor.convert.time import duration_to_proto, time_from_proto, time_to_proto
from services.monitor.convert.value import scalar_to_proto
from services.monitor.domain.log_question import EVER_US, LoggedPrediction, LogQuestion, PageQuestion
from services.monitor.domain.log_table import FEATURE_PREFIX

_HOUR_US: Final = 3_600_000_000
_SQL_LIMIT_CHARS: Final = 20_000
_DEFAULT_ROWS: Final = 10_000
_MOST_ROWS: Final = 10_000_000
_LAST_ID: Final = b"\xff" * 16


def prediction_id_from_proto(request: pb.GetPredictionRecordRequest) -> bytes:
    """Return the id asked for; raises InvalidRequest."""
    found = id_from_text(request.prediction_id)
    if found is None:
        refuse([Violation("prediction_id", f"want a UUIDv7, got {echo(request.prediction_id)}")])
    return found or b""


def page_from_proto(request: pb.ListPredictionRecordsRequest, now_us: int) -> tuple[PageQuestion, Page]:
    """Return what is asked for, and the page that makes tokens; raises InvalidArgument."""
    refuse([*_name_violations(request), *_time_violations(request)])
    filters = {
        name: str(getattr(request, name)) for name in ("model", "version", "variant", "errors_only", "labelled_only")
    }
    filters |= {name: str(_time(getattr(request, name), 0)) for name in ("start_time", "end_time")}
    page = parse_page(request.page_size, request.page_token, filters)
    end_us = _time(request.end_time, EVER_US) if request.HasField("end_time") else EVER_US
    newest_us = end_us if request.HasField("end_time") else now_us
    start_us = _time(request.start_time, 0) if request.HasField("start_time") else newest_us - _HOUR_US
    # Without one, the first page and those after it begin at different times: it is part of the token.
    before, _, begun = page.after.partition("|")
    question = PageQuestion(
        model=request.model,
        version=request.version,
        variant=request.variant,
        start_us=max(int(begun), 0) if begun else max(start_us, 0),
        end_us=end_us,
        errors_only=request.errors_only,
        labelled_only=request.labelled_only,
        size=page.size,
        before=bytes.fromhex(before) if before else _LAST_ID,
    )
    return question, page


def next_token(question: PageQuestion, page: Page, found: list[LoggedPrediction]) -> str:
    """Return the token of the page after, empty when this was the last."""
    if len(found) < question.size:
        return ""
    return page.next_token(f"{found[-1].prediction_id.hex()}|{question.start_us}")


def question_from_proto(request: pb.QueryPredictionLogRequest) -> LogQuestion:
    """Return a query; raises InvalidRequest."""
    wrong = list(_time_violations(request))
    size, rows = len(request.sql), request.max_row_count
    if not 1 <= size <= _SQL_LIMIT_CHARS:
        wrong.append(Violation("sql", f"want 1 to {_SQL_LIMIT_CHARS} characters, got {size}"))
    if not 0 <= rows <= _MOST_ROWS:
        wrong.append(Violation("max_row_count", f"want 0 (default {_DEFAULT_ROWS}) to {_MOST_ROWS}, got {rows}"))
    if request.model:
        found = id_violation(request.model, "model")
        wrong += [found] if found is not None else []
    refuse(wrong)
    return LogQuestion(
        sql=request.sql,
        model=request.model,
        start_us=_time(request.start_time, 0) if request.HasField("start_time") else 0,
        end_us=_time(request.end_time, EVER_US) if request.HasField("end_time") else EVER_US,
        max_row_count=rows or _DEFAULT_ROWS,
    )


def record_to_proto(logged: LoggedPrediction) -> pb.PredictionRecord:
    """Return a record."""
    row, feedback = logged.row, logged.feedback
    made_us = int.from_bytes(logged.prediction_id[:6], "big") * 1000
    features = {
        name.removeprefix(FEATURE_PREFIX): scalar_to_proto(value)
        for name, value in row.items()
        if name.startswith(FEATURE_PREFIX)
    }
    record = pb.PredictionRecord(
        prediction=_prediction(logged) if row["status"] == Code.OK else None,
        prediction_id=str(UUID(bytes=logged.prediction_id)),
        model_version=VERSION.format(row["model"], row["version"]) if row["version"] else "",
        model_digest=row["model_digest"] or "",
        environment=row["environment"] or "",
        variant=row["variant"] or "",
        bucket=row["bucket"],
        principal=row["principal"] or "",
        prediction_time=time_to_proto(made_us),
        features=features,
        feature_event_times={name: _stamp(when) for name, when in row["feature_event_times"] or ()},
        error=Status(code=row["status"], message=Code.Name(row["status"])) if row["status"] != Code.OK else None,
        sampling_weight=row["sampling_weight"],
        rewards=feedback.rewards,
        entities=dict(row["entities"] or ()),
        feature_read_time=_stamp(row["feature_read_time"]) if row["feature_read_time"] else None,
        missing_features={
            name: event_pb.MissingReason.Value(f"MISSING_REASON_{reason}")
            for name, reason in row["missing_features"] or ()
        },
    )
    if feedback.event_us is not None:
        record.label.CopyFrom(_label(logged))
        record.label_delay.CopyFrom(duration_to_proto(max(feedback.event_us - made_us, 0)))
    return record


def _prediction(logged: LoggedPrediction) -> prediction_pb2.Prediction:
    row = logged.row
    found = prediction_pb2.Prediction(
        prediction_id=str(UUID(bytes=logged.prediction_id)),
        label=row.get("predicted_label"),
        confidence=row.get("confidence"),
        latency_ms=row["latency_us"] / 1000,
        model_version=row["version"] or "",
        variant=row["variant"] or "",
        cached=row["cached"],
        probabilities=row.get("probabilities") or (),
        config_epoch=row["epoch"],
        missing_features=[name for name, _ in row["missing_features"] or ()],
    )
    value = row.get("prediction")
    if value is not None:
        found.prediction.CopyFrom(scalar_to_proto(value if row.get("predicted_label") is None else int(value)))
    return found


def _label(logged: LoggedPrediction) -> value_pb.FeatureValue:
    """Return the label as it was sent; the index of a class is a whole number."""
    feedback = logged.feedback
    if feedback.text is not None or feedback.number is None:
        return scalar_to_proto(feedback.text)
    is_class = logged.row.get("predicted_label") is not None and feedback.number.is_integer()
    return scalar_to_proto(int(feedback.number) if is_class else feedback.number)


def _stamp(when: Any) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(when)
    return found


def _name_violations(request: pb.ListPredictionRecordsRequest) -> Iterator[Violation]:
    names: Mapping[str, str] = {"model": request.model, "version": request.version, "variant": request.variant}
    for field, value in names.items():
        wrong = id_violation(value, field) if value or field == "model" else None
        if wrong is not None:
            yield wrong


def _time_violations(request: pb.ListPredictionRecordsRequest | pb.QueryPredictionLogRequest) -> Iterator[Violation]:
    for field in ("start_time", "end_time"):
        if time_from_proto(getattr(request, field)) is None:
            yield Violation(field, "want a time of the years 1 to 9999, got another")
    both = request.HasField("start_time") and request.HasField("end_time")
    if both and _time(request.start_time, 0) >= _time(request.end_time, 0):
        yield Violation("end_time", "want a time after start_time, got an earlier one")


def _time(stamp: Timestamp, default: int) -> int:
    """Return microseconds since 1970, not before it; ids cannot say more."""
    found = time_from_proto(stamp)
    return default if found is None else max(found, 0)
