"""Evaluates alert rules over complete windows, again and again."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from services.common.errors import ServiceError
from services.common.refusals import InvalidRequest
from services.monitor.domain.alert import AlertRule, Judgement, Observation, Verdict, judge
from services.monitor.domain.alert_metric import Report, Source, observe, source_of
from services.monitor.domain.alert_ports import AlertRules, Alerts
from services.monitor.domain.analyses import Analyses, QualityRequest, window_request
from services.monitor.domain.policy import DAY_US, HOUR_US, SECOND_US
from services.monitor.domain.scope import Scope, ScopeRequest

_LOG: Final = structlog.get_logger(part="alerts")
KEEP_US: Final = 90 * DAY_US
"""How long resolved alerts, and silences that have ended, are kept."""
_ACTIVE_US: Final = 8 * DAY_US
"""A window is at most seven days long."""
_STALE_WINDOWS: Final = 2
_CATCH_UP: Final = 12
"""Windows of a version that one evaluation looks at: in a replay several end between two of them."""
_REPORT_LIMIT: Final = 256
_REPORT_AGE_S: Final = 600.0
"""After that a report is made anew even if its windows are as they were: what it is compared with may not be."""
_CLEAN_EVERY_S: Final = 3600.0
_Version = tuple[str, str, str]


class AlertMetrics(Protocol):
    """Shows evaluations to Prometheus."""

    def failed(self, rule: str, reason: str) -> None:
        """Count a rule that could not be evaluated for a version."""

    def observed(self, rule: AlertRule, version: _Version, observations: Mapping[str, Observation]) -> None:
        """Take note of what the newest window of a version says, by feature."""

    def evaluated(self, rules: Sequence[AlertRule], seconds: float) -> None:
        """Take note that all rules were evaluated; those that are no longer there are forgotten."""


class Reports:
    """Reports of windows; one is made anew only when its windows or the policy have changed."""

    def __init__(self, analyses: Analyses, clock: Callable[[], float] = time.monotonic) -> None:
        self._analyses = analyses
        self._clock = clock
        self._kept: OrderedDict[tuple[object, ...], tuple[object, float, Report]] = OrderedDict()

    async def get(self, source: Source, scope: Scope) -> Report:
        """Return the report of a scope; raises what `Analyses` raises."""
        info = scope.info
        key = (source, info.name, scope.environment, scope.slice_name, scope.start_us, scope.end_us)
        state = (scope.policy.etag, await self._analyses.newest_change(scope))
        known = self._kept.get(key)
        if known is not None and known[0] == state and self._clock() < known[1] + _REPORT_AGE_S:
            self._kept.move_to_end(key)
            return known[2]
        report = await self._make(source, window_request(scope, scope.start_us, scope.end_us))
        self._kept[key] = (state, self._clock(), report)
        if len(self._kept) > _REPORT_LIMIT:
            self._kept.popitem(last=False)
        return report

    async def _make(self, source: Source, request: ScopeRequest) -> Report:
        match source:
            case Source.DRIFT:
                return await self._analyses.drift(request)
            case Source.DATA_QUALITY:
                return await self._analyses.data_quality(request)
            case Source.FAIRNESS:
                return await self._analyses.fairness(request)
            case Source.TRAFFIC:
                return await self._analyses.traffic(request)
            case _:
                return await self._analyses.quality(
                    QualityRequest(request, include_estimates=source is Source.ESTIMATED_QUALITY)
                )


@dataclass(slots=True)
class _Round:
    """What the rules of one evaluation share."""

    active: Sequence[_Version]
    scopes: dict[tuple[_Version, str], Scope]


class AlertWatch:
    """Evaluates all rules. What one of them meets does not disturb the others.

    Several monitors may do it on one database: the changes of a rule's alerts are one transaction that begins with what
    there is, so both come to the same and tell it once.
    """

    def __init__(
        self,
        rules: AlertRules,
        alerts: Alerts,
        analyses: Analyses,
        metrics: AlertMetrics,
        on_change: Callable[[], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._alerts = alerts
        self._analyses = analyses
        self._metrics = metrics
        self._on_change = on_change
        self._clock = clock
        self._reports = Reports(analyses)
        self._seen: dict[tuple[str, _Version], int] = {}
        self._failing: dict[tuple[str, _Version], str] = {}

    async def run(self, interval_s: float, before_each: Callable[[], Awaitable[None]]) -> None:
        """Evaluate every few seconds, for good."""
        clean_at = 0.0
        while True:
            try:
                await before_each()
                await self.evaluate()
                if self._clock() >= clean_at:
                    await self._alerts.clean(int(self._clock() * SECOND_US) - KEEP_US)
                    clean_at = self._clock() + _CLEAN_EVERY_S
            except ServiceError as error:
                _LOG.warning("alerts_not_evaluated", reason=error.reason)
            except Exception as error:  # noqa: BLE001 - alerts go on whatever is wrong this time
                _LOG.error("alerts_not_evaluated", exc_info=error)
            await asyncio.sleep(interval_s)

    async def evaluate(self) -> None:
        """Evaluate every rule once."""
        started = time.monotonic()
        rules = await self._rules.all()
        around = _Round(await self._analyses.active(_ACTIVE_US), {})
        for rule in rules:
            try:
                await self._evaluate(rule, around)
            except ServiceError as error:
                self._metrics.failed(rule.name, error.reason)
                _LOG.warning("alert_rule_not_evaluated", rule=rule.name, reason=error.reason)
            except Exception as error:  # noqa: BLE001 - other rules go on
                self._metrics.failed(rule.name, "INTERNAL")
                _LOG.error("alert_rule_not_evaluated", rule=rule.name, exc_info=error)
        known = {(rule.name, version) for rule in rules for version in around.active}
        self._seen = {key: end_us for key, end_us in self._seen.items() if key in known}
        self._failing = {key: reason for key, reason in self._failing.items() if key in known}
        self._metrics.evaluated(rules, time.monotonic() - started)

    async def _evaluate(self, rule: AlertRule, around: _Round) -> None:
        verdicts: dict[_Version, Verdict] = {}
        if rule.enabled:
            for version in around.active:
                if version[2] == rule.environment and rule.model in ("", version[0]):
                    verdict = await self._verdict(rule, version, around)
                    if verdict is not None:
                        verdicts[version] = verdict
        now_us = int(self._clock() * SECOND_US)
        if not verdicts and not await self._alerts.open_of(rule.name):
            return
        if await self._alerts.settle(rule, lambda alerts: judge(rule, alerts, verdicts, now_us)):
            self._on_change()

    async def _verdict(self, rule: AlertRule, version: _Version, around: _Round) -> Verdict | None:
        """Return what the rule's metric says of a version; None when the rule does not watch it (any more)."""
        key = (rule.name, version)
        try:
            scope = await self._scope(rule, version, around)
            if scope is None:
                return None
            judgements = await self._judgements(rule, version, scope)
        except InvalidRequest as error:
            if rule.slice_name and not rule.model:
                # A rule for all models watches those that have the slice.
                return None
            self._fail(key, error.reason)
        except ServiceError as error:
            self._fail(key, error.reason)
        except Exception as error:  # noqa: BLE001 - other versions and rules go on
            _LOG.error("alert_rule_failed", rule=rule.name, version=version, exc_info=error)
            self._fail(key, "INTERNAL")
        else:
            self._failing.pop(key, None)
            return None if judgements is None else Verdict(judgements)
        return Verdict()

    async def _judgements(self, rule: AlertRule, version: _Version, last: Scope) -> Sequence[Judgement] | None:
        """Judge the complete windows since the last time, at least the newest; None when it has no traffic any more."""
        key = (rule.name, version)
        window_us = last.end_us - last.start_us
        missed = (last.end_us - self._seen.get(key, last.start_us)) // window_us - 1
        found = []
        for back in range(min(missed, _CATCH_UP), 0, -1):
            end_us = last.end_us - back * window_us
            judgement = await self._judgement(rule, version, last, (end_us - window_us, end_us))
            if judgement is not None:
                found.append(judgement)
        judgement = await self._judgement(rule, version, last, (last.start_us, last.end_us))
        if judgement is not None:
            found.append(judgement)
            self._metrics.observed(rule, version, judgement.observations)
        elif not await self._analyses.has_traffic(last):
            return None
        self._seen[key] = last.end_us
        return found

    async def _judgement(
        self, rule: AlertRule, version: _Version, last: Scope, stretch: tuple[int, int]
    ) -> Judgement | None:
        scope = last
        if stretch != (last.start_us, last.end_us):
            scope = await self._analyses.resolve(window_request(last, *stretch))
        report = await self._reports.get(source_of(rule.metric), scope)
        observations = observe(rule, report)
        return None if observations is None else Judgement(scope.start_us, scope.end_us, observations)

    async def _scope(self, rule: AlertRule, version: _Version, around: _Round) -> Scope | None:
        """Return the last complete window of a version; None when that was long ago."""
        place = (version, rule.slice_name)
        scope = around.scopes.get(place)
        if scope is None:
            scope = await self._analyses.resolve(ScopeRequest(*version, slice_name=rule.slice_name))
            around.scopes[place] = scope
        window_us = scope.end_us - scope.start_us
        oldest_us = int(self._clock() * SECOND_US) - max(_STALE_WINDOWS * window_us, HOUR_US) - window_us
        return scope if scope.end_us > oldest_us else None

    def _fail(self, key: tuple[str, _Version], reason: str) -> None:
        self._metrics.failed(key[0], reason)
        # Once, not every few seconds.
        if self._failing.get(key) != reason:
            self._failing[key] = reason
            _LOG.warning("alert_rule_failed", rule=key[0], version=key[1], reason=reason)
