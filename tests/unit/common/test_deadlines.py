"""One timer for the deadlines of all calls."""

import asyncio
import time

import pytest

from services.common.call import Call
from services.common.deadlines import Deadlines
from services.common.errors import DeadlineExceeded

Ended = list[str]


async def call(deadlines: Deadlines, ended: Ended, name: str, timeout_s: float, work: asyncio.Event) -> None:
    """A call that waits for its work; what it ends with goes into `ended`."""
    try:
        with deadlines.watch(Call(name, deadline=time.monotonic() + timeout_s, task=asyncio.current_task())):
            await work.wait()
            ended.append(f"{name} done")
    except DeadlineExceeded:
        ended.append(f"{name} late")
    except asyncio.CancelledError:
        ended.append(f"{name} cancelled")
        raise


async def test_each_call_meets_its_own_deadline_whichever_came_first() -> None:
    deadlines, ended, work = Deadlines(), Ended(), asyncio.Event()
    waits = {"long": 30.0, "second": 0.04, "first": 0.01, "third": 0.07}
    tasks = {name: asyncio.ensure_future(call(deadlines, ended, name, wait, work)) for name, wait in waits.items()}
    await asyncio.wait([tasks[name] for name in ("first", "second", "third")])
    work.set()
    await tasks["long"]
    assert ended == ["first late", "second late", "third late", "long done"]


async def test_a_cancellation_by_others_stays_one() -> None:
    deadlines, ended = Deadlines(), Ended()
    task = asyncio.ensure_future(call(deadlines, ended, "gone", 30.0, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["gone cancelled"]


async def test_a_call_that_ends_in_time_leaves_its_task_uncancelled() -> None:
    deadlines, ended, work = Deadlines(), Ended(), asyncio.Event()
    work.set()
    await call(deadlines, ended, "quick", 0.005, work)
    await asyncio.sleep(0.02)
    assert ended == ["quick done"]
