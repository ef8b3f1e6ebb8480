"""Versions in one process: whose turn it is, who is to blame, and how much memory they may have together."""

import threading

import pytest

from services.inference.domain.sharing import Offenders, outgrown
from services.inference.domain.version import VersionKey
from services.inference.worker.shared_loop import Turns
from tests.fakes.inference_runner import NOT_READY, Rig, item

A, B = VersionKey("a", "1"), VersionKey("b", "1")


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order, pause = Turns(), [], threading.Event()
    turns.take()

    def work(number: int) -> None:
        turns.take()
        order.append(number)
        turns.give()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for count, thread in enumerate(threads, start=1):
        thread.start()
        while turns.waiting != count:
            pause.wait(0.001)
    turns.give()
    for thread in threads:
        thread.join()
    assert order == list(range(6))
    turns.take()  # it is free again


def test_a_version_is_proven_by_two_ends_within_an_hour() -> None:
    offenders = Offenders()
    offenders.blame(A, 1000.0)
    offenders.blame(B, 1000.0)
    offenders.blame(B, 5000.0)
    assert not offenders.proven(A)
    assert not offenders.proven(B)
    offenders.blame(A, 4600.0)
    assert offenders.proven(A)
    assert not offenders.proven(B)


@pytest.mark.parametrize(
    ("resident", "limits", "at_load", "expected"),
    [(301, [100, 200], 0, True), (300, [100, 200], 0, False), (301, [100, 0], 0, False), (301, [100, 200], 301, False)],
)
def test_memory_limits_add_up_and_count_only_with_everybody(
    resident: int, limits: list[int], at_load: int, expected: bool
) -> None:
    assert outgrown(resident, limits, at_load) is expected


async def test_the_requests_of_an_innocent_version_are_no_suspects() -> None:
    rig = Rig()
    for turn in range(3):
        rig.send(item(rig.caller, 1, tag=turn))
        rig.dispatcher.detach(rig.runner, "ended", NOT_READY, blame=False)
        rig.attach(rig.runner)
    assert len(rig.caller.errors) == 3
    rig.runner.out.clear()
    rig.send(item(rig.caller, 1, tag="once more"))  # with blame it would be refused by now
    rig.drain()
    assert "once more" in rig.caller.answers
