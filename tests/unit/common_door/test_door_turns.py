"""The class in which the kernel runs the door's threads: real threads of this process, and what the kernel says of them."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.common.door_turns import Turns
from services.inference.worker.limits import usual_scheduling


@pytest.fixture
def thread() -> Iterator[int]:
    """A thread of this process besides its main one."""
    ended = threading.Event()
    running = threading.Thread(target=ended.wait)
    running.start()
    assert running.native_id is not None
    yield running.native_id
    ended.set()
    running.join()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Every test finds the usual class."""
    yield
    usual_scheduling()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr("services.common.door_turns.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def class_of(thread: int) -> int:
    return os.sched_getscheduler(thread)


def test_threads_do_not_interrupt_each_other_while_calls_overlap(thread: int, now: list[float]) -> None:
    Path(f"/proc/self/task/{thread}/comm").write_text("wrk:worker_0")
    turns = Turns()
    with turns.counted():
        assert class_of(thread) == os.SCHED_OTHER
        with turns.counted():
            assert class_of(thread) == os.SCHED_BATCH
            assert class_of(os.getpid()) == os.SCHED_OTHER, "the main thread of Envoy has no part in calls"
    now[0] += 0.15
    with turns.counted():
        assert class_of(thread) == os.SCHED_BATCH, "calls overlapped a moment ago"
    now[0] += 0.1
    with turns.counted():
        assert class_of(thread) == os.SCHED_OTHER


def test_a_thread_that_starts_meanwhile_is_moved_back_too(now: list[float]) -> None:
    turns, ended = Turns(), threading.Event()
    with turns.counted(), turns.counted():
        started = threading.Thread(target=ended.wait)
        started.start()
    assert started.native_id is not None
    assert class_of(started.native_id) == os.SCHED_BATCH, "it has the class of who started it"
    now[0] += 0.3
    with turns.counted():
        assert class_of(started.native_id) == os.SCHED_OTHER
    ended.set()
    started.join()


def test_outside_envoy_all_threads_take_part(thread: int) -> None:
    turns = Turns()
    with turns.counted(), turns.counted():
        assert class_of(thread) == class_of(os.getpid()) == os.SCHED_BATCH


async def test_calls_are_not_taken_in_for_ever(now: list[float]) -> None:
    turns, order = Turns(), []
    with turns.counted(), turns.counted():
        turns.soon(lambda: order.append("left"), gathers=True)
        for _ in range(20):
            now[0] += 0.001
            with turns.counted():
                await asyncio.sleep(0)
            if order:
                break
    assert order
    assert now[0] == pytest.approx(100.010, abs=0.0015)


async def test_what_gathers_waits_while_calls_that_overlap_are_handed_over() -> None:
    turns, order = Turns(), []

    async def call(name: str) -> None:
        with turns.counted():
            order.append(name)
            await asyncio.sleep(5)

    async def handed_over(count: int) -> None:
        for at in range(count):
            for _ in range(4):
                await asyncio.sleep(0)
            calls.append(asyncio.ensure_future(call(f"call {at}")))

    calls: list[asyncio.Future[None]] = []
    with turns.counted():
        turns.soon(lambda: order.append("alone"), gathers=True)
        await handed_over(2)
    turns.soon(lambda: order.append("together"), gathers=True)
    await handed_over(3)
    while order[-1] != "together":
        await asyncio.sleep(0)
    assert order == ["alone", "call 0", "call 1", "call 0", "call 1", "call 2", "together"]
    turns.soon(lambda: order.append("at once"), gathers=False)
    await asyncio.sleep(0)
    assert order[-1] == "at once"
    for each in calls:
        each.cancel()


def test_a_kernel_that_does_not_allow_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise PermissionError("not in this container")

    monkeypatch.setattr("os.sched_setscheduler", refuse)
    turns = Turns()
    for _ in range(4):
        turns.begin()
    assert len(asked) == 1
    assert turns.together
