"""Evaluations and notifications of alerts as Prometheus metrics."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.monitor.domain.alert import AlertRule, Observation

_VALUE_LIMIT: Final = 10_000
_Version = tuple[str, str, str]


class PrometheusAlerts(Collector):
    """Implements `AlertMetrics` and `DeliveryMetrics`. Values of features beyond the limit are not shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._failures = Counter(
            "interlock_monitor_alert_rule_failures",
            "Evaluations of a rule for a version that could not be made, by rule and reason.",
            ["rule", "reason"],
            registry=registry,
        )
        self._notifications = Counter(
            "interlock_monitor_alert_notifications",
            "Attempts to tell a sink, by sink and outcome.",
            ["sink", "outcome"],
            registry=registry,
        )
        self._seconds = Gauge(
            "interlock_monitor_alert_evaluation_seconds",
            "How long the last evaluation of all rules took.",
            registry=registry,
        )
        self._values: dict[tuple[str, _Version], tuple[AlertRule, Mapping[str, Observation]]] = {}
        registry.register(self)

    def failed(self, rule: str, reason: str) -> None:
        """Count a rule that could not be evaluated for a version."""
        self._failures.labels(rule, reason).inc()

    def observed(self, rule: AlertRule, version: _Version, observations: Mapping[str, Observation]) -> None:
        """Take note of what the newest window of a version says, by feature."""
        self._values[rule.name, version] = (rule, observations)

    def evaluated(self, rules: Sequence[AlertRule], seconds: float) -> None:
        """Take note that all rules were evaluated; those that are no longer there are forgotten."""
        self._seconds.set(seconds)
        known = {rule.name for rule in rules if rule.enabled}
        self._values = {key: found for key, found in self._values.items() if key[0] in known}

    def delivered(self, sink: str, outcome: str) -> None:
        """Count one attempt."""
        self._notifications.labels(sink, outcome).inc()

    def collect(self) -> Iterator[Metric]:
        """Yield values and whether they are beyond the limit."""
        labels = ["rule", "metric", "severity", "model", "version", "environment", "slice", "feature"]
        values = GaugeMetricFamily(
            "interlock_monitor_alert_rule_value",
            "Value of a rule's metric in the newest complete window.",
            labels=labels,
        )
        met = GaugeMetricFamily(
            "interlock_monitor_alert_rule_met", "1 where the condition of a rule is met, else 0.", labels=labels
        )
        for count, (names, found) in enumerate(self._rows()):
            if count >= _VALUE_LIMIT:
                break
            values.add_metric(names, found.value)
            met.add_metric(names, float(found.is_met))
        yield values
        yield met

    def _rows(self) -> Iterator[tuple[list[str], Observation]]:
        for (_, (model, version, environment)), (rule, observations) in self._values.items():
            for feature, found in observations.items():
                severity = rule.severity.name.lower()
                yield [rule.name, rule.metric, severity, model, version, environment, rule.slice_name, feature], found
