"""Open-loop overload with simulated time: what is still answered inside its deadline, and what is done for nobody."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from services.common.criticality import Criticality
from services.common.errors import ServiceError
from services.inference.domain.dispatch import Dispatcher
from services.inference.domain.frame import FrameTensor
from services.inference.domain.item import BatchAnswer, Item, OutputData, Place
from services.inference.domain.version import BatchingPolicy
from tests.fakes.inference_runner import ANSWER, NOT_READY, FakeClock, FakeRunner, Rig, item

BATCH_S, MAX_BATCH, DEADLINE_S, SECONDS = 0.04, 8, 0.3, 6.0
NOTICED_S = 1.0
CAPACITY = MAX_BATCH / BATCH_S
MIX = [Criticality.CRITICAL] + [Criticality.DEFAULT] * 6 + [Criticality.SHEDDABLE] * 3


class SlowRunner(FakeRunner):
    """Answers by itself, one batch after the other, each after about 40 ms."""

    def __init__(self, dispatcher: Dispatcher, clock: FakeClock, chance: random.Random, spread: float) -> None:
        super().__init__(dispatcher)
        self._clock, self._chance, self._spread = clock, chance, spread
        self._busy_until = 0.0
        self.rows = 0

    def run(self, ident: int, outputs: Sequence[int], tensors: Sequence[FrameTensor], traceparent: str) -> None:
        rows = tensors[0].shape[0]
        seconds = BATCH_S * self._chance.uniform(1 - self._spread, 1 + self._spread)
        self._busy_until = max(self._busy_until, self._clock.now()) + seconds
        self.rows += rows
        output = OutputData(ANSWER, (rows, 1), bytes(rows))
        self._clock.call_at(
            self._busy_until, lambda: self.dispatcher.take_result(ident, BatchAnswer(rows, [output], seconds))
        )


@dataclass
class Caller:
    """Counts what came in time, by criticality."""

    clock: FakeClock
    good: Counter[Criticality] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    """How long those waited that were refused after all, once the overload had been noticed."""

    def deliver(self, answer: BatchAnswer, places: Sequence[Place]) -> None:
        for place in places:
            if self.clock.now() <= place.item.deadline:
                self.good[place.item.criticality] += 1
            else:
                self.failed["LATE"] += 1

    def fail(self, items: Sequence[Item], error: ServiceError) -> None:
        self.failed[error.reason] += len(items)
        self.refused_s += [self.clock.now() - each.arrived for each in items if each.arrived > 1000 + NOTICED_S]


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize(("load", "share"), [(0.7, 0.98), (2.0, 0.95), (10.0, 0.9)])
async def test_goodput_holds_under_overload_and_nothing_is_done_for_nobody(
    load: float, share: float, spread: float
) -> None:
    chance = random.Random(11)
    rig = Rig(policy=BatchingPolicy(MAX_BATCH, 0.002))
    rig.dispatcher.detach(rig.runner, "", NOT_READY)
    runner = SlowRunner(rig.dispatcher, rig.clock, chance, spread)
    rig.dispatcher.attach(runner, [(MAX_BATCH, BATCH_S)])
    caller, sent, at_once = Caller(rig.clock), Counter[Criticality](), 0
    while rig.clock.now() < 1000 + SECONDS:
        rig.clock.advance(chance.expovariate(load * CAPACITY))
        level = chance.choice(MIX)
        sent[level] += 1
        made = item(caller, 1, deadline=rig.clock.now() + DEADLINE_S, tag=0, criticality=level)  # type: ignore[arg-type]
        rig.dispatcher.arrived(1)
        try:
            rig.dispatcher.offer(made)
        except ServiceError as error:
            caller.failed[error.reason] += 1
            at_once += rig.clock.now() > 1000 + NOTICED_S
        rig.dispatcher.pump()
    rig.clock.advance(1)
    good, offered = sum(caller.good.values()), sum(sent.values())
    assert good + sum(caller.failed.values()) == offered
    assert good >= share * min(CAPACITY * SECONDS, offered)
    assert caller.failed["LATE"] + caller.failed["DEADLINE_EXCEEDED"] <= 0.01 * offered
    assert runner.rows - good <= 0.01 * runner.rows
    slowly = sum(seconds > 0.01 for seconds in caller.refused_s)
    if load >= 2:
        assert slowly <= 0.01 * at_once, "refusals: p99 under 10 ms"
    if load < 5:
        assert caller.good[Criticality.CRITICAL] >= 0.999 * sent[Criticality.CRITICAL]
    assert rig.dispatcher.in_flight == 0
