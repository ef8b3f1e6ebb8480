"""Short work that a cancelled caller does not cut."""

import asyncio

import pytest

from services.common.tasks import to_the_end


async def test_work_ends_although_its_caller_is_cancelled_twice() -> None:
    gate, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    caller = asyncio.ensure_future(to_the_end(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()


async def test_result_and_error_come_through() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise ValueError("wrong")

    assert await to_the_end(answer()) == 42
    with pytest.raises(ValueError, match="wrong"):
        await to_the_end(fail())
