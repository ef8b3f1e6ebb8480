"""Alert rules, alerts and silences between the contract and the domain."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from interlock.monitor.v1 import alert_pb2 as pb
from interlock.monitor.v1 import alert_service_pb2 as service_pb

from services.common.errors import Violation, echo
from services.common.names import VERSION, NameFormat, id_violation
from services.common.refusals import refuse, request_id_of
from services.monitor.convert.time import duration_from_proto, duration_to_proto, time_from_proto, time_to_proto
from services.monitor.domain.alert import (
    LOG_SINK,
    Alert,
    AlertRule,
    AlertState,
    Condition,
    Severity,
    Silence,
    silence_of,
)
from services.monitor.domain.alert_check import check_rule, check_silence
from services.monitor.domain.alert_metric import KNOWN_METRICS, METRIC_GROUPS
from services.monitor.domain.alert_ports import AlertQuery, RequestKey
from services.monitor.domain.failure import UnknownMetric

ALERT_RULE: Final = NameFormat("alertRules/{rule}")
ALERT: Final = NameFormat("alerts/{alert}")
SILENCE: Final = NameFormat("silences/{silence}")
_RULE: Final = "alert_rule"
_SILENCE: Final = "silence"
_CONDITIONS: Final = {pb.ALERT_CONDITION_ABOVE: Condition.ABOVE, pb.ALERT_CONDITION_BELOW: Condition.BELOW}
_STATES: Final = {int(state): state for state in AlertState}
_SEVERITIES: Final = {int(severity): severity for severity in Severity}


@dataclass(frozen=True, slots=True)
class RuleUpdate:
    """What somebody wants changed."""

    name: str
    changes: Mapping[str, Any]
    etag: str

    def applied_to(self, rule: AlertRule, sinks: Collection[str]) -> AlertRule:
        """Return the rule with the changes; raises UnknownMetric, InvalidRequest."""
        wanted = replace(rule, **self.changes)
        refuse_rule(wanted, sinks, ())
        return wanted


def new_rule(request: service_pb.CreateAlertRuleRequest, sinks: Collection[str]) -> AlertRule:
    """Return the rule that a request wants created; raises UnknownMetric, InvalidRequest with every wrong field."""
    wrong: list[Violation] = []
    bad_id = id_violation(request.alert_rule_id, "alert_rule_id")
    if bad_id is not None:
        wrong.append(bad_id)
    values = _values(request.alert_rule, _READ, wrong)
    if "condition" not in values:
        wrong.append(_wrong_condition(pb.ALERT_CONDITION_UNSPECIFIED))
    rule = AlertRule(request.alert_rule_id, **{"metric": "", "condition": Condition.ABOVE, "limit": 0.0, **values})
    refuse_rule(rule, sinks, wrong)
    return rule


def rule_update(request: service_pb.UpdateAlertRuleRequest) -> RuleUpdate:
    """Return what a request wants changed; a field that the mask names and the message leaves out goes to its default."""
    (name,) = ALERT_RULE.parse(request.alert_rule.name, f"{_RULE}.name")
    fields = _masked(request.alert_rule, request.update_mask)
    wrong: list[Violation] = []
    changes = _values(request.alert_rule, fields, wrong)
    if "condition" in fields and "condition" not in changes and not wrong:
        wrong.append(_wrong_condition(pb.ALERT_CONDITION_UNSPECIFIED))
    refuse(wrong)
    return RuleUpdate(name, changes, request.alert_rule.etag)


def refuse_rule(rule: AlertRule, sinks: Collection[str], wrong: Sequence[Violation]) -> None:
    """Raise UnknownMetric or InvalidRequest with what is wrong with a rule, beside what was found before."""
    found = [*check_rule(rule, sinks, _RULE), *wrong]
    if rule.metric not in KNOWN_METRICS:
        raise UnknownMetric(found, METRIC_GROUPS)
    refuse(found)


def rule_to_proto(rule: AlertRule) -> pb.AlertRule:
    """Return a rule with every default in its place."""
    return pb.AlertRule(
        name=ALERT_RULE.format(rule.name),
        model=rule.model,
        environment=rule.environment,
        slice=rule.slice_name,
        metric=rule.metric,
        features=rule.features,
        condition=next(number for number, condition in _CONDITIONS.items() if condition is rule.condition),
        limit=rule.limit,
        require_interval=rule.require_interval,
        for_duration=duration_to_proto(rule.for_us),
        minimum_count=rule.minimum_count,
        severity=pb.AlertSeverity.ValueType(rule.severity),
        sinks=rule.sinks,
        annotation=rule.annotation,
        enabled=rule.enabled,
        create_time=time_to_proto(rule.create_us),
        update_time=time_to_proto(rule.update_us),
        etag=rule.etag,
    )


def alert_to_proto(alert: Alert, silences: Sequence[Silence], now_us: int) -> pb.Alert:
    """Return an alert; an open one with the silence that keeps it quiet."""
    quiet = silence_of(alert, silences, now_us) if alert.is_open else ""
    message = pb.Alert(
        name=ALERT.format(alert.name),
        rule=ALERT_RULE.format(alert.rule.name),
        model_version=VERSION.format(alert.subject.model, alert.subject.version),
        slice=alert.subject.slice_name,
        feature=alert.subject.feature,
        state=pb.AlertState.ValueType(alert.state),
        severity=pb.AlertSeverity.ValueType(alert.rule.severity),
        value=alert.value,
        limit=alert.rule.limit,
        silence=SILENCE.format(quiet) if quiet else "",
        start_time=time_to_proto(alert.start_us),
        delivery_errors=alert.delivery_errors,
    )
    if alert.fire_us is not None:
        message.fire_time.CopyFrom(time_to_proto(alert.fire_us))
    if alert.resolve_us is not None:
        message.resolve_time.CopyFrom(time_to_proto(alert.resolve_us))
    for sink, time_us in alert.deliveries.items():
        message.delivery_times[sink].CopyFrom(time_to_proto(time_us))
    return message


def alert_query(request: service_pb.ListAlertsRequest) -> AlertQuery:
    """Return which alerts a request wants; without states the pending and firing ones."""
    wrong = [
        Violation(f"states[{index}]", f"want PENDING, FIRING or RESOLVED, got the number {state}")
        for index, state in enumerate(request.states)
        if state not in _STATES
    ]
    rule = ""
    if request.rule:
        bad_rule = ALERT_RULE.violation(request.rule, "rule")
        wrong += [bad_rule] if bad_rule else []
        rule = request.rule.partition("/")[2]
    bad_model = id_violation(request.model, "model") if request.model else None
    refuse([*wrong, *([bad_model] if bad_model else [])])
    states = tuple(_STATES[state] for state in request.states) or (AlertState.PENDING, AlertState.FIRING)
    return AlertQuery(states, request.model, rule)


def new_silence(request: service_pb.CreateSilenceRequest, creator: str, now_us: int) -> Silence:
    """Return the silence that a request wants, without an id; raises InvalidRequest with every wrong field."""
    message, wrong = request.silence, list[Violation]()
    rule = ""
    if message.rule:
        bad_rule = ALERT_RULE.violation(message.rule, f"{_SILENCE}.rule")
        wrong += [bad_rule] if bad_rule else []
        # What is malformed is told once, and is a rule all the same.
        rule = message.rule.partition("/")[2] if bad_rule is None else "malformed"
    times = []
    for name in ("start_time", "end_time"):
        time_us = time_from_proto(getattr(message, name)) if message.HasField(name) else now_us
        if time_us is None or (name == "end_time" and not message.HasField(name)):
            wrong.append(Violation(f"{_SILENCE}.{name}", "want a time of the years 1 to 9999, got none"))
        times.append(time_us)
    start_us, end_us = times
    silence = Silence(
        name="",
        start_us=now_us if start_us is None else start_us,
        end_us=now_us if end_us is None else end_us,
        reason=message.reason,
        creator=creator,
        rule=rule,
        model=message.model,
        feature=message.feature,
    )
    named = {violation.field for violation in wrong}
    wrong += [found for found in check_silence(silence, now_us, _SILENCE) if found.field not in named]
    refuse(wrong)
    return silence


def silence_to_proto(silence: Silence) -> pb.Silence:
    """Return a silence."""
    return pb.Silence(
        name=SILENCE.format(silence.name),
        rule=ALERT_RULE.format(silence.rule) if silence.rule else "",
        model=silence.model,
        feature=silence.feature,
        start_time=time_to_proto(silence.start_us),
        end_time=time_to_proto(silence.end_us),
        reason=silence.reason,
        creator=silence.creator,
    )


def request_key(request: Any) -> RequestKey:
    """Return the idempotency key of a change; raises InvalidRequest for one that is no UUID."""
    request_id = request_id_of(request.request_id)
    if not request_id:
        return RequestKey("")
    body: Message = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    content = body.DESCRIPTOR.full_name.encode() + b"\n" + body.SerializeToString(deterministic=True)
    return RequestKey(request_id, hashlib.sha256(content).digest())


def _masked(rule: pb.AlertRule, mask: FieldMask) -> list[str]:
    """Return which fields a mask names: without one those that are set, with "*" all; ours to say are left out."""
    if "*" in mask.paths:
        return list(_READ)
    if not mask.paths:
        present = {descriptor.name for descriptor, _ in rule.ListFields()}
        return [field for field in _READ if field in present]
    unknown = [path for path in mask.paths if path not in pb.AlertRule.DESCRIPTOR.fields_by_name]
    want = f"want fields of a rule such as {', '.join(_READ)}"
    refuse([Violation("update_mask", f"{want}; got {echo(path)}") for path in unknown])
    return [field for field in _READ if field in mask.paths]


def _values(rule: pb.AlertRule, fields: Collection[str], wrong: list[Violation]) -> dict[str, Any]:
    """Return fields as the domain has them; a condition that is none is left out."""
    values = {}
    for field in fields:
        name, read = _READ[field]
        try:
            values[name] = read(rule)
        except _Wrong as error:
            wrong.append(error.violation)
    if "condition" in values and values["condition"] is None:
        del values["condition"]
    return values


class _Wrong(Exception):
    def __init__(self, violation: Violation) -> None:
        super().__init__(violation.description)
        self.violation = violation


def _condition(rule: pb.AlertRule) -> Condition | None:
    if rule.condition == pb.ALERT_CONDITION_UNSPECIFIED:
        return None
    if rule.condition not in _CONDITIONS:
        raise _Wrong(_wrong_condition(rule.condition))
    return _CONDITIONS[rule.condition]


def _wrong_condition(number: int) -> Violation:
    got = "nothing" if number == pb.ALERT_CONDITION_UNSPECIFIED else f"the number {number}"
    return Violation(f"{_RULE}.condition", f"want ALERT_CONDITION_ABOVE or ALERT_CONDITION_BELOW, got {got}")


def _severity(rule: pb.AlertRule) -> Severity:
    if rule.severity == pb.ALERT_SEVERITY_UNSPECIFIED:
        return Severity.WARNING
    if rule.severity not in _SEVERITIES:
        text = f"want ALERT_SEVERITY_INFO, _WARNING or _CRITICAL, got the number {rule.severity}"
        raise _Wrong(Violation(f"{_RULE}.severity", text))
    return _SEVERITIES[rule.severity]


_DEFAULT: Final = AlertRule("", "", Condition.ABOVE, 0.0)


def _optional(field: str, default: object) -> Callable[[pb.AlertRule], Any]:
    return lambda rule: getattr(rule, field) if rule.HasField(field) else default  # type: ignore[arg-type]


_READ: Final[Mapping[str, tuple[str, Callable[[pb.AlertRule], Any]]]] = {
    "model": ("model", lambda rule: rule.model),
    "environment": ("environment", lambda rule: rule.environment or _DEFAULT.environment),
    "slice": ("slice_name", lambda rule: rule.slice),
    "metric": ("metric", lambda rule: rule.metric),
    "features": ("features", lambda rule: tuple(rule.features)),
    "condition": ("condition", _condition),
    "limit": ("limit", lambda rule: rule.limit),
    "require_interval": ("require_interval", _optional("require_interval", _DEFAULT.require_interval)),
    "for_duration": ("for_us", lambda rule: duration_from_proto(rule.for_duration)),
    "minimum_count": ("minimum_count", _optional("minimum_count", _DEFAULT.minimum_count)),
    "severity": ("severity", _severity),
    "sinks": ("sinks", lambda rule: tuple(rule.sinks) or (LOG_SINK,)),
    "annotation": ("annotation", lambda rule: rule.annotation),
    "enabled": ("enabled", _optional("enabled", _DEFAULT.enabled)),
}
