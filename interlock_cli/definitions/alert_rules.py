"""Files of alert rules as the contract's messages. docs/monitoring.md describes the format."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interlock.monitor.v1 import alert_pb2 as pb

from interlock_cli.definitions.section import Problem, Problems, Section, documents
from interlock_cli.errors import CommandFailed

CONDITIONS: Final = ("above", "below")
SEVERITIES: Final = ("info", "warning", "critical")
_KEYS: Final = (
    "alert_rule",
    "model",
    "environment",
    "slice",
    "metric",
    "features",
    *CONDITIONS,
    "require_interval",
    "for",
    "minimum_count",
    "severity",
    "sinks",
    "annotation",
    "enabled",
)


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One rule and where it stands; `fields` are the contract's names of what the file says."""

    id: str
    rule: pb.AlertRule
    file: str
    lines: dict[str, int]
    """By field of the contract; "" is the rule's own."""


def read_alert_rules(paths: Iterable[Path]) -> list[RuleFile]:
    """Return the rules of files, and of the .yaml and .yml files below folders; CommandFailed lists every problem."""
    found, problems = list[RuleFile](), list[Problem]()
    for path in _files(paths):
        noted = Problems(str(path))
        for node in documents(path, noted):
            found.append(_rule(Section(node, noted, "an alert rule", _KEYS), str(path)))
        problems += noted.found
    if problems:
        raise CommandFailed("the rules have problems", [str(problem) for problem in sorted(problems)])
    return found


def _files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else (path,)
        found += sorted(each for each in inside if each == path or each.suffix in (".yaml", ".yml"))
        if not path.exists():
            raise CommandFailed(f"{path}: want a file or folder, got nothing")
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _rule(section: Section, file: str) -> RuleFile:
    rule = pb.AlertRule(
        model=section.text("model"),
        environment=section.text("environment"),
        slice=section.text("slice"),
        metric=section.text("metric", required=True),
        features=section.texts("features"),
        sinks=section.texts("sinks"),
        annotation=section.text("annotation"),
    )
    given = _read_condition(section, rule)
    severity = section.choice("severity", SEVERITIES)
    if severity:
        rule.severity = pb.AlertSeverity.Value(f"ALERT_SEVERITY_{severity.upper()}")
    for name in ("require_interval", "enabled"):
        if name in section:
            setattr(rule, name, section.truth(name))
    if "minimum_count" in section:
        rule.minimum_count = section.whole("minimum_count")
    duration = section.duration("for")
    if duration is not None:
        rule.for_duration.FromTimedelta(duration)
    name = section.text("alert_rule", required=True)
    rule.name = f"alertRules/{name}"
    lines = {"for_duration" if key == "for" else key: node.start_mark.line + 1 for key, node in section.entries.items()}
    for condition in given:
        lines["limit"] = lines["condition"] = lines[condition]
    return RuleFile(name, rule, file, {"": section.node.start_mark.line + 1, **lines})


def _read_condition(section: Section, rule: pb.AlertRule) -> list[str]:
    """Put the condition and its limit into a rule; returns the keys that the file gives for it."""
    given = [name for name in CONDITIONS if name in section]
    if len(given) == 1:
        rule.condition = pb.AlertCondition.Value(f"ALERT_CONDITION_{given[0].upper()}")
        limit = section.value(given[0])
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            section.problem(given[0], f"want a number, got {limit}")
        else:
            rule.limit = limit
    else:
        section.problem("above", f"want either above or below with a limit, got {' and '.join(given) or 'neither'}")
    return given
