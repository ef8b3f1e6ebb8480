"""The class in which the kernel runs the door's threads: real threads of this process, and what the kernel says of them."""

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from services.common.door_turns import Turns, threads_in_envoy, threads_of_process


@pytest.fixture
def thread() -> Iterator[int]:
    """A thread without a name of its own, as those are that run Python inside Envoy."""
    ended = threading.Event()
    running = threading.Thread(target=ended.wait)
    running.start()
    assert running.native_id is not None
    yield running.native_id
    ended.set()
    running.join()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr("services.common.door_turns.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def class_of(thread: int) -> int:
    return os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK


def test_threads_do_not_interrupt_each_other_while_calls_overlap(thread: int, now: list[float]) -> None:
    turns = Turns(threads_in_envoy)
    turns.look(1)
    assert class_of(thread) == os.SCHED_OTHER
    turns.look(2)
    assert class_of(thread) == os.SCHED_BATCH
    assert class_of(os.getpid()) == os.SCHED_OTHER, "the main thread of Envoy has no part in calls"
    now[0] += 0.15
    turns.look(1)
    assert class_of(thread) == os.SCHED_BATCH, "calls overlapped a moment ago"
    now[0] += 0.1
    turns.look(1)
    assert class_of(thread) == os.SCHED_OTHER


def test_calls_that_overlap_are_counted(thread: int, now: list[float]) -> None:
    turns = Turns(threads_of_process)
    with turns:
        assert class_of(thread) == class_of(os.getpid()) == os.SCHED_OTHER
        with turns:
            assert class_of(thread) == class_of(os.getpid()) == os.SCHED_BATCH
    now[0] += 0.3
    with turns:
        assert class_of(thread) == class_of(os.getpid()) == os.SCHED_OTHER


def test_a_kernel_that_does_not_allow_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise PermissionError("not in this container")

    monkeypatch.setattr("os.sched_setscheduler", refuse)
    turns = Turns(threads_in_envoy)
    for calls in (2, 2, 2):
        turns.look(calls)
    assert len(asked) == 1
    assert turns.together
