"""Alerts without I/O: states, what a metric says, what a sink is told and when."""

import json
from dataclasses import replace
from typing import Any

import pytest

from services.monitor.domain.alert import (
    Alert,
    AlertRule,
    AlertState,
    Changes,
    Condition,
    Judgement,
    Observation,
    Silence,
    Subject,
    Verdict,
    judge,
    silence_of,
)
from services.monitor.domain.alert_delivery import (
    GIVE_UP_US,
    Delivery,
    Event,
    Step,
    alertmanager_alerts,
    next_step,
    sign,
    wait_us,
    webhook_body,
)
from services.monitor.domain.alert_metric import KNOWN_METRICS, observe
from services.monitor.domain.drift import DriftStatistic, FeatureDrift
from services.monitor.domain.drift_metric import DriftMetric
from services.monitor.domain.drift_null import NullSource
from services.monitor.domain.fairness import GroupFairness
from services.monitor.domain.interval import Interval
from services.monitor.domain.policy import HOUR_US, MonitoringPolicy
from services.monitor.domain.quality import EstimateBasis, QualityMetric
from services.monitor.domain.report import DriftReport, FairnessReport, FeatureFairness, QualityReport, TrafficReport
from services.monitor.domain.scope import Scope
from services.monitor.domain.version_info import VersionInfo

VERSION = ("fraud", "1", "production")
RULE = AlertRule("amounts", "drift/psi", Condition.ABOVE, 0.2)
SCOPE = Scope(VersionInfo("fraud", "1", ""), MonitoringPolicy("fraud"), "production", 0, HOUR_US, "", "")


def window(hour: int, *met: str, missed: tuple[str, ...] = ()) -> Judgement:
    seen = {name: Observation(0.5, is_met=True) for name in met} | {
        name: Observation(0.1, is_met=False) for name in missed
    }
    return Judgement(hour * HOUR_US, (hour + 1) * HOUR_US, seen)


class Book:
    """Alerts as a database would keep them."""

    def __init__(self) -> None:
        self.alerts: dict[str, Alert] = {}
        self.forgotten = 0

    def see(self, *windows: Judgement, rule: AlertRule = RULE, now_us: int = 0, watched: bool = True) -> list[str]:
        """Judge windows of the version; returns what happened."""
        open_alerts = [alert for alert in self.alerts.values() if alert.is_open]
        changes = judge(rule, open_alerts, {VERSION: Verdict(windows)} if watched else {}, now_us)
        for alert in changes.forget:
            del self.alerts[alert.name]
            self.forgotten += 1
        for alert in changes.put:
            name = alert.name or f"a{len(self.alerts) + self.forgotten}"
            self.alerts[name] = replace(alert, name=name)
        opened = [alert.subject for alert in self.alerts.values() if alert.is_open]
        assert len(opened) == len(set(opened)), "one alert at a time for each subject"
        return [f"{alert.subject.feature} {alert.state.name}" for alert in changes.put]


def test_it_fires_at_once_without_a_duration_and_is_resolved_by_a_good_window() -> None:
    book = Book()
    assert book.see(window(0, "amount"), now_us=7) == ["amount FIRING"]
    # The same window again, as every ten seconds.
    assert book.see(window(0, "amount"), now_us=8) == []
    assert book.see(window(1, "amount"), now_us=9) == ["amount FIRING"]
    assert book.see(window(2, missed=("amount",)), now_us=10) == ["amount RESOLVED"]
    (alert,) = book.alerts.values()
    assert (alert.fire_us, alert.resolve_us, alert.value) == (7, 10, 0.1)


def test_it_must_hold_for_its_duration_in_prediction_time() -> None:
    rule, book = replace(RULE, for_us=3 * HOUR_US), Book()
    assert book.see(window(0, "amount"), rule=rule) == ["amount PENDING"]
    assert book.see(window(1, "amount"), rule=rule) == ["amount PENDING"]
    assert book.see(window(2, "amount"), rule=rule, now_us=5) == ["amount FIRING"]
    # Not what one that fires waits for.
    assert book.see(window(3, "amount"), rule=replace(rule, for_us=24 * HOUR_US)) == ["amount FIRING"]


