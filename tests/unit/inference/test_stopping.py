"""A task that is told to stop stops, also when that comes together with what it waits for."""

import asyncio
from typing import Any

import grpc
import pytest

from services.inference.adapters.registry_client import ReplicaReporter


class Wishes:
    """A replica that only changes."""

    replica_id, pool, draining = "r", "p", False

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def changed(self) -> asyncio.Event:
        return self._changed

    def change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def statuses(self) -> list[Any]:
        return []


class Silent:
    """A registry that takes every report."""

    async def ReportReplica(self, request: Any, timeout: float) -> None:  # noqa: ASYNC109 - a stub's method
        return None


@pytest.mark.parametrize("steps", range(4))
async def test_a_reporter_stops_although_a_change_comes_with_the_stop(steps: int) -> None:
    wishes: Any = Wishes()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        reporter = ReplicaReporter(channel, wishes, 30.0)
        reporter._stub = Silent()
        task = asyncio.ensure_future(reporter.run())
        await asyncio.sleep(0.01)
        wishes.change()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=2)
    assert done
    assert task.cancelled()
