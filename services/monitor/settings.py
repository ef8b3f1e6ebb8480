"""What the monitor reads from the environment."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PositiveFloat, PositiveInt, SecretStr, field_validator

from services.common.names import ID_RULE, is_id
from services.common.settings import CommonSettings


class WebhookSettings(BaseModel):
    """A sink of alerts that gets JSON over HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["webhook"]
    url: HttpUrl
    secret: Annotated[SecretStr, Field(min_length=16)]
    """What the signature is made with."""


class AlertmanagerSettings(BaseModel):
    """A sink of alerts that speaks Alertmanager's API version 2."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["alertmanager"]
    url: HttpUrl
    """Without /api/v2."""
    bearer_token: SecretStr = SecretStr("")


AlertSinkSettings = Annotated[WebhookSettings | AlertmanagerSettings, Field(discriminator="kind")]


class Settings(CommonSettings):
    """Settings of the monitor."""

    prediction_count_limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    """Combinations of model, version and variant that are counted apart; further ones share one count."""

    monitor_database_url: str = ""
    """SQLAlchemy URL, sqlite:///<file> or postgresql://<user>@<host>/<database>. Empty: a file in the state folder."""
    monitor_database_statement_timeout_s: PositiveFloat = 5.0
    """Longest that one statement, a lock or a free connection is waited for. Seconds."""
    monitor_intake_limit_bytes: PositiveInt = 64 * 1024 * 1024
    """Prediction events that wait to be decoded. Bytes; what does not fit is dropped and counted."""
    monitor_sink_limit_rows: PositiveInt = 100_000
    """Decoded predictions that wait for the log, or for the windows; what does not fit is dropped and counted."""
    monitor_log_uri: str = ""
    """fsspec URL of the folder of the prediction log. Empty: a folder in the state folder."""
    monitor_log_flush_rows: PositiveInt = 100_000
    """Predictions after which the log is written before its time. Four times as many are held while it cannot be."""
    monitor_log_flush_interval_s: PositiveFloat = 5.0
    """How often the log is written. Seconds; what is newer is in the journal of the state folder."""
    monitor_log_housekeeping_interval_s: PositiveFloat = 60.0
    """How often closed hours of the log are merged, and those past their time removed. Seconds."""
    monitor_query_memory_bytes: PositiveInt = 256 * 1024 * 1024
    """Memory of one query over the log; beyond it the query goes to the disk, up to four times as much. Bytes."""
    monitor_query_timeout_s: PositiveFloat = 60.0
    """Longest time that a query over the log may compute. Seconds."""
    monitor_query_limit: PositiveInt = 2
    """Queries over the log that run at a time; more are refused."""
    monitor_feedback_queue_limit: PositiveInt = 20_000
    """Labels and rewards that wait to be written; more are refused."""
    monitor_label_join_interval_s: PositiveFloat = 1.0
    """How often labels are joined with their predictions. Seconds."""
    monitor_window_interval_s: PositiveFloat = 5.0
    """How often what came in is added to the windows in the database. Seconds; what is newer comes from the log after a crash."""
    monitor_sketch_limit: PositiveInt = 10_000
    """Sketches, one for each feature and output of a window, that are held in memory until they are added; 5 to 35 KB each."""
    monitor_window_retention_s: PositiveFloat = 90 * 24 * 3600.0
    """How long windows are kept. Seconds; a prediction older than that is not analysed."""
    monitor_standing_interval_s: PositiveFloat = 30.0
    """How often versions that had predictions lately are judged, for /metrics. Seconds."""
    monitor_feature_limit: PositiveInt = 500
    """Features and outputs of one version that are analysed; further ones are left out, which is logged."""
    monitor_alert_interval_s: PositiveFloat = 10.0
    """How often alert rules are evaluated. Seconds."""
    monitor_alert_sinks: dict[str, AlertSinkSettings] = Field(default_factory=dict)
    """Whom alerts are told, beside "log", as JSON by name: {"pager": {"kind": "webhook", "url": "...", "secret": "..."}}."""
    monitor_alert_timeout_s: PositiveFloat = 5.0
    """Longest that a sink of alerts is waited for. Seconds."""
    monitor_alert_resend_s: PositiveFloat = 60.0
    """How often an Alertmanager is told again of an alert that fires. Seconds; four times that without, and it is over."""

    @field_validator("monitor_alert_sinks")
    @classmethod
    def _named(cls, sinks: dict[str, AlertSinkSettings]) -> dict[str, AlertSinkSettings]:
        for name in sinks:
            if not is_id(name) or name == "log":
                raise ValueError(f"want names other than log of {ID_RULE}, got {name!r}")
        return sinks

    @property
    def monitor_database(self) -> str:
        """URL of the database."""
        return self.monitor_database_url or f"sqlite:///{self.state_dir.absolute() / 'monitor' / 'monitor.db'}"

    @property
    def monitor_log(self) -> str:
        """URL of the folder of the prediction log."""
        return self.monitor_log_uri or f"file://{self.state_dir.absolute() / 'monitor' / 'log'}"
