"""Restarts wait longer and longer, at random, and end."""

import pytest

from interlock_cli.stack.backoff import Backoff, RestartPolicy

POLICY = RestartPolicy(first_wait_s=0.5, longest_wait_s=3.0, crash_limit=4, crash_window_s=60.0)


def test_the_bound_doubles_up_to_the_longest_wait() -> None:
    backoff = Backoff(POLICY, draw=lambda: 1.0)
    waits = []
    for now in range(5):
        backoff.fail(now)
        waits.append(backoff.wait_s())
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(("drawn", "wait_s"), [(0.0, 0.0), (0.25, 0.125), (1.0, 0.5)])
def test_the_wait_is_drawn_from_the_whole_range(drawn: float, wait_s: float) -> None:
    backoff = Backoff(POLICY, draw=lambda: drawn)
    backoff.fail(0.0)
    assert backoff.wait_s() == wait_s


def test_failures_in_the_window_exhaust_and_old_ones_are_forgotten() -> None:
    backoff = Backoff(POLICY, draw=lambda: 1.0)
    for now in (0.0, 1.0, 2.0):
        backoff.fail(now)
    assert not backoff.exhausted
    backoff.fail(61.5)
    assert not backoff.exhausted, "the first two lie outside the window"
    backoff.fail(61.6)
    backoff.fail(61.7)
    assert backoff.exhausted
    backoff.forget()
    assert not backoff.exhausted
