"""Alerts: what a rule says, what an alert is, and how it goes from pending to firing to resolved. No I/O, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Final

from services.monitor.domain.scope import DEFAULT_ENVIRONMENT

DEFAULT_MINIMUM_COUNT: Final = 100
LOG_SINK: Final = "log"
"""The sink that is always there."""


class Condition(StrEnum):
    """How a value is held against the limit."""

    ABOVE = "above"
    BELOW = "below"


class Severity(IntEnum):
    """How bad it is; numbers are those of the contract."""

    INFO = 1
    WARNING = 2
    CRITICAL = 3


class AlertState(IntEnum):
    """State of an alert; numbers are those of the contract."""

    PENDING = 1
    FIRING = 2
    RESOLVED = 3


@dataclass(frozen=True, slots=True)
class AlertRule:
    """Says when somebody is to be told."""

    name: str
    """Id."""
    metric: str
    condition: Condition
    limit: float
    model: str = ""
    """Empty: every model."""
    environment: str = DEFAULT_ENVIRONMENT
    slice_name: str = ""
    features: tuple[str, ...] = ()
    """Empty: all."""
    require_interval: bool = True
    for_us: int = 0
    minimum_count: int = DEFAULT_MINIMUM_COUNT
    severity: Severity = Severity.WARNING
    sinks: tuple[str, ...] = (LOG_SINK,)
    annotation: str = ""
    enabled: bool = True
    create_us: int = 0
    update_us: int = 0
    etag: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What an alert is about, beside its rule: there is one alert at a time for each."""

    model: str
    version: str
    environment: str
    slice_name: str = ""
    feature: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a window says about one subject."""

    value: float
    is_met: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one window of a version says: observations by feature. A feature that is not named does not meet it."""

    start_us: int
    end_us: int
    observations: Mapping[str, Observation]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule's metric says about a version: judged windows, the oldest first; none means that nobody knows."""

    judgements: Sequence[Judgement] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """One occasion on which a rule applied."""

    name: str
    """Id; empty for one that is new."""
    rule: AlertRule
    """As it was when the alert was last evaluated."""
    subject: Subject
    state: AlertState
    value: float
    start_us: int
    """Begin of the window in which the condition was first met."""
    end_us: int
    """End of the last window that was judged."""
    fire_us: int | None = None
    resolve_us: int | None = None
    deliveries: Mapping[str, int] = field(default_factory=dict)
    """When each sink was told last."""
    delivery_errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it is pending or firing."""
        return self.state is not AlertState.RESOLVED


@dataclass(frozen=True, slots=True)
class Changes:
    """What an evaluation changes: alerts that are new or different, and pending ones that are forgotten."""

    put: tuple[Alert, ...] = ()
    forget: tuple[Alert, ...] = ()


@dataclass(frozen=True, slots=True)
class Silence:
    """Keeps alerts quiet for a time."""

    name: str
    """Id."""
    start_us: int
    end_us: int
    reason: str
    creator: str
    rule: str = ""
    model: str = ""
    feature: str = ""
    """Empty: every."""

    def covers(self, alert: Alert, now_us: int) -> bool:
        """Return whether the alert is quiet now."""
        pairs = (
            (self.rule, alert.rule.name),
            (self.model, alert.subject.model),
            (self.feature, alert.subject.feature),
        )
        return self.start_us <= now_us < self.end_us and all(mine in ("", theirs) for mine, theirs in pairs)


def silence_of(alert: Alert, silences: Sequence[Silence], now_us: int) -> str:
    """Return the id of a silence that keeps an open alert quiet; empty: none."""
    return next((found.name for found in silences if found.covers(alert, now_us)), "")


def judge(
    rule: AlertRule, alerts: Sequence[Alert], verdicts: Mapping[tuple[str, str, str], Verdict], now_us: int
) -> Changes:
    """Return what becomes of the open alerts of a rule, and which new ones there are.

    `verdicts` are by model, version and environment. What has none is no longer watched by the rule: its alerts are
    resolved. A verdict without judgements leaves them as they are.
    """
    open_alerts = {alert.subject: alert for alert in alerts if alert.is_open}
    put: list[Alert] = []
    forget: list[Alert] = []
    for subject in sorted({*open_alerts, *_met(rule, verdicts)}):
        alert = open_alerts.get(subject)
        verdict = verdicts.get((subject.model, subject.version, subject.environment))
        is_watched = verdict is not None and subject.slice_name == rule.slice_name and rule.enabled
        steps = _steps(rule, alert, verdict, subject, now_us) if is_watched and verdict else [_ended(alert, now_us)]
        for found in steps:
            if found is None:
                continue
            # A pending one that is over was never told to anybody.
            if not found.is_open and found.fire_us is None:
                if found.name:
                    forget.append(found)
            else:
                put.append(found)
    return Changes(tuple(found for found in put if found != open_alerts.get(found.subject)), tuple(forget))


def advance(rule: AlertRule, alert: Alert | None, seen: Judgement, subject: Subject, now_us: int) -> Alert | None:
    """Return an alert after one window; None: there is none. A window older than the last one judged says nothing new.

    A condition must have held for the rule's duration, from the begin of the first window to the end of this one.
    """
    if alert is not None and seen.end_us < alert.end_us:
        return alert
    observation = seen.observations.get(subject.feature)
    if observation is None or not observation.is_met:
        return _ended(alert, now_us, observation)
    if alert is None:
        alert = Alert("", rule, subject, AlertState.PENDING, observation.value, seen.start_us, seen.end_us)
    alert = replace(alert, rule=rule, value=observation.value, end_us=seen.end_us)
    if alert.state is AlertState.PENDING and seen.end_us - alert.start_us >= rule.for_us:
        return replace(alert, state=AlertState.FIRING, fire_us=now_us)
    return alert


def is_beyond(rule: AlertRule, value: float, lower: float, upper: float) -> bool:
    """Return whether an estimate, or all of its interval when the rule wants that, lies beyond the limit."""
    if rule.condition is Condition.ABOVE:
        return (lower if rule.require_interval else value) > rule.limit
    return (upper if rule.require_interval else value) < rule.limit


def _met(rule: AlertRule, verdicts: Mapping[tuple[str, str, str], Verdict]) -> set[Subject]:
    return {
        Subject(*key, rule.slice_name, feature)
        for key, verdict in verdicts.items()
        for judgement in verdict.judgements
        for feature, observation in judgement.observations.items()
        if observation.is_met
    }


def _steps(
    rule: AlertRule, alert: Alert | None, verdict: Verdict, subject: Subject, now_us: int
) -> Sequence[Alert | None]:
    """Return the alerts that some windows leave behind: those that were resolved on the way, and the last."""
    left: list[Alert | None] = []
    for judgement in verdict.judgements:
        found = advance(rule, alert, judgement, subject, now_us)
        if found is not None and not found.is_open:
            left.append(found)
            found = None
        alert = found
    return [*left, alert]


def _ended(alert: Alert | None, now_us: int, observation: Observation | None = None) -> Alert | None:
    if alert is None:
        return None
    value = alert.value if observation is None else observation.value
    return replace(alert, state=AlertState.RESOLVED, value=value, resolve_us=now_us)
