"""Windows of sketches: which one a prediction belongs to, what it holds, and how little that may be."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from services.common.errors import Unavailable
from services.monitor.convert.prediction_batch import batch_from_proto
from services.monitor.convert.version import version_from_proto
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.columns import PredictionColumns
from services.monitor.domain.decode import columns_of
from services.monitor.domain.fairness import GroupCounts
from services.monitor.domain.naming import named
from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.policy import (
    HOUR_US,
    MINUTE_US,
    FairnessGroup,
    MonitoringPolicy,
    PolicyBook,
    Revision,
    Slice,
)
from services.monitor.domain.subset import subset
from services.monitor.domain.version_info import VersionInfo
from services.monitor.domain.window import GROUP_VALUE_LIMIT, OTHER_GROUP, WindowKey, WindowSketch, merge_groups
from services.monitor.domain.window_intake import WindowIntake
from services.monitor.domain.window_ports import WindowStore
from services.monitor.domain.windowing import stretches
from tests.fakes.monitor_registry import model_version
from tests.fakes.monitor_traffic import HOUR_S, Traffic, draw_traffic, fraud_profiles, requests

START_S = 1_000 * HOUR_S
TRAFFIC = draw_traffic(1, [START_S + 36 * index for index in range(200)])
FEATURES, OUTPUTS = fraud_profiles(TRAFFIC)
INFO = version_from_proto(model_version(profiles=FEATURES, output_profiles=OUTPUTS))


class MemoryStore:
    """A store that keeps windows as they are, or is away."""

    def __init__(self) -> None:
        self.windows: dict[WindowKey, WindowSketch] = {}
        self.is_away = False

    async def add(self, windows: Mapping[WindowKey, WindowSketch], positions: Mapping[str, int]) -> None:
        if self.is_away:
            raise Unavailable("away", reason="AWAY")
        for key, window in windows.items():
            self.windows.setdefault(key, WindowSketch()).merge(window)

    async def position(self, name: str) -> int:
        return 0


class Versions:
    async def find(self, model: str, version: str) -> VersionInfo:
        return INFO


class NothingToReplay:
    async def between(self, after_us: int, until_us: int) -> AsyncIterator[tuple[Sequence[PredictionColumns], int]]:
        if after_us < 0:
            yield [], 0


def columns(traffic: Traffic = TRAFFIC, *, info: VersionInfo | None = INFO, **more: Any) -> PredictionColumns:
    (request,) = requests(traffic, **more)
    batch = batch_from_proto(request)
    assert batch is not None
    return columns_of(batch, info)


async def taken(
    store: MemoryStore, *batches: PredictionColumns, book: PolicyBook | None = None, limit: int = 1_000
) -> Drops:
    """Take batches and add them to the store; returns what was dropped."""
    drops = Drops()
    intake = WindowIntake(
        cast("WindowStore", store),
        Versions(),
        book or PolicyBook(),
        drops,
        position="here",
        sketch_limit=limit,
        feature_limit=500,
        waiting_limit_rows=100,
        retention_s=10 * HOUR_S,
        clock_tolerance_s=10 * HOUR_S,
        clock=lambda: START_S,
    )
    running = asyncio.ensure_future(intake.run(3600, NothingToReplay()))
    try:
        for batch in batches:
            await intake.take(batch)
        if not store.is_away:
            await intake.flush()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return drops


async def test_predictions_go_to_the_window_of_their_own_time_and_variant() -> None:
    store = MemoryStore()
    await taken(store, columns(), columns(variant="b"))
    assert {(key.variant, key.start_us / HOUR_US): w.prediction_count for key, w in store.windows.items()} == {
        ("main", 1000): 100,
        ("main", 1001): 100,
        ("b", 1000): 100,
        ("b", 1001): 100,
    }
    window = store.windows[WindowKey("fraud", "1", "production", "", "main", 1000 * HOUR_US, 1001 * HOUR_US)]
    assert window.features["amount"].histogram().total == 100
    assert window.scores is not None
    assert window.scores.total_weight == 100


async def test_a_window_reads_what_it_wrote_and_merging_is_adding_up() -> None:
    store = MemoryStore()
    await taken(store, columns())
    first, second = (window for _, window in sorted(store.windows.items()))
    first.merge(WindowSketch.from_bytes(second.to_bytes()))
    whole = MemoryStore()
    day = Revision(0, MonitoringPolicy("fraud", window_us=24 * HOUR_US))
    book = PolicyBook()
    book.put("fraud", day)
    await taken(whole, columns(), book=book)
    (expected,) = whole.windows.values()
    for name, sketch in expected.features.items():
        assert first.features[name].histogram().counts == pytest.approx(sketch.histogram().counts)
    assert first.statuses == expected.statuses
    with pytest.raises(SketchUnreadable):
        WindowSketch.from_bytes(first.to_bytes()[:-40])


def test_a_changed_policy_decides_from_its_time_on() -> None:
    book = PolicyBook()
    change_us = int((START_S + HOUR_S) * 1e6)
    book.put("fraud", Revision(change_us, MonitoringPolicy("fraud", window_us=30 * MINUTE_US, update_us=1)))
    found = list(stretches("fraud", columns().prediction_time_us, book))
    lengths = [(stretch.start_us - int(START_S * 1e6), stretch.end_us - stretch.start_us) for stretch in found]
    assert lengths == [(0, HOUR_US), (HOUR_US, 30 * MINUTE_US), (HOUR_US + 30 * MINUTE_US, 30 * MINUTE_US)]
    assert sum(0 if stretch.positions is None else stretch.positions.size for stretch in found) == 200
    # A later change for an earlier time leaves nothing of the one before.
    book.put("fraud", Revision(0, MonitoringPolicy("fraud", window_us=24 * HOUR_US, update_us=2)))
    assert [revision.from_us for revision in book.revisions("fraud")] == [0]


async def test_failed_predictions_count_but_belong_to_no_slice() -> None:
    book = PolicyBook()
    small = Slice("small", "amount", minimum=0, maximum=60)
    book.put("fraud", Revision(0, MonitoringPolicy("fraud", window_us=24 * HOUR_US, slices=(small,))))
    store = MemoryStore()
    sound = columns()
    failed = replace(
        columns(),
        statuses=np.full(200, 14),
        rows=np.empty(0, dtype=np.int64),
        features={},
        predicted=None,
        probabilities=None,
    )
    await taken(store, sound, failed, book=book)
    everything, part = (store.windows[key] for key in sorted(store.windows))
    assert everything.statuses == {0: 200, 14: 200}
    assert part.statuses == {0: np.count_nonzero(TRAFFIC.amount < 60)}


async def test_no_more_windows_are_held_than_allowed_while_the_database_is_away() -> None:
    store = MemoryStore()
    store.is_away = True
    # 4 features, 3 outputs, the latency: two windows.
    drops = await taken(store, columns(), columns(variant="b"), limit=16)
    assert list(drops.counts()) == [("windows", "too_many", 200)]


def test_groups_beyond_the_limit_share_one() -> None:
    groups: dict[str, dict[str, GroupCounts]] = {}
    for index in range(GROUP_VALUE_LIMIT + 10):
        merge_groups(groups, {"user": {f"u{index}": GroupCounts(prediction_count=1)}})
    assert len(groups["user"]) == GROUP_VALUE_LIMIT + 1
    assert groups["user"][OTHER_GROUP].prediction_count == 10


def test_predictions_of_an_unknown_version_get_their_names_later() -> None:
    unnamed, direct = columns(info=None), columns()
    later = named(unnamed, INFO)
    assert later.features.keys() == direct.features.keys()
    for name in ("amount", "items", "member"):
        assert np.array_equal(later.features[name], direct.features[name])
    assert later.features["country"].to_pylist() == direct.features["country"].to_pylist()  # type: ignore[union-attr]
    assert np.array_equal(later.probabilities, direct.probabilities)  # type: ignore[arg-type]


def test_a_subset_keeps_rows_and_predictions_together() -> None:
    whole = columns()
    holey = replace(
        subset(whole, np.ones(200, dtype=bool)),
        statuses=np.where(np.arange(200) % 2, 14, 0),
        rows=np.arange(0, 200, 2),
        features={"amount": TRAFFIC.amount[::2]},
        outputs={},
        predicted=None,
        probabilities=None,
    )
    chosen = np.zeros(200, dtype=bool)
    chosen[[3, 4, 7, 8]] = True
    some = subset(holey, chosen)
    assert some.statuses.tolist() == [14, 0, 14, 0]
    assert some.rows.tolist() == [1, 3]
    assert np.array_equal(some.features["amount"], TRAFFIC.amount[[4, 8]])


async def test_groups_are_counted_by_value() -> None:
    book = PolicyBook()
    groups = (FairnessGroup("country"), FairnessGroup("member"))
    book.put("fraud", Revision(0, MonitoringPolicy("fraud", window_us=24 * HOUR_US, fairness_groups=groups)))
    store = MemoryStore()
    await taken(store, columns(), book=book)
    (window,) = store.windows.values()
    assert {name: counts.prediction_count for name, counts in window.groups["country"].items()} == {
        name: TRAFFIC.country.count(name) for name in ("NO", "SE", "DK")
    }
    assert window.groups["member"]["true"].prediction_count == TRAFFIC.member.sum()
