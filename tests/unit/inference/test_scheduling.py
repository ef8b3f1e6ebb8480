"""Who goes first, in batches of which sizes, and what several workers do with them: time stands still."""

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.criticality import Criticality
from services.common.tasks import spawn
from services.inference.domain.batch_time import BatchTime
from services.inference.domain.dispatch import CAUTIOUS_S, HUNG_S
from services.inference.domain.failure import QueueFull
from services.inference.domain.frame import Failure
from services.inference.domain.item import BatchKey, Item
from services.inference.domain.lengths import fill_lengths
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import BatchingPolicy
from tests.fakes.inference_runner import NOT_READY, FakeCaller, FakeRunner, Rig, item

FAR = 100_000.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Criticality), st.integers(1, 1_000)), min_size=1, max_size=60))
async def test_a_batch_holds_the_most_critical_and_then_the_most_urgent(
    requests: list[tuple[Criticality, int]],
) -> None:
    rig = Rig(policy=BatchingPolicy(4, 0.002))
    rig.send(*rig.values(250), *rig.values(251))
    rig.send(*rig.values(252), *rig.values(253))  # both places at the worker are taken
    wanted = []
    for tag, (level, seconds) in enumerate(requests):
        rig.send(item(rig.caller, tag, deadline=2_000.0 + seconds, criticality=level))
        wanted.append((level, seconds))
    rig.drain()
    # Within a batch the order says nothing.
    order = [one for _, data in rig.runner.sent[2:] for one in sorted(requests[tag] for tag in data)]
    assert order == sorted(wanted)


async def test_nothing_starves_and_the_critical_keep_three_quarters() -> None:
    rig = Rig(policy=BatchingPolicy(4, 0.002, ageing_s=0.5))
    lane = BatchKey((0,), ((1,),), solo=7)  # a lane of its own, which is never full
    old = [
        item(rig.caller, 200, deadline=FAR, criticality=Criticality.SHEDDABLE),
        item(rig.caller, 201, deadline=FAR, criticality=Criticality.DEFAULT),
        item(rig.caller, 202, deadline=FAR, criticality=Criticality.SHEDDABLE, key=lane),
    ]

    def urgent(turn: int) -> list[Item]:
        tags = [f"{turn} {number}" for number in range(4)]
        return [item(rig.caller, 1, deadline=5_000.0, criticality=Criticality.CRITICAL, tag=tag) for tag in tags]

    rig.send(*urgent(-3))
    rig.send(*urgent(-2))
    rig.send(*urgent(-1))  # one more than fits from now on, always
    for turn in range(80):
        rig.send(*urgent(turn), *(old if turn == 2 else ()))
        rig.clock.advance(0.02)
        rig.runner.answer()
        if rig.clock.now() < 1000.5:
            assert 200 not in rig.caller.answers
    assert {200, 201, 202} <= set(rig.caller.answers)
    first = [number for number, (_, data) in enumerate(rig.runner.sent) if {200, 201, 202} & set(data)]
    assert len(first) <= 3
    assert all(later - sooner >= 4 for sooner, later in pairwise(first))


async def test_the_model_sees_allowed_sizes_only_and_nobody_is_answered_the_filling() -> None:
    rig = Rig(policy=BatchingPolicy(8, 0.002, batch_sizes=(4, 8)))
    rig.send(*rig.values(1, 2))
    assert rig.runner.sent[-1][1] == b"\x01\x02\x02\x02"
    rig.runner.answer()
    rig.send(item(rig.caller, 3, deadline=1005.0), item(rig.caller, 4, 5, deadline=1006.0), item(rig.caller, 6, 7))
    assert rig.runner.sent[-1][1] == b"\x03\x04\x05\x06\x07\x07\x07\x07"
    rig.drain()
    assert rig.caller.answers == {1: b"\x02", 2: b"\x04", 3: b"\x06", 4: b"\x08\x0a", 6: b"\x0c\x0e"}
    assert sorted(rig.dispatcher.statistic.batches) == [2, 5]


