"""What comes in goes to every sink that keeps up; what does not fit is counted, and nobody waits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from services.monitor.convert.prediction_batch import batch_from_proto
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.columns import PredictionColumns
from services.monitor.domain.intake import Intake
from services.monitor.domain.raw_batch import RawBatch, RawTensor
from services.monitor.domain.version_info import VersionInfo
from tests.fakes.prediction_events import events


class NoVersions:
    async def get(self, model: str, version: str) -> VersionInfo | None:
        return None


class Sink:
    def __init__(self) -> None:
        self.count = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.fails = False
        self.receive_times_us: list[int] = []

    async def take(self, columns: PredictionColumns) -> None:
        self.receive_times_us.append(columns.receive_time_us)
        await self.may_go_on.wait()
        if self.fails:
            raise RuntimeError("broken")
        self.count += columns.count


def batch(count: int) -> RawBatch:
    found = batch_from_proto(events(statuses=[0] * count))
    assert found is not None
    return found


@asynccontextmanager
async def running(make: Callable[[], Intake]) -> AsyncIterator[Intake]:
    intake = make()
    tasks = [asyncio.ensure_future(work) for _, work in intake.works()]
    yield intake
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_slow_sink_loses_its_own_and_the_others_get_all() -> None:
    fast, slow, drops = Sink(), Sink(), Drops()
    slow.may_go_on.clear()
    sinks = {"log": fast, "windows": slow}
    async with running(lambda: Intake(NoVersions(), sinks, drops, limit_bytes=10**6, sink_limit_rows=25)) as intake:
        for _ in range(5):
            assert intake.offer(batch(10))
            await asyncio.sleep(0.01)
        assert fast.count == 50
        assert list(drops.counts()) == [("windows", "queue_full", 30)]
        slow.may_go_on.set()
        await intake.drained()
        assert slow.count == 20


async def test_a_batch_that_comes_again_a_broken_tensor_and_a_broken_sink_are_counted() -> None:
    sink, drops = Sink(), Drops()
    async with running(
        lambda: Intake(NoVersions(), {"log": sink}, drops, limit_bytes=10**6, sink_limit_rows=100)
    ) as intake:
        first = batch(3)
        assert intake.offer(first)
        assert not intake.offer(first)
        assert intake.offer(replace(batch(2), inputs=(RawTensor("t", "BYTES", (2, 1), b"\xff"),)))
        # Nothing that reading the batch lets through; whatever it is, it must cost this batch only.
        assert intake.offer(replace(batch(1), inputs=(RawTensor("t", "FP32", (7, 7), b""),)))
        await intake.drained()
        sink.fails = True
        assert intake.offer(batch(4))
        await intake.drained()
        sink.fails = False
        assert intake.offer(batch(5))
        await intake.drained()
    assert sink.count == 8
    assert set(drops.counts()) == {
        ("intake", "resent", 3),
        ("intake", "malformed", 2),
        ("intake", "failed", 1),
        ("log", "failed", 4),
    }


async def test_what_waits_to_be_decoded_is_bounded_in_bytes() -> None:
    drops = Drops()
    intake = Intake(NoVersions(), {}, drops, limit_bytes=2000, sink_limit_rows=10)
    for _ in range(4):
        assert intake.offer(batch(5))
    assert list(drops.counts()) == [("intake", "queue_full", 5)]


async def test_receive_times_rise_though_the_clock_is_set_back() -> None:
    times, sink = iter([2e9, 2e9 - 86_400, 1.0]), Sink()
    limits = {"limit_bytes": 10**6, "sink_limit_rows": 100, "after_us": 2_100_000_000_000_000}
    async with running(
        lambda: Intake(NoVersions(), {"log": sink}, Drops(), clock=lambda: next(times), **limits)
    ) as intake:
        for _ in range(3):
            assert intake.offer(batch(1))
        await intake.drained()
    assert sink.receive_times_us == [2_100_000_000_000_000 + step for step in (1, 2, 3)]