def test_flapping_never_fires_with_a_duration_and_fires_anew_without() -> None:
    rule, book = replace(RULE, for_us=2 * HOUR_US), Book()
    for hour in range(6):
        seen = window(hour, "amount") if hour % 2 == 0 else window(hour)
        assert book.see(seen, rule=rule) == (["amount PENDING"] if hour % 2 == 0 else [])
    # What was never told is forgotten.
    assert (book.alerts, book.forgotten) == ({}, 3)
    happened = [said for hour in range(4) for said in book.see(window(hour, *["amount"] * (hour % 2 == 0)))]
    assert happened == ["amount FIRING", "amount RESOLVED"] * 2
    assert len(book.alerts) == 2


def test_windows_that_ended_between_two_evaluations_count_one_by_one() -> None:
    book = Book()
    assert book.see(window(0, "amount"), window(1), window(2, "amount"), now_us=9) == [
        "amount RESOLVED",
        "amount FIRING",
    ]
    rule, book = replace(RULE, for_us=2 * HOUR_US), Book()
    assert book.see(window(0, "amount"), window(1), window(2, "amount"), rule=rule) == ["amount PENDING"]
    assert book.alerts.popitem()[1].start_us == 2 * HOUR_US


def test_a_window_that_is_not_judged_leaves_it_and_no_traffic_or_a_disabled_rule_ends_it() -> None:
    book = Book()
    book.see(window(0, "amount", "items"))
    assert book.see() == []
    # An older window, from a monitor that lags behind, says nothing new.
    assert book.see(Judgement(-HOUR_US, 0, {})) == []
    assert book.see(window(1, "amount")) == ["amount FIRING", "items RESOLVED"]
    assert book.see(watched=False, now_us=5) == ["amount RESOLVED"]
    book.see(window(2, "amount"))
    assert book.see(window(2, "amount"), rule=replace(RULE, enabled=False)) == ["amount RESOLVED"]
    book.see(window(2, "amount"))
    # The rule looks at a slice now: the alert about everything is over, another begins.
    assert book.see(window(2, "amount"), rule=replace(RULE, slice_name="big")) == ["amount RESOLVED", "amount FIRING"]
    assert judge(RULE, [], {}, 0) == Changes()


def test_after_a_restart_it_goes_on_from_what_was_kept() -> None:
    rule, book = replace(RULE, for_us=3 * HOUR_US), Book()
    book.see(window(0, "amount"), rule=rule)
    kept = list(book.alerts.values())
    again = judge(rule, kept, {VERSION: Verdict([window(2, "amount")])}, 5)
    assert [(alert.name, alert.state) for alert in again.put] == [(kept[0].name, AlertState.FIRING)]


def interval(value: float, half: float = 0.0) -> Interval:
    return Interval(value, value - half, value + half, 0.95, 500)


def drift_report(count: int = 1000, /, **features: tuple[float, float, float]) -> DriftReport:
    """By feature: psi, half of its interval, q-value."""
    found = [
        FeatureDrift(
            name=name,
            is_output=False,
            value_count=count,
            missing_share=0,
            baseline_missing_share=0,
            statistics=(
                DriftStatistic(DriftMetric.PSI, interval(value, half), 0, q / 2, q, 0, next(iter(NullSource))),
                DriftStatistic(DriftMetric.WASSERSTEIN, interval(9.0), 0, q / 2, q / 2, 0, next(iter(NullSource))),
            ),
            is_drifted=False,
        )
        for name, (value, half, q) in features.items()
    ]
    return DriftReport(SCOPE, count, found)


def met(rule: AlertRule, report: Any) -> set[str] | None:
    seen = observe(rule, report)
    return None if seen is None else {name for name, found in seen.items() if found.is_met}