def test_batch_times_are_learnt_by_size_and_lent_to_sizes_that_were_never_seen() -> None:
    times = BatchTime([(1, 0.001), (16, 0.008)])
    assert [times.seconds(rows) for rows in (1, 5, 16, 32, 64)] == [0.001, 0.008, 0.008, 0.016, 0.032]
    for _ in range(60):
        times.observe(6, 0.003)
        times.observe(40, 0.05)
    assert times.seconds(2) == times.seconds(8) == pytest.approx(0.003)
    assert times.seconds(64) == pytest.approx(0.05)
    assert times.seconds(16) == 0.008
    assert times.largest_within((1, 8, 16, 64), 0.01) == 16
    assert times.largest_within((16, 64), 0.001) == 16


async def test_a_latency_target_gives_the_wait_and_the_largest_batch() -> None:
    rig = Rig(policy=BatchingPolicy(64, 0.0, latency_target_s=0.1))
    rig.dispatcher.detach(rig.runner, "", NOT_READY)
    rig.dispatcher.attach(rig.runner, [(1, 0.01), (16, 0.02), (32, 0.04), (64, 0.08)])
    assert rig.dispatcher.queue.max_rows == 32
    rig.dispatcher.arrived(100)
    rig.send(*rig.values(1))
    rig.clock.advance(0.0099)
    assert rig.runner.sizes == []
    rig.clock.advance(0.0002)  # 90 ms less two batches of 40 ms
    assert rig.runner.sizes == [1]
    for _ in range(60):
        rig.dispatcher.times.observe(32, 0.2)
    rig.dispatcher.set_policy(rig.policy)
    assert rig.dispatcher.queue.max_rows == 16


async def test_a_full_queue_makes_room_for_what_is_more_critical_and_tells_the_displaced_at_once() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002, max_queue_rows=3))

    def send(tag: int, level: Criticality, rows: int = 1, deadline: float = FAR) -> None:
        rig.send(item(rig.caller, *[tag] * rows, tag=tag, criticality=level, deadline=deadline))

    for tag in (1, 2):  # both are at the worker
        send(tag, Criticality.DEFAULT)
    send(3, Criticality.SHEDDABLE, deadline=FAR - 1)
    send(4, Criticality.DEFAULT)
    send(5, Criticality.SHEDDABLE)
    send(6, Criticality.CRITICAL)
    assert {tag: error.reason for tag, error in rig.caller.errors.items()} == {5: "QUEUE_FULL"}
    assert rig.caller.errors[5].retry_after_s
    send(7, Criticality.DEFAULT)
    assert set(rig.caller.errors) == {3, 5}
    for level in (Criticality.DEFAULT, Criticality.SHEDDABLE):
        with pytest.raises(QueueFull, match="the queue holds 3"):
            send(8, level)
    send(9, Criticality.CRITICAL)
    send(10, Criticality.CRITICAL)
    assert set(rig.caller.errors) == {3, 4, 5, 7}
    with pytest.raises(QueueFull):
        send(11, Criticality.CRITICAL)
    rig.drain()
    assert set(rig.caller.answers) == {1, 2, 6, 9, 10}
    assert rig.dispatcher.in_flight == rig.dispatcher.queue.rows == 0


async def test_the_policys_own_limits_hold_and_change_at_once() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002, max_queue_rows=2))
    for value in (1, 2, 3, 4):
        rig.send(*rig.values(value))
    with pytest.raises(QueueFull, match="the queue holds 2"):
        rig.send(*rig.values(5))
    rig.dispatcher.set_policy(BatchingPolicy(1, 0.002, max_queue_rows=3, max_queue_bytes=3))
    rig.send(*rig.values(6))
    with pytest.raises(QueueFull):
        rig.send(*rig.values(7))
    rig.drain()
    assert sorted(map(str, rig.caller.answers)) == ["1", "2", "3", "4", "6"]


async def test_two_workers_share_the_work_and_one_that_dies_takes_only_its_own() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002))
    other = FakeRunner(rig.dispatcher)
    rig.attach(other)
    assert rig.dispatcher.instances == 2
    for value in range(1, 6):
        rig.send(*rig.values(value))
    assert (rig.runner.sizes, other.sizes) == ([1, 1], [1, 1])
    rig.die()
    assert {tag: error.reason for tag, error in rig.caller.errors.items()} == {1: "WORKER_DIED", 3: "WORKER_DIED"}
    while other.out:
        other.answer()
    assert sorted(map(str, rig.caller.answers)) == ["2", "4", "5"]
    assert rig.dispatcher.idle.is_set()


