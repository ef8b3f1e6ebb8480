"""The rules for Prometheus: promtool takes them, they fire when they should, and their metrics are ones that we export."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.common.metrics import RequestMetrics
from services.features.adapters.metrics import FeatureMetrics, HistoryMetrics, StoreMetrics
from services.inference.adapters.telemetry import PrometheusObserver
from services.monitor.adapters.alert_metrics import PrometheusAlerts
from services.monitor.adapters.prometheus_counts import CountsCollector
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.event_stream import StreamTotals
from services.monitor.domain.prediction_counts import PredictionCounts
from services.router.adapters.metrics import EventMetrics, FetchMetrics, HopMetrics, PrometheusPredictions
from tests.contract.descriptors import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
RULES = sorted(FOLDER.glob("*_rules.yaml"))
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
# Of an object that needs a whole service around it, with where its name is made.
_ELSEWHERE = {
    "interlock_router_config_age_seconds": "services/common/watch.py",
    "interlock_registry_corrupt_artifacts_total": "services/registry/adapters/artifact_store.py",
}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.fail("promtool is missing: install the Debian package prometheus (.ci/run does)", pytrace=False)
    return subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=50, check=False)


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", *(path.name for path in RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_fire_when_they_should_and_not_before() -> None:
    done = promtool("test", "rules", "tests.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def exported() -> set[str]:
    """The names of every series that the services' collectors show."""
    registry = CollectorRegistry()
    for service in ("router", "inference", "features", "registry", "monitor"):
        RequestMetrics(service, registry)
    for kind in (PrometheusPredictions, HopMetrics, FetchMetrics, EventMetrics):
        kind(registry)
    for other in (FeatureMetrics, HistoryMetrics, StoreMetrics, PrometheusObserver, PrometheusAlerts):
        other(registry)
    registry.register(CountsCollector(PredictionCounts(1), StreamTotals(), Drops(), lambda: 0))
    return {
        metric.name + suffix for metric in registry.collect() for suffix in _SUFFIXES.get(metric.type, ("",))
    } | set(_ELSEWHERE)


def rules_of(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_of_the_rules_is_exported_or_recorded() -> None:
    rules = [rule for path in RULES for rule in rules_of(path)]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for rule in rules for name in re.findall(r"\binterlock[a-zA-Z0-9_:]+", rule["expr"])}
    assert used - exported() - recorded == set()
    assert {name for name in used if ":" in name} <= recorded
    for name, place in _ELSEWHERE.items():
        assert name.removesuffix("_total").split("_", 2)[2] in (ROOT / place).read_text()


def test_what_the_rules_tell_people_to_look_at_exists() -> None:
    known = {name.removesuffix("_bucket") for name in exported()} | exported()
    told = " ".join(
        text for path in RULES for rule in rules_of(path) for text in (rule.get("annotations") or {}).values()
    )
    assert set(re.findall(r"\binterlock_[a-z0-9_]+", told)) <= known
