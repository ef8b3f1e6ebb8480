"""What is usual for a version is learnt from its own past, and not from what had drifted."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from services.common.migration import open_database
from services.monitor.adapters.migrations import MIGRATIONS
from services.monitor.adapters.window_store import SqlWindowStore
from services.monitor.domain.analyses import Analyses, window_request
from services.monitor.domain.numeric_sketch import NumericSketch
from services.monitor.domain.policy import DAY_US, HOUR_US, MonitoringPolicy, PolicyBook
from services.monitor.domain.profile import FeatureProfile, profile_numbers
from services.monitor.domain.scope import Scope, ScopeRequest, Scopes
from services.monitor.domain.version_info import Baseline, FeatureInfo, FeatureKind, VersionInfo
from services.monitor.domain.window import WindowKey, WindowSketch
from services.monitor.domain.window_series import RECENT_LIMIT, recent, usual

RANDOM = np.random.default_rng(7)
PROFILE = profile_numbers(RANDOM.normal(size=5_000))
INFO = VersionInfo(
    "m",
    "1",
    "digest",
    features=(FeatureInfo("x", FeatureKind.DOUBLE, "input", 0),),
    baseline=Baseline(5_000, "", {"x": FeatureProfile("x", 5_000, 0, PROFILE)}),
)
# A whole hour in the past.
NOW_US = int(time.time() * 1e6) // HOUR_US * HOUR_US
LAST = ScopeRequest("m", "1", start_us=NOW_US - HOUR_US, end_us=NOW_US)


class Versions:
    async def find(self, model: str, version: str) -> VersionInfo:
        return INFO


@asynccontextmanager
async def _analyses(folder: Path) -> AsyncIterator[tuple[Analyses, SqlWindowStore]]:
    async with open_database(
        f"sqlite:///{folder / 'monitor.db'}", MIGRATIONS, service="monitor", statement_timeout_s=5
    ) as database:
        store = SqlWindowStore(database)

        async def settle() -> None:
            return None

        yield Analyses(store, Scopes(store, Versions(), PolicyBook(), retention_us=90 * DAY_US), settle), store


async def _put(store: SqlWindowStore, hours_ago: int, *, shift: float = 0.0, count: int = 400) -> None:
    window = WindowSketch()
    window.statuses = {0: float(count)}
    sketch = window.features["x"] = NumericSketch(PROFILE.edges)
    sketch.update(RANDOM.normal(loc=shift, size=count))
    end_us = NOW_US - hours_ago * HOUR_US
    key = WindowKey("m", "1", "production", "", "main", end_us - HOUR_US, end_us)
    await store.add({key: window}, {})


async def test_a_drift_that_lasts_does_not_become_usual(tmp_path: Path) -> None:
    async with _analyses(tmp_path) as (analyses, store):
        for day in range(1, 14):
            await _put(store, 24 * day, shift=1.0 if day <= 4 else 0.0)
        await _put(store, 0, shift=1.0)
        scope = await analyses.resolve(LAST)
        found = []
        for day in range(13, -1, -1):
            start_us = scope.start_us - day * DAY_US
            report = await analyses.drift(window_request(scope, start_us, start_us + HOUR_US))
            found.append(report.features[0].is_drifted)
        assert found == [False] * 9 + [True] * 5
        verdicts = await store.verdicts(scope.selection(scope.start_us - 20 * DAY_US))
        assert [list(names) for _, names in sorted(verdicts.items())] == [[]] * 9 + [["x"]] * 5


async def test_windows_that_nobody_judged_are_judged_later_and_no_volume_is_expected_from_nothing(
    tmp_path: Path,
) -> None:
    async with _analyses(tmp_path) as (analyses, store):
        for hours in range(5):
            await _put(store, hours)
        await analyses.judge_missed(LAST, limit=3)
        scope = await analyses.resolve(LAST)
        selection = scope.selection(NOW_US - DAY_US)
        assert len(await store.verdicts(selection)) == 3
        await analyses.judge_missed(LAST, limit=3)
        assert len(await store.verdicts(selection)) == 5
        assert (await analyses.data_quality(LAST)).expected_count is None
        # Eight weeks of the same hour later there is something to expect, and this hour has a tenth of it.
        for week in range(1, 9):
            await _put(store, 24 * 7 * week, count=4_000)
        report = await analyses.data_quality(LAST)
        assert report.expected_count is not None
        assert abs(report.expected_count - 4_000) < 100
        assert [finding.check.value for finding in report.findings] == ["volume"]


def test_not_all_of_a_month_is_read() -> None:
    scope = Scope(INFO, MonitoringPolicy("m"), "production", NOW_US - HOUR_US, NOW_US, "", "")
    hours = [(NOW_US - (ago + 1) * HOUR_US, NOW_US - ago * HOUR_US) for ago in range(1, 24 * 28)][::-1]
    assert usual(hours, scope) == [NOW_US - HOUR_US - day * DAY_US for day in range(27, 0, -1)]
    # Too few days: the last windows tell how much they differ.
    assert usual(hours[-24 * 5 :], scope) == [start for start, _ in hours[-24 * 5 :]]
    # Too few without drift: the last windows tell what the week had so far.
    drifted = {(start, end) for start, end in hours if (NOW_US - end) % DAY_US == 0 and NOW_US - end < 21 * DAY_US}
    assert set(usual(hours, scope, drifted)) == {*usual(hours, scope), *recent(hours, scope)}
    assert len(recent(hours, scope)) == RECENT_LIMIT
    week = Scope(INFO, MonitoringPolicy("m"), "production", NOW_US - 5 * DAY_US, NOW_US, "", "")
    assert len(usual(hours, week)) == RECENT_LIMIT
