"""Calls that are on their way in, with a clock that the test moves."""

from services.common.arrivals import Arrivals


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_call_counts_from_its_headers_to_its_body() -> None:
    arrivals = Arrivals(Clock())
    first, second = object(), object()
    arrivals.begin(first)
    arrivals.begin(second)
    assert arrivals.count() == 2
    arrivals.end(second)
    assert arrivals.count() == 1
    arrivals.end(first)
    arrivals.end(first)
    assert arrivals.count() == 0


def test_nobody_waits_for_a_body_that_does_not_come() -> None:
    clock = Clock()
    arrivals = Arrivals(clock)
    arrivals.begin(object())
    clock.now += 0.015
    arrivals.begin(object())
    assert arrivals.count() == 2
    clock.now += 0.010
    assert arrivals.count() == 1