def test_drift_needs_size_certainty_and_significance() -> None:
    report = drift_report(
        large=(0.5, 0.1, 1e-6), unsure=(0.25, 0.1, 1e-6), chance=(0.5, 0.1, 0.2), small=(0.1, 0.01, 1e-6)
    )
    assert met(RULE, report) == {"large"}
    assert met(replace(RULE, require_interval=False), report) == {"large", "unsure"}
    assert met(replace(RULE, features=("small",)), report) == set()
    # Without a minimum effect the report does not correct for many features, so this does.
    few = drift_report(a=(0, 0, 0.012), b=(0, 0, 0.9))
    many = drift_report(a=(0, 0, 0.012), **{f"b{index}": (0, 0, 0.9) for index in range(9)})
    wasserstein = replace(RULE, metric="drift/wasserstein")
    assert (met(wasserstein, drift_report(a=(0, 0, 0.012))), met(wasserstein, few), met(wasserstein, many)) == (
        {"a"},
        set(),
        set(),
    )


def test_few_predictions_are_not_judged() -> None:
    assert met(RULE, drift_report(99, large=(0.5, 0.1, 1e-6))) is None
    assert met(replace(RULE, minimum_count=99), drift_report(99, large=(0.5, 0.1, 1e-6))) == {"large"}
    quality = QualityReport(SCOPE, 5000, 10, 0, (), ())
    assert met(AlertRule("auc", "quality/auc", Condition.BELOW, 0.8), quality) is None
    # Labels, but no such metric for the task.
    assert met(AlertRule("auc", "quality/auc", Condition.BELOW, 0.8), replace(quality, labelled_count=500)) is None
    estimated = QualityMetric("auc", interval(0.6, 0.05), higher_is_better=True, basis=EstimateBasis.LABELS)
    below = AlertRule("auc", "estimated_quality/auc", Condition.BELOW, 0.8)
    assert met(below, replace(quality, metrics=[estimated])) == {""}
    without_level = replace(estimated, value=replace(estimated.value, level=0.0), basis=EstimateBasis.DRIFTED_INPUTS)
    assert met(below, replace(quality, metrics=[without_level])) is None, "nobody knows how surely it is below"


def test_traffic_is_held_against_its_limit() -> None:
    report = TrafficReport(SCOPE, 50, interval(0.2, 0.05), (1.0, 2.0, 30.0), 0.5, 0.0)
    errors = AlertRule("errors", "error_rate", Condition.ABOVE, 0.1, minimum_count=10)
    assert met(errors, report) == {""}
    assert met(replace(errors, limit=0.16), report) == set()
    assert met(replace(errors, metric="latency_p99_ms", limit=29), report) == {""}
    # How few predictions are enough is what this one is about.
    assert met(AlertRule("rate", "prediction_rate", Condition.BELOW, 1.0), report) == {""}
    assert met(AlertRule("rate", "prediction_rate", Condition.BELOW, 1.0), replace(report, prediction_count=0)) is None
    assert met(replace(errors, metric="latency_p99_ms"), replace(report, latency_ms=(float("nan"),) * 3)) == set()


def test_fairness_is_the_size_of_the_largest_gap_whatever_its_sign() -> None:
    def group(name: str, gap: float) -> GroupFairness:
        gaps = {"equal_opportunity": interval(gap, 0.05)} if gap else {}
        return GroupFairness(name, not gap, 1000, interval(0.3), gaps, is_judged=True)

    report = FairnessReport(SCOPE, [FeatureFairness("country", [group("NO", 0), group("SE", -0.3), group("DK", 0.1)])])
    rule = AlertRule("fair", "fairness/equal_opportunity", Condition.ABOVE, 0.2)
    seen = observe(rule, report)
    assert seen == {"country": Observation(0.3, is_met=True)}
    assert met(replace(rule, limit=0.26), report) == set()


def test_known_metrics_are_those_of_the_contract() -> None:
    groups = {name.partition("/")[0] for name in KNOWN_METRICS if "/" in name}
    assert groups == {"drift", "data_quality", "quality", "estimated_quality", "fairness"}
    assert {"drift/psi", "data_quality/nulls", "quality/auc", "fairness/demographic_parity"} < set(KNOWN_METRICS)


