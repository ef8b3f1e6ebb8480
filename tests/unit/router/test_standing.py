"""Who is left alone, for how long, and how often is tried again."""

import pytest

from services.router.adapters.inference_client.standing import Standing, Usual


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ends(standing: Standing, started: float, *, failed: bool | None) -> None:
    standing.left(started, probing=standing.enter(), failed=failed)


def test_requests_that_fail_together_are_one_failure(clock: Clock) -> None:
    standing = Standing("v at r", clock)
    started = clock.now
    clock.now += 0.25
    for _ in range(64):
        ends(standing, started, failed=True)
    assert standing.away_until == clock.now + 0.5
    assert not standing.refuses


def test_each_further_failure_keeps_it_away_longer_until_it_answers_again(clock: Clock) -> None:
    standing = Standing("v at r", clock)
    pauses = []
    for _ in range(3):
        clock.now = standing.away_until + 1
        ends(standing, clock.now, failed=True)
        pauses.append(standing.away_until - clock.now)
        ends(standing, clock.now - 0.5, failed=False)
    assert pauses == [0.5, 1.0, 2.0], "an answer to what was sent before the failure proves nothing"
    clock.now = standing.away_until + 1
    ends(standing, clock.now, failed=False)
    clock.now += 1
    ends(standing, clock.now, failed=True)
    assert standing.away_until - clock.now == 0.5


def test_five_failures_open_the_breaker_and_callers_who_leave_do_not(clock: Clock) -> None:
    standing = Standing("v at r", clock)
    for _ in range(100):
        clock.now += 1
        ends(standing, clock.now, failed=None)
    assert standing.away_until == 0.0
    for _ in range(5):
        assert not standing.refuses
        clock.now += 1
        ends(standing, clock.now - 0.5, failed=True)
    assert standing.refuses


def test_a_breaker_lets_one_probe_through_at_a_time_and_closes_after_three(clock: Clock) -> None:
    standing = Standing("v at r", clock)
    for _ in range(5):
        clock.now += 1
        ends(standing, clock.now, failed=True)
    for longest_s in (1.2, 2.4, 4.8, 9.6, 19.2, 36.0, 36.0):
        clock.now += 0.5
        assert standing.refuses
        clock.now += longest_s
        assert not standing.refuses
        probing = standing.enter()
        assert standing.refuses, "one at a time"
        standing.left(clock.now, probing=probing, failed=True)
    clock.now += 36.0
    for _ in range(3):
        assert not standing.refuses
        ends(standing, clock.now, failed=False)
    standing.enter()
    assert not standing.refuses


def test_half_of_twenty_opens_the_breaker(clock: Clock) -> None:
    standing = Standing("v at r", clock)
    for number in range(22):
        assert not standing.refuses
        clock.now += 0.1
        ends(standing, clock.now - 0.01, failed=number % 2 == 0)
        if standing.refuses:
            break
    assert standing.refuses
    assert number >= 19


def test_patience_is_what_is_usual_and_more(clock: Clock) -> None:
    usual = Usual(floor_s=0.25)
    for _ in range(7):
        usual.answered(2.0)
    assert usual.patience_s is None, "too few are known"
    for _ in range(200):
        usual.answered(2.0)
    assert usual.patience_s == pytest.approx(4.0, rel=0.01)
    assert usual.was_enough(1.1)
    assert not usual.was_enough(0.9)
    for _ in range(200):
        usual.answered(0.001)
    assert usual.patience_s == 0.25


def test_retries_run_out_and_come_back_with_answers() -> None:
    usual = Usual(floor_s=0.25)
    retries = 0
    while usual.may_retry:
        usual.retried()
        retries += 1
    assert retries == 500
    for _ in range(100):
        usual.answered(0.01)
    retries = 0
    while usual.may_retry:
        usual.retried()
        retries += 1
    assert 9 <= retries <= 10
