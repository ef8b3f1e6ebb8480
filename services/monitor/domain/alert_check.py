"""Checks of alert rules and silences."""

import math
from collections.abc import Collection, Iterator
from typing import Final

from services.common.errors import Violation, echo
from services.common.names import id_violation
from services.common.text_check import check_text
from services.monitor.domain.alert import LOG_SINK, AlertRule, Condition, Silence
from services.monitor.domain.alert_metric import BY_FEATURE, KNOWN_METRICS, Source, source_of
from services.monitor.domain.policy import DAY_US, SECOND_US

LONGEST_US: Final = 90 * DAY_US
FEATURE_LIMIT: Final = 500
SINK_LIMIT: Final = 16
ANNOTATION_LIMIT_CHARS: Final = 4_000
REASON_LIMIT_CHARS: Final = 1_000
_FEATURE_LIMIT_CHARS: Final = 256


def check_rule(rule: AlertRule, sinks: Collection[str], path: str) -> Iterator[Violation]:
    """Yield everything that is wrong with a rule, an unknown metric first; `sinks` are the configured ones."""
    is_known = rule.metric in KNOWN_METRICS
    if not is_known:
        yield Violation(f"{path}.metric", f"want one of {', '.join(KNOWN_METRICS)}; got {echo(rule.metric)}")
    for name, value in (("model", rule.model), ("environment", rule.environment), ("slice", rule.slice_name)):
        wrong = id_violation(value, f"{path}.{name}") if value else None
        if wrong is not None:
            yield wrong
    yield from _check_features(rule, path, is_known=is_known)
    if is_known and source_of(rule.metric) is Source.DATA_QUALITY and rule.condition is Condition.BELOW:
        yield Violation(f"{path}.condition", f"want ALERT_CONDITION_ABOVE for {rule.metric}, got ALERT_CONDITION_BELOW")
    if not math.isfinite(rule.limit):
        yield Violation(f"{path}.limit", f"want a finite number, got {rule.limit}")
    if not 0 <= rule.for_us <= LONGEST_US:
        yield Violation(f"{path}.for_duration", f"want 0 to 90 days, got {rule.for_us / SECOND_US:g} s")
    if rule.minimum_count < 1:
        yield Violation(f"{path}.minimum_count", f"want at least 1, got {rule.minimum_count}")
    yield from _check_sinks(rule, sinks, f"{path}.sinks")
    yield from check_text(rule.annotation, f"{path}.annotation", ANNOTATION_LIMIT_CHARS)


def check_silence(silence: Silence, now_us: int, path: str) -> Iterator[Violation]:
    """Yield everything that is wrong with a silence."""
    for name, value in (("rule", silence.rule), ("model", silence.model)):
        wrong = id_violation(value, f"{path}.{name}") if value else None
        if wrong is not None:
            yield wrong
    if not silence.rule and not silence.model:
        yield Violation(f"{path}.rule", "want a rule or a model, got neither")
    yield from check_text(silence.feature, f"{path}.feature", _FEATURE_LIMIT_CHARS)
    yield from check_text(silence.reason, f"{path}.reason", REASON_LIMIT_CHARS, required=True)
    if silence.end_us <= max(now_us, silence.start_us):
        yield Violation(f"{path}.end_time", "want a time to come, after start_time; got one that is over or before it")
    elif silence.end_us - silence.start_us > LONGEST_US:
        days = (silence.end_us - silence.start_us) / DAY_US
        yield Violation(f"{path}.end_time", f"want at most 90 days after start_time, got {days:g}")


def _check_features(rule: AlertRule, path: str, *, is_known: bool) -> Iterator[Violation]:
    if is_known and rule.features and source_of(rule.metric) not in BY_FEATURE:
        yield Violation(f"{path}.features", f"want none, for {rule.metric} has no value by feature; got some")
    if len(rule.features) > FEATURE_LIMIT:
        yield Violation(f"{path}.features", f"want at most {FEATURE_LIMIT}, got {len(rule.features)}")
    for index, name in enumerate(rule.features[:FEATURE_LIMIT]):
        yield from check_text(name, f"{path}.features[{index}]", _FEATURE_LIMIT_CHARS, required=True)


def _check_sinks(rule: AlertRule, sinks: Collection[str], path: str) -> Iterator[Violation]:
    if len(rule.sinks) > SINK_LIMIT:
        yield Violation(path, f"want at most {SINK_LIMIT}, got {len(rule.sinks)}")
    known = ", ".join(sorted({LOG_SINK, *sinks}))
    for index, name in enumerate(rule.sinks[:SINK_LIMIT]):
        if name != LOG_SINK and name not in sinks:
            yield Violation(f"{path}[{index}]", f"want a sink of the monitor's settings ({known}), got {echo(name)}")
        elif name in rule.sinks[:index]:
            yield Violation(f"{path}[{index}]", f"want each sink once, got {echo(name)} again")
