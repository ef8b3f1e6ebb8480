"""Answers how a version is doing: for the API, for alerts, for reports, for Prometheus. One object, all questions."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from services.common.errors import Violation, echo
from services.common.refusals import refuse
from services.monitor.domain.data_quality_analysis import WEEKS, DataQualityInput, check_data, same_hours
from services.monitor.domain.drift import FeatureDrift
from services.monitor.domain.drift_analysis import (
    DriftInput,
    drift_from_baseline,
    drift_from_windows,
    drifted_names,
)
from services.monitor.domain.estimate_check import CHECKED_LIMIT
from services.monitor.domain.failure import NoBaseline, UnknownMetric
from services.monitor.domain.fairness_analysis import measure_groups
from services.monitor.domain.interval import rate_interval
from services.monitor.domain.policy import DAY_US, SECOND_US
from services.monitor.domain.quality_analysis import METRICS, EstimateInput, estimate, measure, pending_count
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.report import (
    DataQualityReport,
    DriftReport,
    FairnessReport,
    QualityReport,
    TrafficReport,
)
from services.monitor.domain.scope import Scope, ScopeRequest, Scopes
from services.monitor.domain.version_info import VersionInfo
from services.monitor.domain.window import WindowKey, WindowSketch, scores_from_bytes
from services.monitor.domain.window_ports import Selection, VerdictKey, WindowStore
from services.monitor.domain.window_series import Placed, decoded, merged, recent, usual

PAST_US: Final = 28 * DAY_US
"""How far back the usual spread between windows is looked for."""
_JUDGED_BEFORE_US: Final = 2 * DAY_US
_AT_ONCE: Final = 2
_ResultT = TypeVar("_ResultT")
_WindowT = TypeVar("_WindowT", WindowSketch, QualityWindow)


@dataclass(frozen=True, slots=True)
class QualityRequest:
    """What is asked about quality."""

    scope: ScopeRequest
    metrics: Collection[str] = ()
    """Empty: all that fit the task."""
    include_estimates: bool = False


class Analyses:
    """Everything that can be asked of windows. All methods raise what `Scopes.resolve` raises, and ServiceError."""

    def __init__(
        self,
        store: WindowStore,
        scopes: Scopes,
        settle: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._scopes = scopes
        self._settle = settle
        self._clock = clock
        # Sums of many windows take a core for a second; ingest needs one too.
        self._working = asyncio.Semaphore(_AT_ONCE)
        self._kept: dict[tuple[str, Selection], list[Placed[Any]]] | None = None

    def for_one_report(self) -> "Analyses":
        """Return the same with a memory, for one who asks many questions about one scope: windows are read once."""
        found = copy(self)
        found._kept = {}  # noqa: SLF001 - its own
        return found

    async def resolve(self, request: ScopeRequest) -> Scope:
        """Return which windows a request means; everything that came in before is in them."""
        await self._settle()
        return await self._scopes.resolve(request, int(self._clock() * SECOND_US))

    async def drift(
        self, request: ScopeRequest, reference: ScopeRequest | None = None, names: Collection[str] = ()
    ) -> DriftReport:
        """Compare inputs and outputs with the baseline, or with another scope; raises NoBaseline."""
        scope = await self.resolve(request)
        compared = None if reference is None else await self.resolve(reference)
        if compared is None and scope.info.baseline is None:
            raise NoBaseline(scope.info.name)
        refuse(_unknown_names(scope.info, names))
        given = await self._drift_input(scope, names)
        if not given.windows:
            return DriftReport(scope, 0, (), compared)
        if compared is not None:
            before = await self._windows(compared.selection())
            found = await self._work(lambda: drift_from_windows(given, before, scope.policy))
        else:
            found = await self._work(lambda: drift_from_baseline(given, scope.info, scope.policy))
            await self._keep_verdict(scope, given, found)
        return DriftReport(scope, _count(given.windows), found, compared)

    async def data_quality(self, request: ScopeRequest) -> DataQualityReport:
        """Check nulls, refused requests, ranges, categories, age and volume."""
        scope = await self.resolve(request)
        windows = await self._windows(scope.selection())
        past = await self._past(scope, recent)
        given = DataQualityInput(windows, past, await self._weekly_counts(scope))
        findings, volume = await self._work(lambda: check_data(given, scope.info, scope.policy))
        expected = volume.expected.estimate if volume.expected else None
        return DataQualityReport(scope, _count(windows), expected, findings, len(scope.info.features))

    async def quality(self, request: QualityRequest) -> QualityReport:
        """Measure predictions against labels, and estimate where labels are missing; raises NotCalibrated."""
        wrong = _unknown_metrics(request.metrics)
        if wrong:
            raise UnknownMetric(wrong, METRICS)
        scope = await self.resolve(request.scope)
        windows = await self._windows(scope.selection())
        labelled = await self._labelled(scope.selection())
        metrics, calibration, labelled_count = await self._work(lambda: measure(labelled, scope.info))
        if request.include_estimates:
            given = await self._estimate_input(scope)
            metrics += await self._work(lambda: estimate(given))
        return QualityReport(
            scope=scope,
            prediction_count=_count(windows),
            labelled_count=round(labelled_count),
            pending_count=pending_count(
                windows, labelled, scope.policy.label_retention_us, int(self._clock() * SECOND_US)
            ),
            metrics=[metric for metric in metrics if not request.metrics or metric.name in request.metrics],
            calibration=calibration,
        )

    async def fairness(self, request: ScopeRequest) -> FairnessReport:
        """Compare the groups that the policy names."""
        scope = await self.resolve(request)
        windows = await self._windows(scope.selection())
        labelled = await self._labelled(scope.selection())
        return FairnessReport(scope, await self._work(lambda: measure_groups(windows, labelled, scope)))

    async def traffic(self, request: ScopeRequest) -> TrafficReport:
        """Count predictions, errors and how long they took."""
        scope = await self.resolve(request)
        windows = await self._windows(scope.selection())
        total = await self._work(lambda: merged(windows))
        count = total.prediction_count
        latency = total.latency_ms.quantiles([0.5, 0.95, 0.99]).tolist() if count else [math.nan] * 3
        return TrafficReport(
            scope=scope,
            prediction_count=round(count),
            error_rate=rate_interval(count - total.ok_count, count),
            latency_ms=(latency[0], latency[1], latency[2]),
            prediction_rate=count * SECOND_US / (scope.end_us - scope.start_us),
            degraded_share=total.degraded / count if count else 0.0,
        )

    async def windows(self, scope: Scope) -> Sequence[Placed[WindowSketch]]:
        """Return the windows of a scope, all variants merged: what reports draw."""
        return await self._windows(scope.selection())

    async def labelled_windows(self, scope: Scope) -> Sequence[Placed[QualityWindow]]:
        """Return what labels say about the windows of a scope."""
        return await self._labelled(scope.selection())

    async def newest_change(self, scope: Scope) -> int:
        """Return when anything in the windows of a scope, or in what labels say about them, was last changed."""
        return await self._store.newest_change(scope.selection())

    async def has_traffic(self, scope: Scope) -> bool:
        """Return whether the version has predictions in a scope, whatever their slice."""
        return bool(await self._store.times(replace(scope, slice_name="").selection()))

    async def active(self, within_us: int) -> Sequence[tuple[str, str, str]]:
        """Return model, version, environment of what had predictions lately."""
        return await self._store.active(int(self._clock() * SECOND_US) - within_us)

    async def judge_missed(self, request: ScopeRequest, limit: int) -> None:
        """Judge windows of the last two days that nobody has, the oldest first: in a replay many end at once."""
        scope = await self.resolve(request)
        selection = scope.selection(scope.end_us - _JUDGED_BEFORE_US, scope.end_us)
        known = await self._store.verdicts(selection)
        missed = [times for times in await self._store.times(selection) if times not in known]
        for start_us, end_us in missed[:limit]:
            await self.drift(window_request(scope, start_us, end_us))

    async def _drift_input(self, scope: Scope, names: Collection[str]) -> DriftInput:
        past_us = scope.start_us - PAST_US
        verdicts = await self._store.verdicts(scope.selection(past_us, scope.end_us))
        return DriftInput(
            await self._windows(scope.selection()),
            await self._past(scope, partial(usual, drifted={times for times, names in verdicts.items() if names})),
            verdicts,
            names,
        )

    async def _estimate_input(self, scope: Scope) -> EstimateInput:
        before_us = min(CHECKED_LIMIT * (scope.end_us - scope.start_us), PAST_US)
        encoded = await self._store.read(scope.selection(scope.start_us - before_us, scope.end_us))
        scores = await self._work(lambda: decoded(encoded, scores_from_bytes))
        compared, drifted = await self._drift_input(scope, ()), None
        if scope.info.baseline is not None and compared.windows:
            drifts = await self._work(lambda: drift_from_baseline(compared, scope.info, scope.policy))
            drifted = frozenset(drift.name for drift in drifts if drift.is_drifted and not drift.is_output)
        labelled = await self._labelled(scope.selection(scope.start_us - PAST_US))
        return EstimateInput(scope, scores, labelled, drifted, compared.verdicts)

    async def _past(
        self, scope: Scope, choose: Callable[[Sequence[tuple[int, int]], Scope], Sequence[int]]
    ) -> list[Placed[WindowSketch]]:
        """Return those windows before a scope that tell what is usual: not all of a month, which may be thousands."""
        selection = scope.selection(scope.start_us - PAST_US, scope.start_us)
        chosen = choose(await self._store.times(selection), scope)
        return await self._windows(replace(selection, starts_us=tuple(chosen))) if chosen else []

    async def _keep_verdict(self, scope: Scope, given: DriftInput, drifts: Sequence[FeatureDrift]) -> None:
        """Keep the names of what had drifted in a whole window, so that it does not pass for usual later."""
        # A slice always differs from a baseline of everything: there, its own past alone says what is usual.
        is_whole = len(given.windows) == 1 and not given.names and not scope.variant and not scope.slice_name
        if not is_whole:
            return
        placed, names = given.windows[0], drifted_names(drifts)
        known = given.verdicts.get((placed.start_us, placed.end_us))
        if known is None or sorted(known) != names:
            key = VerdictKey(
                scope.info.model,
                scope.info.version,
                scope.environment,
                scope.slice_name,
                placed.start_us,
                placed.end_us,
            )
            await self._store.keep_verdict(key, names)

    async def _weekly_counts(self, scope: Scope) -> list[float]:
        first_us = await self._store.oldest_start(scope.selection())
        found = []
        for week in range(1, WEEKS + 1):
            start_us, end_us = same_hours(scope.start_us, scope.end_us, week)
            if first_us is None or start_us < first_us:
                break
            found.append(float(_count(await self._windows(scope.selection(start_us, end_us)))))
        return found

    async def _windows(self, selection: Selection) -> list[Placed[WindowSketch]]:
        return await self._once("windows", selection, self._store.read, WindowSketch.from_bytes)

    async def _labelled(self, selection: Selection) -> list[Placed[QualityWindow]]:
        return await self._once("labelled", selection, self._store.read_labelled, QualityWindow.from_bytes)

    async def _once(
        self,
        kind: str,
        selection: Selection,
        read: Callable[[Selection], Awaitable[Sequence[tuple[WindowKey, bytes]]]],
        decode: Callable[[bytes], _WindowT],
    ) -> list[Placed[_WindowT]]:
        """Return windows; with a memory, those that were read before. Nobody changes them: `merge` copies."""
        if self._kept is not None and (kind, selection) in self._kept:
            return self._kept[kind, selection]
        encoded = await read(selection)
        found = await self._work(lambda: decoded(encoded, decode))
        if self._kept is not None:
            self._kept[kind, selection] = found
        return found

    async def _work(self, work: Callable[[], _ResultT]) -> _ResultT:
        async with self._working:
            return await asyncio.to_thread(work)


def window_request(scope: Scope, start_us: int, end_us: int) -> ScopeRequest:
    """Return the request for another stretch of time of a scope."""
    return ScopeRequest(
        scope.info.model, scope.info.version, scope.environment, start_us, end_us, scope.slice_name, scope.variant
    )


def _count(windows: Sequence[Placed[WindowSketch]]) -> int:
    return round(sum(placed.window.prediction_count for placed in windows))


def _unknown_names(info: VersionInfo, names: Collection[str]) -> list[Violation]:
    known = {feature.name for feature in info.features}
    if info.baseline:
        known |= {*info.baseline.features, *info.baseline.outputs}
    known |= {"prediction", *(f"probability/{label}" for label in info.labels)}
    return [
        Violation(f"features[{index}]", f"want a feature or output of {info.name}, got {echo(name)}")
        for index, name in enumerate(names)
        if name not in known
    ]


def _unknown_metrics(names: Collection[str]) -> list[Violation]:
    return [
        Violation(f"metrics[{index}]", f"want one of {', '.join(METRICS)}; got {echo(name)}")
        for index, name in enumerate(names)
        if name not in METRICS
    ]
