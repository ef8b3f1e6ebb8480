"""Telling sinks about alerts: what is told when, and how long it is tried. No I/O, no clock."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from services.monitor.domain.alert import Alert, AlertRule, AlertState
from services.monitor.domain.policy import DAY_US, SECOND_US

GIVE_UP_US: Final = DAY_US
"""How long a notification is tried."""
_FIRST_WAIT_US: Final = SECOND_US
_LONGEST_WAIT_US: Final = 300 * SECOND_US
SIGNATURE_VERSION: Final = "v1"


class Event(StrEnum):
    """What a sink is told."""

    FIRING = "firing"
    RESOLVED = "resolved"


class Step(StrEnum):
    """What becomes of a notification that is due."""

    SEND = "send"
    WAIT = "wait"
    HOLD = "hold"
    """Wait because of a silence."""
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notification: an alert, a sink, an event."""

    alert: Alert
    sink: str
    event: Event
    due_us: int | None
    """When to send it next; None: done."""
    create_us: int = 0
    attempts: int = 0
    """Failed ones since the last success."""
    is_held: bool = False
    """Whether a silence once kept it from being sent."""
    delivered_us: int | None = None
    error: str = ""

    @property
    def id(self) -> str:
        """The same at every attempt, so that a receiver can tell a repetition."""
        return f"{self.alert.name}-{self.event}"


def next_step(delivery: Delivery, firing: Delivery, *, is_silenced: bool) -> Step:
    """Return what to do with a notification that is due; `firing` is that of the same alert and sink.

    The sink hears that an alert is resolved only if it heard that it fires, and in that order. What a silence kept back
    is not told once it is over.
    """
    if delivery.event is Event.FIRING:
        is_over = delivery.alert.state is AlertState.RESOLVED
        if is_over and (delivery.is_held or delivery.delivered_us is not None):
            return Step.DROP
        return Step.HOLD if is_silenced else Step.SEND
    if firing.delivered_us is None:
        return Step.DROP if firing.due_us is None else Step.WAIT
    return Step.HOLD if is_silenced else Step.SEND


def wait_us(attempts: int, draw: float) -> int:
    """Return how long to wait after some failed attempts: exponential, with full jitter from `draw`, 0 to 1."""
    longest = min(_LONGEST_WAIT_US, _FIRST_WAIT_US * 2 ** min(attempts, 20))
    return int(longest * (0.5 + draw / 2))


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a webhook: HMAC-SHA-256 of the Unix time in seconds, a dot, and the body."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"{SIGNATURE_VERSION}={digest}"


def webhook_body(delivery: Delivery) -> bytes:
    """Return what a webhook gets: JSON."""
    content = {"id": delivery.id, "event": delivery.event.value, **alert_facts(delivery.alert)}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def alert_facts(alert: Alert) -> dict[str, Any]:
    """Return an alert and its rule as JSON has them, with the contract's words."""
    rule = alert.rule
    return {
        "alert": {
            "name": f"alerts/{alert.name}",
            "model_version": f"models/{alert.subject.model}/versions/{alert.subject.version}",
            "environment": alert.subject.environment,
            "slice": alert.subject.slice_name,
            "feature": alert.subject.feature,
            "state": alert.state.name,
            "severity": rule.severity.name,
            "value": alert.value,
            "limit": rule.limit,
            "start_time": iso_time(alert.start_us),
            "fire_time": None if alert.fire_us is None else iso_time(alert.fire_us),
            "resolve_time": None if alert.resolve_us is None else iso_time(alert.resolve_us),
        },
        "rule": {
            "name": f"alertRules/{rule.name}",
            "metric": rule.metric,
            "condition": rule.condition.name,
            "annotation": rule.annotation,
        },
    }


def alertmanager_alerts(deliveries: Sequence[Delivery], now_us: int, resend_us: int) -> list[dict[str, Any]]:
    """Return the body of POST /api/v2/alerts of Alertmanager.

    A firing alert ends four resends from now, so one that nobody repeats is over by itself.
    """
    return [
        {
            "labels": _labels(delivery.alert),
            "annotations": {
                "summary": summary(delivery.alert),
                "description": delivery.alert.rule.annotation,
                "value": f"{delivery.alert.value:g}",
                "alert": f"alerts/{delivery.alert.name}",
            },
            "startsAt": iso_time(delivery.alert.fire_us or now_us),
            "endsAt": iso_time(
                now_us + 4 * resend_us
                if delivery.event is Event.FIRING
                else max(delivery.alert.resolve_us or now_us, (delivery.alert.fire_us or 0) + 1000)
            ),
        }
        for delivery in deliveries
    ]


def summary(alert: Alert) -> str:
    """Return an alert in a sentence."""
    rule, subject = alert.rule, alert.subject
    where = f" of {subject.feature}" if subject.feature else ""
    part = f" in {subject.slice_name}" if subject.slice_name else ""
    return (
        f"{rule.metric}{where} is {alert.value:.4g}, {rule.condition} {rule.limit:g}: "
        f"models/{subject.model}/versions/{subject.version} in {subject.environment}{part}"
    )


def iso_time(time_us: int) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    return datetime.fromtimestamp(time_us / SECOND_US, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _labels(alert: Alert) -> Mapping[str, str]:
    rule: AlertRule = alert.rule
    labels = {
        "alertname": rule.name,
        "severity": rule.severity.name.lower(),
        "metric": rule.metric,
        "model": alert.subject.model,
        "version": alert.subject.version,
        "environment": alert.subject.environment,
        "slice": alert.subject.slice_name,
        "feature": alert.subject.feature,
    }
    # A label without a value is one that is not there.
    return {name: value for name, value in labels.items() if value}
