"""The share rule, with a clock that the test moves."""

from dataclasses import dataclass

from services.router.domain.gathering import Gathering


@dataclass(eq=False)
class Waiter:
    deadline: float = 100.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def gathering(in_flight: int, waiting: int, clock: Clock | None = None, arriving: int = 0) -> Gathering[Waiter]:
    found: Gathering[Waiter] = Gathering(0.002, clock or Clock(), lambda: arriving)
    found.in_flight = in_flight
    for _ in range(waiting):
        found.add(Waiter())
    return found


def test_a_lone_call_leaves_at_once() -> None:
    assert gathering(1, 1).is_due()


def test_nothing_is_due_when_nothing_waits() -> None:
    assert not gathering(5, 0).is_due()


def test_half_of_the_calls_in_flight_leave_at_once() -> None:
    assert gathering(16, 8).is_due()
    assert gathering(15, 8).is_due()
    assert not gathering(16, 7).is_due()
    assert not gathering(17, 8).is_due()


def test_the_first_of_a_burst_waits_for_those_whose_headers_are_here() -> None:
    clock = Clock()
    found = gathering(1, 1, clock, arriving=2)
    assert not found.is_due()
    assert gathering(1, 1, arriving=1).is_due()
    clock.now = 0.002
    assert found.is_due()


def test_after_two_milliseconds_all_leave() -> None:
    clock = Clock()
    found = gathering(64, 1, clock)
    clock.now = 0.0019
    assert not found.is_due()
    assert 0 < found.due_in_s() < 0.0002
    clock.now = 0.002
    assert found.is_due()
    assert found.due_in_s() == 0


def test_the_tightest_deadline_comes_first() -> None:
    found = gathering(64, 1)
    found.add(Waiter(deadline=0.0005))
    assert found.due_in_s() == 0.0005


def test_the_wait_counts_from_the_first_and_begins_anew_after_leaving() -> None:
    clock = Clock()
    found = gathering(64, 1, clock)
    clock.now = 0.0015
    found.add(Waiter())
    assert found.due_in_s() < 0.0006
    assert len(found.take()) == 2
    found.add(Waiter())
    assert found.due_in_s() == 0.002


def test_calls_that_end_may_make_the_rest_due() -> None:
    found = gathering(10, 4)
    assert not found.is_due()
    found.in_flight -= 2
    assert found.is_due()


def test_a_request_is_taken_back_unless_it_has_left() -> None:
    found = gathering(10, 2)
    first = found.waiting[0]
    assert found.remove(first)
    assert not found.remove(first)
    assert len(found.take()) == 1
