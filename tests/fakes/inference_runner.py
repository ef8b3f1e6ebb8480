"""A clock, a model process and a caller for unit tests: time moves when told to, batches are answered when told to."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from services.common.criticality import Criticality
from services.common.errors import ServiceError
from services.inference.domain.admission import QueueLimits
from services.inference.domain.batching import Batch
from services.inference.domain.dispatch import Dispatcher
from services.inference.domain.failure import VersionNotReady
from services.inference.domain.frame import Failure, FrameTensor, RunFailure
from services.inference.domain.item import BatchAnswer, BatchKey, Item, OutputData, Place
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import BatchingPolicy, VersionKey

SPEC = TensorSpec("x", "UINT8", (-1, 1))
ANSWER = TensorSpec("y", "UINT8", (-1, 1))
KEY = BatchKey((0,), ((1,),))


class FakeTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Time that stands until `advance`."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._order = count()

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (max(when, self.time), next(self._order), timer))
        return timer

    def call_soon(self, callback: Callable[[], None], *, gathers: bool) -> None:
        self.call_at(self.time, callback)

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self.time = max(self.time, when)
            if timer.callback is not None:
                timer.callback()
        self.time = end


class FakeRunner:
    """Keeps the batches that were sent; answers each row with its double, on demand."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.sent: list[tuple[int, bytes]] = []
        self.out: list[tuple[int, bytes]] = []
        self.interrupted: list[int] = []
        self.killed = False
        self.poison: set[int] = set()
        self.most_rows = 1_000
        """Above this the memory is not enough."""

    def run(self, ident: int, outputs: Sequence[int], tensors: Sequence[FrameTensor], traceparent: str) -> None:
        data = b"".join(bytes(part) for part in tensors[0].parts)
        assert tensors[0].shape == (len(data), 1)
        policy = self.dispatcher.queue.policy
        assert len(data) in (policy.batch_sizes or range(1, policy.max_batch_size + 1)), "a size that nobody allowed"
        self.sent.append((ident, data))
        self.out.append((ident, data))

    def interrupt(self, ident: int) -> None:
        self.interrupted.append(ident)

    def kill(self) -> None:
        self.killed = True

    def answer(self) -> None:
        """Answer the oldest batch, as the model would."""
        ident, data = self.out.pop(0)
        if len(data) > self.most_rows:
            self.dispatcher.take_result(ident, RunFailure(Failure.OUT_OF_MEMORY, ""))
            return
        if self.poison & set(data):
            self.dispatcher.take_result(ident, RunFailure(Failure.MODEL_REFUSED, "poison"))
            return
        output = OutputData(ANSWER, (len(data), 1), bytes(2 * value % 256 for value in data))
        self.dispatcher.take_result(ident, BatchAnswer(len(data), [output], 0.001))

    def fail(self, failure: Failure) -> None:
        ident, _ = self.out.pop(0)
        self.dispatcher.take_result(ident, RunFailure(failure, ""))

    @property
    def sizes(self) -> list[int]:
        return [len(data) for _, data in self.sent]


class FakeCaller:
    """Takes answers; `answers` and `errors` are by the item's tag."""

    def __init__(self) -> None:
        self.answers: dict[object, bytes] = {}
        self.errors: dict[object, ServiceError] = {}

    def deliver(self, answer: BatchAnswer, places: Sequence[Place]) -> None:
        for place in places:
            assert place.item.tag not in self.answers
            (tensor,) = answer.tensors([(place.first_row, place.item.rows)])
            self.answers[place.item.tag] = tensor.data

    def fail(self, items: Sequence[Item], error: ServiceError) -> None:
        for item in items:
            assert item.tag not in self.errors
            self.errors[item.tag] = error


class FakeObserver:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.done: list[str] = []

    def batch_ran(self, key: VersionKey, batch: Batch, compute_s: float) -> None:
        self.reasons.append(batch.reason)

    def items_done(self, key: VersionKey, items: Sequence[Item], reason: str) -> None:
        self.done += [reason] * len(items)

    def forget(self, key: VersionKey) -> None:
        self.reasons.clear()


def item(
    caller: FakeCaller,
    *values: int,
    deadline: float = 1010.0,
    tag: object = None,
    key: BatchKey = KEY,
    criticality: Criticality = Criticality.DEFAULT,
) -> Item:
    """Return a request with one row for each value; its tag is the first value."""
    return Item(
        rows=len(values),
        inputs=[bytes(values)],
        key=key,
        deadline=deadline,
        sink=caller,
        tag=values[0] if tag is None else tag,
        criticality=criticality,
    )


VERSION = VersionKey("oracle", "1")
NOT_READY = VersionNotReady(VERSION, "LOADING", "")


@dataclass
class Rig:
    """A dispatcher with everything around it faked."""

    policy: BatchingPolicy = field(default_factory=lambda: BatchingPolicy(max_batch_size=8, max_delay_s=0.002))
    limits: QueueLimits = field(default_factory=QueueLimits)
    batch_s: float = 0.0
    clock: FakeClock = field(default_factory=FakeClock)
    observer: FakeObserver = field(default_factory=FakeObserver)
    caller: FakeCaller = field(default_factory=FakeCaller)

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(
            VERSION,
            [SPEC],
            [ANSWER],
            self.policy,
            clock=self.clock,
            observer=self.observer,
            limits=self.limits,
            refusal=NOT_READY,
        )
        self.runner = FakeRunner(self.dispatcher)
        self.attach(self.runner)

    def attach(self, runner: FakeRunner) -> None:
        self.dispatcher.attach(runner, [(self.policy.max_batch_size, self.batch_s)])

    def die(self, cause: str = "ended by signal 9 (SIGKILL)") -> None:
        self.runner.out.clear()
        self.dispatcher.detach(self.runner, cause, NOT_READY)

    def send(self, *items: Item) -> None:
        """One message with these items."""
        self.dispatcher.arrived(len(items))
        for each in items:
            self.dispatcher.offer(each)
        self.dispatcher.pump()

    def values(self, *values: int, **changes: float) -> list[Item]:
        return [item(self.caller, value, **changes) for value in values]  # type: ignore[arg-type]

    def drain(self) -> None:
        while self.runner.out:
            self.runner.answer()
