"""Alert rules from YAML files."""

from pathlib import Path

import grpc
import pytest
from interlock.monitor.v1 import alert_pb2 as pb

from interlock_cli.commands.alerts import _placed, alert_facts
from interlock_cli.definitions.alert_rules import read_alert_rules
from interlock_cli.errors import CommandFailed
from interlock_sdk.errors import CallError, FieldViolation
from tests.contract.descriptors import ROOT

RULES = """\
alert_rule: drifting
model: fraud
metric: drift/psi
above: 0.2
for: 2h
features: [amount]
severity: critical
sinks: [log, pager]
require_interval: false
---
alert_rule: quiet
metric: prediction_rate
below: 1
minimum_count: 5
enabled: false
"""


def test_a_file_holds_rules_as_the_contract_has_them(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    first, second = read_alert_rules([tmp_path])
    assert (first.id, first.rule.for_duration.seconds, first.rule.limit) == ("drifting", 7200, 0.2)
    assert (first.rule.condition, first.rule.severity) == (pb.ALERT_CONDITION_ABOVE, pb.ALERT_SEVERITY_CRITICAL)
    assert (first.rule.require_interval, first.rule.HasField("enabled")) == (False, False)
    assert (second.rule.condition, second.rule.limit, second.rule.enabled) == (pb.ALERT_CONDITION_BELOW, 1.0, False)
    assert second.rule.minimum_count == 5
    refusal = CallError(grpc.StatusCode.INVALID_ARGUMENT, "no")
    refusal.violations = (
        FieldViolation("alert_rule.sinks[1]", "want a sink"),
        FieldViolation("alert_rule.limit", "no"),
    )
    assert list(_placed(refusal, first)) == [
        f"{tmp_path}/rules.yaml:8: sinks: want a sink",
        f"{tmp_path}/rules.yaml:4: limit: no",
    ]


def test_every_problem_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("alert_rule: a\nmetric: error_rate\nabove: lots\nbelow: 1\nfor: soon\nseverity: bad\ncolour: red\n")
    with pytest.raises(CommandFailed) as caught:
        read_alert_rules([path])
    lines = {hint.removeprefix(f"{path}:").partition(":")[0] for hint in caught.value.hints}
    assert lines == {"3", "5", "6", "7"}


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    (tmp_path / "rules.yaml").write_text(
        text.split("```yaml\nalert_rule:")[1].split("```")[0].join(["alert_rule:", ""])
    )
    assert [found.id for found in read_alert_rules([tmp_path / "rules.yaml"])] == [
        "amounts-drift",
        "late-auc",
        "failures",
    ]


def test_an_alert_shows_what_is_set() -> None:
    alert = pb.Alert(rule="alertRules/a", state=pb.ALERT_STATE_FIRING, severity=pb.ALERT_SEVERITY_INFO, value=0.5)
    alert.fire_time.FromSeconds(60)
    alert.delivery_errors["pager"] = "answered 500"
    shown = dict(alert_facts(alert))
    assert (shown["state"], shown["fired"], shown["not told pager"]) == (
        "firing",
        "1970-01-01 00:01:00",
        "answered 500",
    )
    assert not {"resolved", "feature", "silenced by"} & shown.keys()