async def test_a_worker_that_is_to_go_answers_what_it_has_and_gets_nothing_more() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002))
    rig.send(*rig.values(1, 2, 3))
    successor = FakeRunner(rig.dispatcher)
    rig.attach(successor)
    retiring = spawn(rig.dispatcher.retire(rig.runner), name="retire")
    await asyncio.sleep(0)
    rig.runner.answer()
    await asyncio.sleep(0)
    assert not retiring.done()
    rig.runner.answer()
    await retiring
    assert (rig.runner.sizes, successor.sizes) == ([1, 1], [1])
    assert rig.dispatcher.instances == 1


async def test_a_batch_too_large_for_the_memory_is_halved_down_to_single_rows() -> None:
    rig = Rig(policy=BatchingPolicy(8, 0.002))
    rig.runner.most_rows = 2
    whole = item(rig.caller, 11, 12, 13, 14, 15)
    rig.send(*rig.values(1, 2, 3), whole)
    rig.drain()
    assert rig.caller.answers == {1: b"\x02", 2: b"\x04", 3: b"\x06", 11: bytes([22, 24, 26, 28, 30])}
    rig.send(*rig.values(4, 5, 6, 7, 8))  # careful from now on, for a while
    rig.drain()
    assert rig.runner.sizes[-3:] == [1, 1, 1]
    rig.clock.advance(CAUTIOUS_S)
    rig.runner.most_rows = 0
    rig.send(item(rig.caller, 9, deadline=FAR))
    rig.drain()
    assert rig.caller.errors[9].reason == "OUT_OF_MEMORY"
    assert rig.caller.errors[9].code.name == "RESOURCE_EXHAUSTED"
    assert rig.dispatcher.in_flight == 0


async def test_a_batch_beyond_its_time_is_interrupted_and_only_a_worker_that_does_not_stop_is_killed() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002, max_batch_time_s=5.0))
    rig.send(*rig.values(1, deadline=FAR))
    rig.send(*rig.values(2, deadline=FAR))
    rig.clock.advance(5.1)
    assert rig.caller.errors[1].reason == "BATCH_TOO_SLOW"
    assert rig.runner.interrupted == [1]
    rig.runner.fail(Failure.INTERRUPTED)
    rig.clock.advance(4.0)
    assert 2 not in rig.caller.errors
    rig.clock.advance(1.0)  # it had to wait for the first one: twice the time
    assert rig.runner.interrupted == [1, 2]
    assert not rig.runner.killed
    rig.clock.advance(HUNG_S)
    assert rig.runner.killed


async def test_a_batch_that_has_not_begun_is_no_reason_to_kill() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002, max_batch_time_s=60.0))
    rig.send(*rig.values(1, deadline=FAR))
    rig.send(*rig.values(2, deadline=1000.1))
    rig.clock.advance(0.2)
    assert rig.caller.errors[2].reason == "DEADLINE_EXCEEDED"
    rig.clock.advance(3 * HUNG_S)
    assert not rig.runner.killed


def test_variable_lengths_are_filled_up_to_the_next_bucket() -> None:
    specs = [TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("w", "BYTES", (-1, -1)), TensorSpec("x", "FP32", (-1, 2))]
    ids = np.arange(6, dtype="<i8").reshape(2, 3)
    words = b"".join(len(word).to_bytes(4, "little") + word for word in (b"a", b"bc", b"", b"d"))
    rows = np.ones((2, 2), "<f4")
    made = item(FakeCaller(), 1, 2, key=BatchKey((0,), ((3,), (2,), (2,))))
    made.inputs = [ids.tobytes(), words, rows.tobytes()]
    fill_lengths(made, specs, (4, 8))
    assert made.key.trailing == ((4,), (4,), (2,))
    assert np.frombuffer(made.inputs[0], "<i8").reshape(2, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    assert made.inputs[1] == b"\1\0\0\0a\2\0\0\0bc" + bytes(8) + b"\0\0\0\0\1\0\0\0d" + bytes(8)
    assert made.inputs[2] == rows.tobytes()
    assert made.size_bytes == sum(map(len, made.inputs))
    longer = item(FakeCaller(), 1, key=BatchKey((0,), ((9,), (9,), (2,))))
    longer.inputs = [bytes(72), bytes(36), bytes(8)]
    fill_lengths(longer, specs, (4, 8))
    assert longer.key.trailing == ((9,), (9,), (2,))
