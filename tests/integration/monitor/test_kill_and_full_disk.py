"""What was acknowledged outlives a kill of the process, and a disk that is really full."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from interlock.monitor.v1 import feedback_service_pb2 as feedback_pb
from interlock.monitor.v1 import feedback_service_pb2_grpc as feedback_rpc
from interlock.monitor.v1 import monitor_service_pb2_grpc as rpc

from interlock_cli.stack.ready_socket import ReadySocket
from services.common.settings import PORTS
from tests.contract.descriptors import ROOT
from tests.fakes.monitor_registry import FakeRegistry, serve_registry
from tests.fakes.monitor_traffic import Traffic, draw_traffic, hour_times, requests
from tests.fakes.ports import free_offset
from tests.integration.monitor.asking import label, query, reason, record, send, text_id, until
from tests.integration.monitor.conftest import Monitor, running_monitor
from tests.integration.monitor.test_analysis import drift_when, scope_of, trained_version

FULL = ("RESOURCE_EXHAUSTED", "STORAGE_FULL")


async def ids_in_log(monitor: Monitor) -> list[str]:
    rows = await query(monitor, "SELECT prediction_id::VARCHAR AS id FROM predictions")
    return [row["id"] for row in rows]


async def count_in_windows(monitor: Monitor, at_least: int) -> int:
    """Return what the last whole hour has once it has so many."""
    times = hour_times(1, 0)
    scope = scope_of(start_s=times[0], end_s=times[0] + 1)
    while True:
        try:
            report = await drift_when(monitor, lambda found: found.prediction_count >= at_least, scope)
        except grpc.aio.AioRpcError as error:
            # The registry was slow once, and is asked again a little later.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)
        else:
            return report.prediction_count


async def labels_joined(monitor: Monitor, count: int) -> None:
    async def all_there() -> bool:
        return bool((await query(monitor, "SELECT count(label) AS n FROM predictions"))[0]["n"] >= count)

    await until(all_there)


async def test_what_was_acknowledged_outlives_a_kill_and_counts_once(tmp_path: Path) -> None:
    registry = FakeRegistry([trained_version()])
    traffic = draw_traffic(1, hour_times(20_000, 0))
    async with serve_registry(registry) as address, monitor_process(tmp_path, address) as (process, channel):
        count, labelled = await send_until_killed(process, channel, traffic)
    # Some of them are in files, some in the journal, none in the windows.
    async with running_monitor(tmp_path, registry, monitor_label_join_interval_s=0.05) as monitor:
        found = await ids_in_log(monitor)
        assert len(found) == len(set(found))
        assert set(map(text_id, traffic.ids[:count])) <= set(found)
        assert await count_in_windows(monitor, len(found)) == len(found)
        await labels_joined(monitor, labelled)
        await record(monitor, requests(draw_traffic(3, hour_times(10, 0))))
        assert await count_in_windows(monitor, len(found) + 10) == len(found) + 10
    # What has come back once does not come back again.
    async with running_monitor(tmp_path, registry) as monitor:
        assert len(await ids_in_log(monitor)) == len(found) + 10
        assert await count_in_windows(monitor, len(found) + 10) == len(found) + 10


async def send_until_killed(
    process: asyncio.subprocess.Process, channel: grpc.aio.Channel, traffic: Traffic
) -> tuple[int, int]:
    """Kill the process in the middle of its work; returns how many predictions and labels it had acknowledged."""
    predictions, feedback = rpc.MonitorServiceStub(channel), feedback_rpc.FeedbackServiceStub(channel)
    count, labelled, number = 0, 0, 0
    with contextlib.suppress(grpc.aio.AioRpcError):
        for number, request in enumerate(requests(traffic, rows=100)):
            if number % 7 == 0:
                request.batch.statuses[:] = [14] * 100
            if number == 20:
                asyncio.get_running_loop().call_later(0.02, process.kill)
            count += (await predictions.RecordPredictions(iter([request]))).prediction_count
            if number % 7:
                labels = [label(one, 1) for one in traffic.ids[count - 50 : count]]
                await feedback.SendFeedback(feedback_pb.SendFeedbackRequest(feedback=labels))
                labelled += 50
    assert process.returncode is not None or number >= 20, "a call failed before the process was killed"
    await process.wait()
    assert 2000 <= count < len(traffic)
    return count, labelled


@asynccontextmanager
async def monitor_process(
    folder: Path, registry_address: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, grpc.aio.Channel]]:
    """Run a monitor as a process of its own that writes small files and keeps windows in memory."""
    offset = free_offset()
    notifications = ReadySocket(folder / "notify")
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(folder),
        "INTERLOCK_PORT_OFFSET": str(offset),
        "INTERLOCK_REGISTRY_ADDRESS": registry_address,
        "INTERLOCK_MONITOR_LOG_FLUSH_ROWS": "700",
        "INTERLOCK_MONITOR_LOG_FLUSH_INTERVAL_S": "3600",
        "INTERLOCK_MONITOR_WINDOW_INTERVAL_S": "3600",
        "NOTIFY_SOCKET": str(notifications.path),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen"))),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.monitor", env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(40):
            await notifications.ready.wait()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{PORTS['monitor'] + offset}") as channel:
            yield process, channel
    finally:
        notifications.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, that a test can fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "il-disk", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


async def test_a_disk_that_is_full_refuses_what_it_cannot_keep_and_loses_nothing_acknowledged(small_disk: Path) -> None:
    registry = FakeRegistry([trained_version()])
    quick: dict[str, Any] = {
        "monitor_log_flush_interval_s": 0.2,
        "monitor_window_interval_s": 0.1,
        "monitor_label_join_interval_s": 0.05,
    }
    traffic = [draw_traffic(seed, hour_times(300, 0)) for seed in range(3)]
    async with running_monitor(small_disk, registry, **quick) as monitor:
        assert await record(monitor, requests(traffic[0])) == 300
        assert await count_in_windows(monitor, 300) == 300
        # A journal that goes once its rows are in the log would make room again.
        while any((small_disk / "monitor" / "journal").iterdir()):
            await asyncio.sleep(0.01)
        filler = fill(small_disk)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await record(monitor, requests(traffic[1]))
        assert reason(caught.value)[:2] == FULL
        labelled = await label_until_full(monitor, traffic[0])
        # Whoever reads is not disturbed, and sees what waits for room.
        assert len(await ids_in_log(monitor)) == 600
        filler.unlink()
        assert await record(monitor, requests(traffic[2])) == 300
        assert len(await ids_in_log(monitor)) == 900
        assert await count_in_windows(monitor, 900) == 900
        await send(monitor, label(traffic[2].ids[0], 1))
        await labels_joined(monitor, labelled + 1)
    async with running_monitor(small_disk, registry) as monitor:
        assert len(await ids_in_log(monitor)) == 900
        assert await count_in_windows(monitor, 900) == 900
        await labels_joined(monitor, labelled + 1)


async def label_until_full(monitor: Monitor, traffic: Traffic) -> int:
    """Send labels one by one until the disk takes no more; returns how many it took."""
    taken = 0

    async def send_all() -> None:
        nonlocal taken
        for prediction_id in traffic.ids:
            assert await send(monitor, label(prediction_id, 1)) == ["TAKEN"]
            taken += 1

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send_all()
    assert reason(caught.value)[:2] == FULL
    return taken