ALERT = Alert("a1", RULE, Subject(*VERSION, feature="amount"), AlertState.FIRING, 0.5, 0, HOUR_US, fire_us=5_000_000)
OVER = replace(ALERT, state=AlertState.RESOLVED, resolve_us=9_000_000)
FIRST = Delivery(ALERT, "pager", Event.FIRING, 0)


@pytest.mark.parametrize(
    ("delivery", "firing", "silenced", "step"),
    [
        (FIRST, FIRST, False, Step.SEND),
        (FIRST, FIRST, True, Step.HOLD),
        # The receiver was down all the time: it is told both, in order.
        (replace(FIRST, alert=OVER), FIRST, False, Step.SEND),
        (replace(FIRST, alert=OVER, event=Event.RESOLVED), FIRST, False, Step.WAIT),
        # A silence was over before it was.
        (replace(FIRST, is_held=True), FIRST, False, Step.SEND),
        (replace(FIRST, alert=OVER, is_held=True), FIRST, False, Step.DROP),
        (replace(FIRST, event=Event.RESOLVED), replace(FIRST, due_us=None), False, Step.DROP),
        (replace(FIRST, event=Event.RESOLVED), replace(FIRST, delivered_us=1), False, Step.SEND),
        (replace(FIRST, event=Event.RESOLVED), replace(FIRST, delivered_us=1), True, Step.HOLD),
        # What is sent again and again ends with the alert.
        (replace(FIRST, delivered_us=1), FIRST, False, Step.SEND),
        (replace(FIRST, alert=OVER, delivered_us=1), FIRST, False, Step.DROP),
    ],
)
def test_what_becomes_of_a_notification(delivery: Delivery, firing: Delivery, silenced: bool, step: Step) -> None:
    assert next_step(delivery, firing, is_silenced=silenced) is step


def test_a_silence_covers_its_rule_model_and_feature_for_its_time() -> None:
    silence = Silence("s1", 10, 20, "why", "local", rule="amounts")
    assert [silence_of(ALERT, [silence], now_us) for now_us in (9, 10, 19, 20)] == ["", "s1", "s1", ""]
    others: list[dict[str, Any]] = [{"rule": "else"}, {"model": "churn"}, {"feature": "items"}]
    for other in others:
        assert silence_of(ALERT, [replace(silence, **other)], 15) == ""
    assert silence_of(ALERT, [replace(silence, rule="", model="fraud", feature="amount")], 15) == "s1"


def test_waits_grow_up_to_a_bound() -> None:
    assert [wait_us(attempts, 1.0) / 1e6 for attempts in (0, 1, 2, 8, 9, 1000)] == [1, 2, 4, 256, 300, 300]
    assert wait_us(2, 0.0) == 2_000_000
    assert GIVE_UP_US == 24 * HOUR_US


def test_a_webhook_is_signed_with_its_time_and_says_what_happened() -> None:
    body = webhook_body(FIRST)
    # Computed with: printf "1700000000.{}" | openssl dgst -sha256 -hmac SECRET
    assert sign("secret", 1_700_000_000, b"{}") == (
        "v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
    )
    content = json.loads(body)
    assert (content["id"], content["event"], content["alert"]["state"]) == ("a1-firing", "firing", "FIRING")
    assert content["rule"] == {
        "name": "alertRules/amounts",
        "metric": "drift/psi",
        "condition": "ABOVE",
        "annotation": "",
    }


def test_alertmanager_gets_an_end_that_moves_on_until_it_is_over() -> None:
    resolved = Delivery(OVER, "am", Event.RESOLVED, 0)
    firing, over = alertmanager_alerts([FIRST, resolved], 100_000_000, 60_000_000)
    assert (firing["startsAt"], firing["endsAt"]) == ("1970-01-01T00:00:05.000Z", "1970-01-01T00:05:40.000Z")
    assert over["endsAt"] == "1970-01-01T00:00:09.000Z"
    assert "slice" not in firing["labels"]
    assert firing["annotations"]["summary"].startswith("drift/psi of amount is 0.5, above 0.2: models/fraud/versions/1")
