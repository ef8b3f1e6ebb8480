"""Windows outlive restarts, crashes and a registry that is away; what they hold is bounded."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from services.monitor.adapters.log_replay import LogReplay
from tests.fakes.monitor_registry import FakeRegistry
from tests.fakes.monitor_traffic import draw_traffic, hour_times, requests
from tests.integration.monitor.conftest import Monitor, running_monitor
from tests.integration.monitor.test_analysis import drift_when, record, scope_of, trained_version


async def _count(monitor: Monitor, wanted: int) -> None:
    """Wait until the last whole hour has so many predictions, and not one more."""
    times = hour_times(1, 0)
    report = await drift_when(
        monitor, lambda found: found.prediction_count >= wanted, scope_of(start_s=times[0], end_s=times[0] + 1)
    )
    assert report.prediction_count == wanted
    assert {feature.value_count for feature in report.features} == {wanted}


async def test_late_predictions_join_their_window_also_after_a_restart(tmp_path: Path) -> None:
    registry = FakeRegistry([trained_version()])
    async with running_monitor(tmp_path, registry, monitor_window_interval_s=0.05) as monitor:
        await record(monitor, requests(draw_traffic(1, hour_times(100, 0))))
        await _count(monitor, 100)
        await record(monitor, requests(draw_traffic(2, hour_times(50, 0)), variant="b"))
        await _count(monitor, 150)
    async with running_monitor(tmp_path, registry) as monitor:
        await _count(monitor, 150)
        await record(monitor, requests(draw_traffic(3, hour_times(25, 0))))
        await _count(monitor, 175)


async def test_two_monitors_share_a_database(tmp_path: Path, database_url: str) -> None:
    registry = FakeRegistry([trained_version()])
    often = {"monitor_database_url": database_url, "monitor_window_interval_s": 0.05}
    async with (
        running_monitor(tmp_path / "one", registry, **often) as one,
        running_monitor(tmp_path / "other", registry, **often) as other,
    ):
        await asyncio.gather(
            record(one, requests(draw_traffic(1, hour_times(300, 0)), rows=50)),
            record(other, requests(draw_traffic(2, hour_times(200, 0)), rows=50)),
        )
        await _count(one, 500)


async def test_predictions_wait_for_a_registry_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.monitor.adapters.registry_client._ABSENCE_S", 0.3)
    registry = FakeRegistry([trained_version()])
    registry.is_down = True
    async with running_monitor(tmp_path, registry, monitor_window_interval_s=0.05) as monitor:
        await record(monitor, requests(draw_traffic(1, hour_times(100, 0))))
        # Each question is asked twice.
        while registry.call_count < 2:
            await asyncio.sleep(0.01)
        registry.is_down = False
        await _count_once_back(monitor)


async def _count_once_back(monitor: Monitor) -> None:
    while True:
        try:
            await _count(monitor, 100)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            # It is not asked again at once.
            await asyncio.sleep(0.1)
        else:
            return


async def test_many_windows_and_features_are_bounded(tmp_path: Path) -> None:
    registry = FakeRegistry([trained_version()])
    limits: dict[str, Any] = {"monitor_sketch_limit": 10, "monitor_feature_limit": 4, "monitor_window_interval_s": 0.05}
    async with running_monitor(tmp_path, registry, **limits) as monitor:
        # 12 windows: what does not fit into memory goes to the database at once, and nothing is lost.
        for hour in range(12):
            await record(monitor, requests(draw_traffic(hour, hour_times(20, hour))))
        times = hour_times(1, 11)
        scope = scope_of(start_s=times[0], end_s=hour_times(1, 0)[0])
        report = await drift_when(monitor, lambda found: found.prediction_count == 240, scope)
        # Three outputs, and one of four features.
        assert {feature.name for feature in report.features} == {"amount", "probability/fine", "probability/fraud"}
        # Years away: in no window.
        await record(monitor, requests(draw_traffic(99, hour_times(30, 24 * 365 * 3))))
        wanted = b'predictions_not_taken_total{part="windows",reason="out_of_range"} 30.0'
        while wanted not in generate_latest(monitor.serving.runtime.registry):
            await asyncio.sleep(0.02)


async def test_what_comes_in_before_a_slow_start_has_looked_at_the_log_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, may_look = LogReplay._candidates, threading.Event()

    def look_late(*arguments: Any) -> Any:
        may_look.wait(30)
        return look(*arguments)

    monkeypatch.setattr(LogReplay, "_candidates", look_late)
    folder = tmp_path / "monitor" / "log"
    async with running_monitor(
        tmp_path, FakeRegistry([trained_version()]), monitor_log_flush_interval_s=0.05
    ) as monitor:
        await record(monitor, requests(draw_traffic(1, hour_times(100, 0))))
        while not [path for path in folder.rglob("*.parquet") if not path.name.startswith(".")]:
            await asyncio.sleep(0.02)
        may_look.set()
        await _count(monitor, 100)
