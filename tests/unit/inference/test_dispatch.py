"""Batching, admission and failure of one version, with a clock that stands still."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.criticality import Criticality
from services.inference.domain.admission import QueueLimits
from services.inference.domain.dispatch import HUNG_S
from services.inference.domain.failure import QueueFull, VersionNotReady
from services.inference.domain.frame import Failure
from services.inference.domain.item import BatchKey, Item
from services.inference.domain.quarantine import Quarantined
from services.inference.domain.splitting import PartsSink, split_item
from services.inference.domain.version import BatchingPolicy
from tests.fakes.inference_runner import ANSWER, NOT_READY, SPEC, FakeRunner, Rig, item


async def test_a_lone_request_never_waits() -> None:
    rig = Rig()
    rig.send(*rig.values(3))
    assert rig.runner.sizes == [1]
    rig.runner.answer()
    assert rig.caller.answers == {3: b"\x06"}
    assert rig.observer.reasons == ["share"]
    assert rig.dispatcher.in_flight == 0
    assert rig.dispatcher.idle.is_set()


async def test_half_of_the_calls_in_flight_leave_at_once_and_less_wait_for_the_delay() -> None:
    rig = Rig()
    rig.dispatcher.arrived(6)  # calls whose message is being read
    rig.send(*rig.values(1, 2))  # 2 of 8 wait
    assert rig.runner.sizes == []
    rig.clock.advance(0.0019)
    assert rig.runner.sizes == []
    rig.clock.advance(0.0002)
    assert rig.runner.sizes == [2]
    rig.send(*rig.values(3, 4, 5, 6))  # 4 of 12
    assert rig.runner.sizes == [2]
    rig.send(*rig.values(7, 8))  # 6 of 14
    assert rig.runner.sizes == [2]
    rig.dispatcher.gone(3)
    rig.dispatcher.pump()  # 6 of 11
    assert rig.runner.sizes == [2, 6]


async def test_a_full_batch_leaves_at_once_and_is_never_larger_than_the_limit() -> None:
    rig = Rig()
    rig.dispatcher.arrived(100)
    rig.send(item(rig.caller, 1, 2, 3), item(rig.caller, 4, 5, 6), item(rig.caller, 7, 8, 9))
    assert rig.runner.sizes == [6]
    rig.clock.advance(0.01)
    assert rig.runner.sizes == [6, 3]


async def test_the_tightest_deadline_leaves_in_time() -> None:
    rig = Rig(policy=BatchingPolicy(8, 0.5), batch_s=0.05)
    rig.dispatcher.arrived(100)
    rig.send(*rig.values(1, deadline=1000.2))
    rig.clock.advance(0.149)
    assert rig.runner.sizes == []
    rig.clock.advance(0.002)
    assert rig.runner.sizes == [1]


async def test_two_batches_are_out_and_the_rest_waits_in_the_order_of_deadlines() -> None:
    rig = Rig(policy=BatchingPolicy(2, 0.002))
    rig.send(*rig.values(1, 2))
    rig.send(*rig.values(3, 4))
    rig.send(*rig.values(5, deadline=1009.0), *rig.values(6, deadline=1003.0), *rig.values(7, deadline=1005.0))
    rig.send(item(rig.caller, 8, deadline=1009.5, criticality=Criticality.CRITICAL))
    assert rig.runner.sizes == [2, 2]
    rig.drain()
    # Within a batch the order says nothing.
    assert [sorted(data) for _, data in rig.runner.sent[2:]] == [[6, 8], [5, 7]]


def one_runs_and_one_waits() -> Rig:
    """Batches take 0.1 s; the first has begun."""
    rig = Rig(batch_s=0.1)
    rig.send(*rig.values(1))
    rig.send(*rig.values(2))
    return rig


async def test_the_second_batch_leaves_shortly_before_the_first_ends_and_grows_until_then() -> None:
    rig = one_runs_and_one_waits()
    rig.clock.advance(0.09)
    rig.send(*rig.values(3))
    assert rig.runner.sizes == [1]
    rig.clock.advance(0.009)
    assert rig.runner.sizes == [1, 2]


async def test_just_before_the_first_ends_whoever_comes_takes_the_second_along() -> None:
    rig = one_runs_and_one_waits()
    rig.clock.advance(0.096)
    assert rig.runner.sizes == [1]
    rig.send(*rig.values(3))
    assert rig.runner.sizes == [1, 2]


async def test_the_second_batch_leaves_at_once_when_the_first_ended_early_and_sooner_when_batches_vary() -> None:
    rig = one_runs_and_one_waits()
    rig.clock.advance(0.05)
    rig.runner.answer()
    assert rig.runner.sizes == [1, 1]
    rig.drain()
    left_s = rig.dispatcher.times.at_least(1)
    assert left_s < 0.9 * rig.dispatcher.times.seconds(1)
    rig.send(*rig.values(3))
    rig.send(*rig.values(4))
    assert len(rig.runner.out) == 1
    rig.clock.advance(left_s)
    assert len(rig.runner.out) == 2


async def test_the_next_batch_goes_to_the_worker_that_ends_first() -> None:
    rig = Rig(batch_s=0.1)
    second = FakeRunner(rig.dispatcher)
    rig.attach(second)
    rig.send(*rig.values(1))
    rig.clock.advance(0.05)
    rig.send(*rig.values(2))
    rig.send(*rig.values(3))
    assert (rig.runner.sizes, second.sizes) == ([1], [1])
    rig.clock.advance(0.05)
    assert (rig.runner.sizes, second.sizes) == ([1, 1], [1])


async def test_different_outputs_or_row_shapes_never_share_a_batch() -> None:
    rig = Rig()
    rig.send(item(rig.caller, 1), item(rig.caller, 2, key=BatchKey((), ((1,),))))
    assert rig.runner.sizes == [1, 1]


async def test_an_expired_request_is_answered_on_the_clock_and_never_executed() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002))
    rig.send(*rig.values(1, 2))
    rig.send(*rig.values(3, deadline=1000.05))
    rig.clock.advance(0.049)
    assert not rig.caller.errors
    rig.clock.advance(0.002)
    assert rig.caller.errors[3].reason == "DEADLINE_EXCEEDED"
    rig.drain()
    assert rig.runner.sizes == [1, 1]
    assert rig.dispatcher.in_flight == 0


async def test_a_cancelled_caller_does_not_affect_its_batch() -> None:
    rig = Rig()
    items = rig.values(1, 2, 3)
    rig.send(*items)
    rig.dispatcher.cancel(items[1])
    rig.runner.answer()
    assert rig.caller.answers == {1: b"\x02", 3: b"\x06"}
    assert rig.dispatcher.in_flight == 0
    assert rig.runner.interrupted == []


async def test_a_request_cancelled_in_the_queue_is_never_executed() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002))
    rig.send(*rig.values(1, 2))
    waiting = rig.values(3)[0]
    rig.send(waiting)
    rig.dispatcher.cancel(waiting)
    rig.drain()
    assert 3 not in rig.caller.answers
    assert len(rig.runner.sent) == 2
    assert rig.dispatcher.idle.is_set()


async def test_a_batch_that_nobody_wants_any_more_is_interrupted() -> None:
    rig = Rig()
    items = rig.values(1, 2)
    rig.send(*items)
    for each in items:
        rig.dispatcher.cancel(each)
    assert rig.runner.interrupted == [1]
    rig.runner.fail(Failure.INTERRUPTED)
    assert not rig.caller.errors


async def test_a_batch_past_its_last_deadline_is_interrupted_and_a_hung_process_killed() -> None:
    rig = Rig()
    rig.send(*rig.values(1, deadline=1000.1), *rig.values(2, deadline=1000.2))
    rig.clock.advance(0.21)
    assert rig.caller.errors[1].reason == rig.caller.errors[2].reason == "DEADLINE_EXCEEDED"
    assert rig.runner.interrupted == [1]
    rig.clock.advance(HUNG_S)
    assert rig.runner.killed


async def test_only_the_poisoned_request_of_a_batch_fails() -> None:
    rig = Rig()
    rig.runner.poison = {5}
    rig.send(*rig.values(1, 2, 3, 4, 5, 6, 7, 8))
    rig.drain()
    assert rig.caller.answers == {value: bytes([2 * value]) for value in (1, 2, 3, 4, 6, 7, 8)}
    assert {tag: error.reason for tag, error in rig.caller.errors.items()} == {5: "MODEL_REFUSED"}
    assert rig.runner.sizes == [8, 2, 2, 2, 2, 1, 1]
    assert rig.dispatcher.in_flight == 0


async def test_a_model_that_answers_other_rows_is_its_makers_fault() -> None:
    rig = Rig()
    rig.send(*rig.values(1))
    rig.runner.fail(Failure.BAD_OUTPUT)
    assert rig.caller.errors[1].reason == "INVALID_MODEL_OUTPUT"
    assert rig.caller.errors[1].code.name == "INTERNAL"


async def test_a_dead_worker_fails_everything_at_once_and_refuses_what_comes() -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002))
    rig.send(*rig.values(1, 2, 3, 4))
    rig.die()
    assert {tag: error.reason for tag, error in rig.caller.errors.items()} == dict.fromkeys((1, 2, 3, 4), "WORKER_DIED")
    assert "SIGKILL" in rig.caller.errors[1].message
    with pytest.raises(VersionNotReady):
        rig.send(*rig.values(5))
    assert rig.dispatcher.in_flight == 0


async def test_the_same_payload_kills_at_most_two_workers_and_nobody_goes_with_it() -> None:
    rig = Rig()
    rig.send(*rig.values(1, 66))
    rig.die()
    rig.attach(rig.runner)
    rig.send(*rig.values(2), item(rig.caller, 66, tag="again"))
    assert [data for _, data in rig.runner.sent[1:]] in ([b"\x02", b"\x42"], [b"\x42", b"\x02"])
    while rig.runner.out[0][1] != b"\x42":
        rig.runner.answer()
    rig.die()
    rig.attach(rig.runner)
    with pytest.raises(Quarantined):
        rig.send(item(rig.caller, 66, tag="third"))
    rig.clock.advance(61)
    rig.send(item(rig.caller, 66, tag="later", deadline=1100.0))
    assert rig.runner.sent[-1][1] == b"\x42"


async def test_a_request_that_would_miss_its_deadline_is_refused_at_once() -> None:
    rig = Rig(policy=BatchingPolicy(2, 0.002), batch_s=0.1)
    rig.send(*rig.values(1, 2, 3, 4, 5, 6))  # one batch out, two waiting
    with pytest.raises(QueueFull) as refused:
        rig.send(*rig.values(7, deadline=1000.4))
    assert refused.value.retry_after_s == pytest.approx(0.3)
    rig.send(*rig.values(8, deadline=1000.67))
    with pytest.raises(QueueFull):  # reckoned with 0.6 s and a tenth kept back: the wait behind others may grow
        rig.send(*rig.values(9, deadline=1000.66))
    assert rig.dispatcher.queue_time_s == pytest.approx(0.3)  # it would share a batch with the third
    rig.send(item(rig.caller, 10, deadline=1000.31, criticality=Criticality.CRITICAL))


async def test_an_idle_version_never_refuses_by_an_old_estimate() -> None:
    rig = Rig(batch_s=30.0)
    rig.send(*rig.values(1, deadline=1000.5))
    assert rig.runner.sizes == [1]
    rig.clock.advance(0.01)
    for turn in range(40):
        rig.drain()
        rig.send(item(rig.caller, 1, tag=f"turn {turn}", deadline=1100.0))
        rig.clock.advance(0.01)
    assert rig.dispatcher.times.seconds(1) < 0.1


@pytest.mark.parametrize("limits", [QueueLimits(rows=3), QueueLimits(size_bytes=3)])
async def test_the_caps_hold_exactly(limits: QueueLimits) -> None:
    rig = Rig(policy=BatchingPolicy(1, 0.002), limits=limits)
    rig.send(*rig.values(1))
    rig.send(*rig.values(2))
    for value in (3, 4, 5):
        rig.send(*rig.values(value))
    with pytest.raises(QueueFull):
        rig.send(*rig.values(6))
    rig.drain()
    assert len(rig.caller.answers) == 5
    assert rig.dispatcher.in_flight == 0


async def test_a_request_larger_than_a_batch_runs_in_parts_and_is_answered_whole() -> None:
    rig = Rig(policy=BatchingPolicy(4, 0.002))
    whole = item(rig.caller, *range(1, 11))
    sink = PartsSink(whole, [ANSWER], rig.dispatcher.cancel)
    sink.parts = split_item(whole, [SPEC], 4, sink)
    rig.send(*sink.parts)
    rig.send(*rig.values(99))
    rig.drain()
    assert rig.caller.answers == {1: bytes(range(2, 22, 2)), 99: bytes([198])}
    assert max(rig.runner.sizes) <= 4


async def test_a_failed_part_fails_the_whole_once_and_takes_the_others_back() -> None:
    rig = Rig(policy=BatchingPolicy(2, 0.002))
    rig.runner.poison = {1}
    whole = item(rig.caller, *range(1, 11))
    sink = PartsSink(whole, [ANSWER], rig.dispatcher.cancel)
    sink.parts = split_item(whole, [SPEC], 2, sink)
    rig.send(*sink.parts)
    rig.drain()
    assert {tag: error.reason for tag, error in rig.caller.errors.items()} == {1: "MODEL_REFUSED"}
    assert rig.caller.answers == {}
    assert rig.dispatcher.in_flight == 0
    assert len(rig.runner.sent) < 5


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 4), st.floats(0.001, 0.2)),
        st.tuples(st.just("cancel"), st.integers(0, 200), st.just(0.0)),
        st.tuples(st.just("answer"), st.integers(0, 1), st.just(0.0)),
        st.tuples(st.just("die"), st.integers(0, 1), st.just(0.0)),
        st.tuples(st.just("wait"), st.just(0), st.floats(0.0, 0.05)),
        st.tuples(st.just("change"), st.integers(0, 3), st.just(0.0)),
    ),
    max_size=80,
)


class Storm:
    """Does random things to a rig with two workers and remembers what it must not answer."""

    def __init__(self, policy: BatchingPolicy) -> None:
        self.rig = Rig(policy=policy)
        self.runners = [self.rig.runner, FakeRunner(self.rig.dispatcher)]
        self.rig.attach(self.runners[1])
        for runner in self.runners:
            runner.poison = {13}
            runner.most_rows = 3
        self.items: list[Item] = []
        self.given_up: set[object] = set()

    def send(self, number: int, seconds: float) -> None:
        first = len(self.items)
        values = [(first + n) % 100 for n in range(number)]
        level = Criticality(1 + first % 3)
        made = item(self.rig.caller, *values, deadline=self.rig.clock.now() + seconds, tag=first, criticality=level)
        self.items.append(made)
        queue = self.rig.dispatcher.queue
        waiting, most = queue.rows, queue.policy.max_queue_rows or 1_000
        try:
            self.rig.send(made)
        except (QueueFull, Quarantined):
            self.given_up.add(first)
        else:
            assert queue.rows <= (most if waiting else number)

    def cancel(self, number: int, seconds: float) -> None:
        chosen = self.items[number % len(self.items)] if self.items else None
        if chosen is not None and chosen.tag not in self.answered:
            self.rig.dispatcher.cancel(chosen)
            self.given_up.add(chosen.tag)

    def answer(self, number: int, seconds: float) -> None:
        runner = self.runners[number % 2]
        if runner.out:
            runner.answer()

    def die(self, number: int, seconds: float) -> None:
        runner = self.runners[number % 2]
        runner.out.clear()
        self.rig.dispatcher.detach(runner, "ended by signal 9", NOT_READY)
        self.rig.attach(runner)

    def wait(self, number: int, seconds: float) -> None:
        self.rig.clock.advance(seconds)

    def change(self, number: int, seconds: float) -> None:
        self.rig.dispatcher.set_policy(POLICIES[number])

    @property
    def answered(self) -> set[object]:
        return set(self.rig.caller.answers) | set(self.rig.caller.errors)


POLICIES = [
    BatchingPolicy(4, 0.002),
    BatchingPolicy(5, 0.002, batch_sizes=(2, 5), ageing_s=0.01),
    BatchingPolicy(5, 0.0, latency_target_s=0.02, max_queue_rows=20),
    BatchingPolicy(1, 0.002, max_queue_rows=2),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(POLICIES), STEPS)
async def test_every_accepted_request_is_answered_exactly_once_with_its_own_answer(
    policy: BatchingPolicy, steps: list[tuple[str, int, float]]
) -> None:
    storm = Storm(policy)
    for act, number, seconds in steps:
        getattr(storm, act)(number, seconds)
    rig = storm.rig
    while any(runner.out for runner in storm.runners):
        for runner in storm.runners:
            if runner.out:
                runner.answer()
        rig.clock.advance(0.01)
    rig.clock.advance(1)
    assert not any(runner.out for runner in storm.runners)
    assert storm.answered | storm.given_up == {each.tag for each in storm.items}
    assert not set(rig.caller.answers) & set(rig.caller.errors)
    assert rig.dispatcher.in_flight == 0
    assert rig.dispatcher.queue.rows == rig.dispatcher.queue.size_bytes == 0
    for tag, data in rig.caller.answers.items():
        assert isinstance(tag, int)
        assert data == bytes(2 * ((tag + n) % 100) for n in range(len(data)))
