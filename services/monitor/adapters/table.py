"""The tables of the monitor. `METADATA` is whole once this module is imported."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
)

from services.common.database import TEXT

METADATA: Final = MetaData()

# Every change of a policy, for windows keep the policy that they began with. The highest revision is the current one.
POLICY: Final = Table(
    "monitoring_policy",
    METADATA,
    Column("model", TEXT, nullable=False),
    Column("revision", BigInteger, nullable=False),
    # Prediction time, microseconds, from which on it holds for windows.
    Column("from_us", BigInteger, nullable=False),
    Column("update_us", BigInteger, nullable=False),
    Column("etag", TEXT, nullable=False),
    Column("request_id", TEXT, nullable=False),
    # JSON.
    Column("body", TEXT, nullable=False),
    PrimaryKeyConstraint("model", "revision"),
    Index("monitoring_policy_by_request", "request_id"),
)


def _window_table(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("model", TEXT, nullable=False),
        Column("version", TEXT, nullable=False),
        Column("environment", TEXT, nullable=False),
        # Empty: everything.
        Column("slice", TEXT, nullable=False),
        # Empty: pinned.
        Column("variant", TEXT, nullable=False),
        Column("start_us", BigInteger, nullable=False),
        Column("end_us", BigInteger, nullable=False),
        Column("update_us", BigInteger, nullable=False),
        Column("body", LargeBinary, nullable=False),
        PrimaryKeyConstraint("model", "version", "environment", "slice", "variant", "start_us", "end_us"),
        Index(f"{name}_by_end", "end_us"),
        Index(f"{name}_by_model", "model", "environment", "end_us"),
    )


# What predictions looked like, window by window.
ANALYSIS_WINDOW: Final = _window_table("analysis_window")
# What became of them once labels came.
QUALITY_WINDOW: Final = _window_table("quality_window")

# What had drifted in a window, so that it does not pass for usual later.
WINDOW_VERDICT: Final = Table(
    "window_verdict",
    METADATA,
    Column("model", TEXT, nullable=False),
    Column("version", TEXT, nullable=False),
    Column("environment", TEXT, nullable=False),
    Column("slice", TEXT, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    # JSON: names.
    Column("drifted", TEXT, nullable=False),
    PrimaryKeyConstraint("model", "version", "environment", "slice", "start_us", "end_us"),
)

# How far something has been taken, in the same transaction as what came of it: that is how nothing counts twice.
POSITION: Final = Table(
    "monitor_position",
    METADATA,
    Column("name", TEXT, nullable=False),
    Column("value", BigInteger, nullable=False),
    PrimaryKeyConstraint("name"),
)

# What became of predictions. A row is one label (the metric is empty) or one reward; the newest event time holds.
LABEL: Final = Table(
    "label",
    METADATA,
    Column("prediction_id", LargeBinary, nullable=False),
    Column("metric", TEXT, nullable=False),
    # As it was sent: a number, or a text.
    Column("number", Double),
    Column("text", TEXT),
    Column("event_us", BigInteger, nullable=False),
    Column("source", TEXT, nullable=False),
    # When this value came, microseconds by the clock.
    Column("receive_us", BigInteger, nullable=False),
    # Rises with every change of the above.
    Column("revision", BigInteger, nullable=False),
    # A LabelState.
    Column("state", SmallInteger, nullable=False),
    # When to look for its prediction next, microseconds by the clock.
    Column("due_us", BigInteger, nullable=False),
    # Of the prediction, once it was found.
    Column("model", TEXT, nullable=False, server_default=""),
    Column("version", TEXT, nullable=False, server_default=""),
    Column("variant", TEXT, nullable=False, server_default=""),
    # Class index or number, and the name of the class.
    Column("value", Double),
    Column("name", TEXT),
    # What was handed over last, and what is being handed over: batch, and the state of the row as the batch has it.
    Column("joined_value", Double),
    Column("batch", BigInteger),
    Column("batch_value", Double),
    Column("batch_event_us", BigInteger),
    Column("batch_revision", BigInteger),
    PrimaryKeyConstraint("prediction_id", "metric"),
    Index("label_by_due", "state", "due_us"),
    Index("label_by_batch", "batch"),
    Index("label_by_model", "model", "prediction_id"),
)

# Answers to SendFeedback with a request id, for a day.
FEEDBACK_ANSWER: Final = Table(
    "feedback_answer",
    METADATA,
    Column("request_id", TEXT, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("request_id"),
    Index("feedback_answer_by_create", "create_us"),
)

# Reports for people, with their content.
REPORT: Final = Table(
    "report",
    METADATA,
    # Rises with time.
    Column("report_id", TEXT, nullable=False),
    Column("model", TEXT, nullable=False),
    # JSON: the scope as it was asked for.
    Column("request", TEXT, nullable=False),
    Column("format", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("creator", TEXT, nullable=False),
    Column("request_id", TEXT, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Column("error_code", SmallInteger, nullable=False),
    Column("error_message", TEXT, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("content", LargeBinary),
    PrimaryKeyConstraint("report_id"),
    Index("report_by_model", "model", "report_id"),
    Index("report_by_request", "request_id"),
    Index("report_by_state", "state"),
    Index("report_by_create", "create_us"),
)

# Rules of alerts.
ALERT_RULE: Final = Table(
    "alert_rule",
    METADATA,
    Column("name", TEXT, nullable=False),
    # In lower case: two names that differ only in case are one.
    Column("folded_name", TEXT, nullable=False),
    # Empty: every model.
    Column("model", TEXT, nullable=False),
    Column("etag", TEXT, nullable=False),
    # JSON.
    Column("body", TEXT, nullable=False),
    PrimaryKeyConstraint("name"),
    Index("alert_rule_by_folded_name", "folded_name", unique=True),
)

# Alerts. Ids rise with time.
ALERT: Final = Table(
    "alert",
    METADATA,
    Column("name", TEXT, nullable=False),
    # Rule and subject while it is open, null once it is resolved: there is one open alert for each.
    Column("open_key", TEXT),
    Column("rule", TEXT, nullable=False),
    Column("model", TEXT, nullable=False),
    Column("version", TEXT, nullable=False),
    Column("environment", TEXT, nullable=False),
    Column("slice", TEXT, nullable=False),
    Column("feature", TEXT, nullable=False),
    # An AlertState.
    Column("state", SmallInteger, nullable=False),
    Column("value", Double, nullable=False),
    # Prediction time, microseconds: begin of the first window, end of the last one.
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    # By the clock.
    Column("fire_us", BigInteger),
    Column("resolve_us", BigInteger),
    # The rule as it was when the alert was last evaluated, JSON.
    Column("rule_body", TEXT, nullable=False),
    PrimaryKeyConstraint("name"),
    Index("alert_by_open_key", "open_key", unique=True),
    Index("alert_by_rule", "rule", "state"),
    Index("alert_by_state", "state", "name"),
)

# What sinks are to be told about alerts.
ALERT_DELIVERY: Final = Table(
    "alert_delivery",
    METADATA,
    Column("alert", TEXT, nullable=False),
    Column("sink", TEXT, nullable=False),
    # "firing" or "resolved".
    Column("event", TEXT, nullable=False),
    # When to send it next, or until when somebody is sending it; null: done.
    Column("due_us", BigInteger),
    Column("create_us", BigInteger, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    # 1: a silence once kept it back.
    Column("held", SmallInteger, nullable=False),
    Column("delivered_us", BigInteger),
    Column("error", TEXT, nullable=False),
    PrimaryKeyConstraint("alert", "sink", "event"),
    Index("alert_delivery_by_due", "sink", "due_us"),
)

# Silences. Ids rise with time.
SILENCE: Final = Table(
    "silence",
    METADATA,
    Column("name", TEXT, nullable=False),
    # Empty: every.
    Column("rule", TEXT, nullable=False),
    Column("model", TEXT, nullable=False),
    Column("feature", TEXT, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("creator", TEXT, nullable=False),
    PrimaryKeyConstraint("name"),
    Index("silence_by_end", "end_us"),
)

# Answers to changes of rules and silences with a request id, for a day.
CHANGE_ANSWER: Final = Table(
    "change_answer",
    METADATA,
    Column("request_id", TEXT, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    # JSON of the resource.
    Column("body", TEXT, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("request_id"),
    Index("change_answer_by_create", "create_us"),
)
