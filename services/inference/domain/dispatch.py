"""Feeds one version's workers with batches and hands the answers out.

Two batches are out at a time at each worker: one runs, one waits in the pipe, so that the process never idles while an
answer is taken apart here. The second one leaves only shortly before the first is expected to end, and a third would be
decided too early altogether: what waits here can still grow, be reordered, cancelled or expire.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final

from services.common.arrivals import no_arrivals
from services.common.criticality import Criticality
from services.common.deadlines import TIMER_STEP_S
from services.common.errors import ServiceError
from services.inference.domain.admission import LEAST_RETRY_S, Pace, QueueLimits, admit
from services.inference.domain.batch_time import BatchTime
from services.inference.domain.batching import Batch, BatchQueue, Reason
from services.inference.domain.failure import (
    BatchTooSlow,
    DeadlinePassed,
    InvalidModelOutput,
    ModelOutOfMemory,
    ModelRefused,
    QueueFull,
    WorkerDied,
)
from services.inference.domain.frame import Failure, FrameTensor, RunFailure
from services.inference.domain.item import BatchAnswer, Item, Place, Stage, group_by_sink
from services.inference.domain.ports import BatchRunner, Clock, Observer, Timer
from services.inference.domain.quarantine import Quarantine
from services.inference.domain.shared_memory import BATCHES_OUT
from services.inference.domain.splitting import PartsSink, last_row, split_item
from services.inference.domain.statistic import VersionStatistic
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import BatchingPolicy, VersionKey

# A run that ignores its interruption holds the process: after this it is ended and replaced.
HUNG_S: Final = 10.0
# After a batch was too large for the memory, batches stay at half of it for so long.
CAUTIOUS_S: Final = 30.0
# A batch that the model refused is run again in so many parts. With halves it takes as many runs to find who spoils it, and
# where time goes by rows the others wait for 2.2 batch times instead of 1.8 (benchmarks/results/poisoned_batch.md).
_SEARCH_PARTS: Final = 4
# Below this what a running batch has done already is not worth the look.
_LONG_S: Final = 0.02
# From so long before the end of the running batch the next one leaves with whatever makes us look.
_EARLY_S: Final = 0.005
# So long before it a timer does, where nothing came: it may be late, and the batch has a way to go. Each waking up of its own
# costs a busy core a quarter of a millisecond.
_LATEST_S: Final = 0.002
_TARGET_SHARE: Final = 0.9


@dataclass(slots=True, eq=False)
class _Instance:
    """A worker and the batches that it has, the running one first."""

    runner: BatchRunner
    last_result: float
    running: "dict[int, _Running]" = field(default_factory=dict)
    retired: asyncio.Event | None = None
    """Set once a worker that is to go has answered everything; None for one that stays."""

    def takes_at(self) -> float:
        """Return when it should be given one more batch: long ago when it has none, never when it has enough."""
        if self.retired is not None or len(self.running) >= BATCHES_OUT:
            return inf
        if not self.running:
            return -inf
        (entry,) = self.running.values()
        return entry.began + entry.sure_s - _EARLY_S


@dataclass(slots=True)
class _Running:
    """A batch at a worker."""

    batch: Batch
    instance: _Instance
    rows: int
    """As the model sees it, filled up to an allowed size."""
    sent: float
    due_s: float
    """How long it is expected to run."""
    sure_s: float
    """How long it is sure to run, as far as can be told."""
    overdue: Timer
    input_s: float = 0.0

    @property
    def began(self) -> float:
        """When it began to run, where it is the first that its worker has."""
        return max(self.sent, self.instance.last_result)


class Dispatcher:
    """Queue, admission and running batches of one version. All of it on the event loop."""

    def __init__(
        self,
        key: VersionKey,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        policy: BatchingPolicy,
        *,
        clock: Clock,
        observer: Observer,
        limits: QueueLimits,
        refusal: ServiceError,
        arriving: Callable[[], int] = no_arrivals,
    ) -> None:
        """`arriving` counts the calls that are on their way in, and may come here."""
        self.key = key
        self.queue = BatchQueue(policy)
        self.in_flight = 0
        """Calls from the arrival of their message to their answer."""
        self.idle = asyncio.Event()
        """Set while no call is in flight."""
        self.idle.set()
        self.statistic = VersionStatistic()
        self.times = BatchTime()
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._clock = clock
        self._observer = observer
        self._limits = limits
        self._pace = Pace(self.times, self.queue.max_rows)
        self._instances: list[_Instance] = []
        self._refusal: ServiceError | None = refusal
        self._arriving = arriving
        self._running: dict[int, _Running] = {}
        self._retries: deque[Batch] = deque()
        self._quarantine = Quarantine()
        self._next_ident = 0
        self._ceiling = 0
        self._ceiling_until = 0.0
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._pump_due = False

    @property
    def instances(self) -> int:
        """Workers that take batches."""
        return sum(1 for instance in self._instances if instance.retired is None)

    @property
    def queue_time_s(self) -> float:
        """Seconds that an ordinary request arriving now would wait."""
        return self._pace.wait_s(self.queue.rows_before(Criticality.DEFAULT))

    def arrived(self, calls: int) -> None:
        """Count calls whose message has come; each is counted out by its answer or by `gone`."""
        self.in_flight += calls
        self.idle.clear()

    def gone(self, calls: int) -> None:
        """Count out calls that were never offered."""
        self.in_flight -= calls
        if self.in_flight == 0:
            self.idle.set()

    def offer(self, item: Item) -> None:
        """Queue a request that `arrived` has counted. Raises a `ServiceError` when it is refused."""
        now = self._clock.now()
        try:
            if self._refusal is not None:
                # Raised as it is, it would keep the trace, and with it the tensors, of each time that it was raised.
                raise self._refusal.with_traceback(None)
            self._quarantine.check(item, now)
            if self._pace.out_s > _LONG_S:
                self._pace.done_s = self._done_s(now)
            displaced = admit(item, self.queue, self._limits, self._pace, now)
        except ServiceError as error:
            self.turn_away(item, error)
            raise
        self.queue.add(item, now)
        if displaced:
            retry_s = max(self.queue_time_s, LEAST_RETRY_S)
            self._fail(displaced, QueueFull("the queue is full and a more critical request came", retry_s), now)

    def turn_away(self, item: Item, error: ServiceError, calls: int = 1) -> None:
        """Count a request out, or several like it, that `arrived` has counted and that is refused before it is queued."""
        now = self._clock.now()
        item.arrived = item.arrived or now
        self._count_out(item, error, now, calls=calls)

    def cancel(self, item: Item) -> None:
        """Take a request back. Its batch-mates do not notice."""
        if isinstance(item.parts, PartsSink):
            item.parts.cancel()
        elif item.stage is Stage.WAITING:
            self.queue.remove(item)
            self._count_out(item, None, self._clock.now(), reason="CANCELLED")
            self.pump()
        elif item.stage is Stage.RUNNING and not item.unwanted:
            item.unwanted = True
            self._count_out(item, None, self._clock.now(), reason="CANCELLED")
            self._interrupt_unwanted()

    def pump_soon(self) -> None:
        """Pump once what has come by now is taken in, once for all of it."""
        if not self._pump_due:
            self._pump_due = True
            self._clock.call_soon(self.pump, gathers=self.queue.max_delay_s > 0)

    def pump(self) -> None:
        """Send what should leave now, and set the timer for the next look."""
        self._pump_due = False
        now = self._clock.now()
        if self.queue.waiting and self.queue.expires_at() <= now:
            self._fail(self.queue.expire(now), DeadlinePassed("while the request waited for a batch"), now)
        while (self.queue.waiting or self._retries) and (instance := self._taker(now)) is not None:
            self._drop_doomed(instance, now)
            in_flight = self.in_flight + self._arriving()
            batch = self._next_retry(now) or self.queue.next_batch(now, in_flight, self._batch_due_s())
            if batch is None:
                break
            if batch.rows > self.queue.policy.max_batch_size:
                self._divide(batch)
            else:
                self._send(instance, batch, now)
        self._arm(now)

    def attach(self, runner: BatchRunner, measured: Sequence[tuple[int, float]]) -> None:
        """Begin to use a warm worker; `measured` is what its batches took: rows and seconds."""
        if not self._instances:
            self.times = self._pace.times = BatchTime(measured)
        self._instances.append(_Instance(runner, self._clock.now()))
        self._pace.instances = max(1, self.instances)
        self._refusal = None
        self._adapt(self._clock.now())
        self.pump()

    async def retire(self, runner: BatchRunner) -> None:
        """Give a worker nothing more, and return once it has answered everything or is gone."""
        for instance in self._instances:
            if instance.runner is runner:
                instance.retired = instance.retired or asyncio.Event()
                self._pace.instances = max(1, self.instances)
                if instance.running:
                    await instance.retired.wait()

    def refuse(self, refusal: ServiceError) -> None:
        """Refuse new requests; what was accepted is still answered."""
        self._refusal = refusal

    def detach(self, runner: BatchRunner | None, cause: str, refusal: ServiceError, *, blame: bool = True) -> None:
        """A worker is gone, or all (None): fail what it held, at once. With the last one everything accepted fails.

        The first batch is to `blame`, unless another version's is known to be.
        """
        now = self._clock.now()
        gone = [instance for instance in self._instances if runner in {None, instance.runner}]
        self._instances = [instance for instance in self._instances if instance not in gone]
        lost: list[Item] = []
        for instance in gone:
            lost += self._abandon(instance, now, blame=blame)
        if not self._instances:
            self._refusal = refusal
            lost += [item for batch in self._retries for item in batch.items]
            self._retries.clear()
            lost += self.queue.clear()
        self._pace.instances = max(1, self.instances)
        self._fail(lost, WorkerDied(self.key, cause), now)
        self.pump()

    def set_policy(self, policy: BatchingPolicy) -> None:
        """Join requests by another policy from now on. What runs is left alone; what waits was accepted and stays."""
        self.queue.policy = policy
        self._adapt(self._clock.now())
        self.pump()

    def take_result(self, ident: int, result: BatchAnswer | RunFailure) -> None:
        """Take what a batch came to. A batch that is not known any more was answered otherwise."""
        entry = self._running.pop(ident, None)
        if entry is None:
            return
        now = self._clock.now()
        self._forget(ident, entry)
        if isinstance(result, BatchAnswer):
            self._succeed(entry, result, now)
        else:
            self._handle_failure(entry, result, now)
        entry.instance.last_result = now
        self.pump()

    def _drop_doomed(self, instance: _Instance, now: float) -> None:
        """Refuse what a batch that leaves now could not answer in time: more critical requests were put before it.

        With a worker that has nothing else everything is tried: only batches that run correct the times that this is
        judged by.
        """
        if not instance.running:
            return
        entry = next(iter(instance.running.values()))
        left_s = entry.due_s - (now - entry.began)
        due_s = max(left_s, 0.0) + self.times.careful(min(self.queue.rows, self.queue.max_rows))
        doomed = self.queue.expire(now + due_s)
        if doomed:
            wait_s = self.queue_time_s
            text = f"more urgent requests came meanwhile: {due_s * 1000:.1f} ms to the answer would miss the deadline"
            self._fail(doomed, QueueFull(text, max(wait_s, due_s)), now)

    def _taker(self, now: float) -> _Instance | None:
        """Return the worker that should have the next batch now."""
        first = min(self._instances, key=_Instance.takes_at, default=None)
        return first if first is not None and first.takes_at() <= now else None

    def _succeed(self, entry: _Running, answer: BatchAnswer, now: float) -> None:
        batch = entry.batch
        self.times.observe(entry.rows, now - entry.began)
        self._adapt(now)
        self.statistic.batch_ran(batch.rows, len(batch.items), entry.input_s, answer.compute_s)
        self._observer.batch_ran(self.key, batch, answer.compute_s)
        started = time.perf_counter()
        answer.finished = now
        wanted = [item for item in batch.items if not item.unwanted]
        groups = _places_by_sink(batch.items)
        self._answer_out(wanted, now)
        for places in groups:
            places[0].item.sink.deliver(answer, places)
        self.statistic.batch_answered(batch.rows, len(batch.items), time.perf_counter() - started)

    def _handle_failure(self, entry: _Running, failure: RunFailure, now: float) -> None:
        """Run a batch in parts that the model refused, or had no memory for, until what spoils it stands alone."""
        batch = entry.batch
        if failure.failure is Failure.INTERRUPTED:
            self._fail(batch.items, DeadlinePassed("while the batch ran"), now)
            return
        self.statistic.execution_count += 1
        if failure.failure is Failure.OUT_OF_MEMORY:
            self._ceiling, self._ceiling_until = max(1, batch.rows // 2), now + CAUTIOUS_S
            self._adapt(now)
        if len(batch.items) > 1:
            # Behind the other parts: most members stand in those that run well.
            self._retries.extend(batch.parts(2 if failure.failure is Failure.OUT_OF_MEMORY else _SEARCH_PARTS))
        elif failure.failure is Failure.OUT_OF_MEMORY and batch.rows > 1 and not batch.items[0].unwanted:
            self._split(batch.items[0], -(-batch.rows // 2))
        else:
            self._fail(batch.items, _failure(failure), now)

    def _divide(self, batch: Batch) -> None:
        """Take a batch apart that was accepted, or begun, when larger ones were allowed."""
        if len(batch.items) > 1:
            self._retries.extendleft(reversed(batch.parts(2)))
        else:
            self._split(batch.items[0], self.queue.policy.max_batch_size)

    def _split(self, item: Item, max_rows: int) -> None:
        """Run one request in parts. It is counted out of the calls in flight as one and comes back as several."""
        sink = PartsSink(item, self._outputs, self.cancel)
        sink.parts = split_item(item, self._inputs, max_rows, sink)
        item.parts = sink
        item.stage = Stage.DONE
        item.inputs = ()
        self.arrived(len(sink.parts))
        self.gone(1)
        for part in sink.parts:
            part.arrived, part.started, part.stage = item.arrived, item.started, Stage.RUNNING
        self._retries.extendleft(Batch([part], Reason.RETRY) for part in reversed(sink.parts))

    def _next_retry(self, now: float) -> Batch | None:
        while self._retries:
            batch = self._retries.popleft()
            late = [item for item in batch.items if not item.unwanted and item.deadline <= now]
            self._fail(late, DeadlinePassed("while the batch was run again"), now)
            wanted = [item for item in batch.items if not item.unwanted and item.stage is Stage.RUNNING]
            if wanted:
                return Batch(wanted, Reason.RETRY)
        return None

    def _send(self, instance: _Instance, batch: Batch, now: float) -> None:
        ident = self._next_ident = self._next_ident + 1
        key, items, policy = batch.key, batch.items, self.queue.policy
        trace = next((item.trace for item in items if item.trace is not None), None)
        levels = {items[0].criticality: batch.rows} if len(items) == 1 else _rows_by_level(items)
        self._pace.ran(levels)
        if trace is not None:
            for item in items:
                if item.trace is not None:
                    item.trace.started(batch.rows, batch.reason)
        rows = policy.filled(batch.rows) if policy.batch_sizes else batch.rows
        tensors = [
            FrameTensor(spec.datatype, (rows, *trailing), [item.inputs[index] for item in items])
            for index, (spec, trailing) in enumerate(zip(self._inputs, key.trailing, strict=True))
        ]
        if rows > batch.rows:
            self._fill(tensors, batch, rows)
        ahead_s = policy.max_batch_time_s * (1 + len(instance.running))
        late = min(max(item.deadline for item in items), now + ahead_s)
        overdue = self._clock.call_at(late, partial(self._overdue, ident))
        due_s = self.times.seconds(rows)
        entry = _Running(batch, instance, rows, now, due_s, self.times.at_least(rows), overdue)
        self._running[ident] = instance.running[ident] = entry
        self._pace.out_s += due_s
        started = time.perf_counter()
        instance.runner.run(ident, key.outputs, tensors, trace.traceparent if trace is not None else "")
        entry.input_s = time.perf_counter() - started

    def _fill(self, tensors: list[FrameTensor], batch: Batch, rows: int) -> None:
        """Fill the batch up with copies of its last row: whatever a model refuses, it has to refuse that one anyway."""
        last, trailings = batch.items[-1], batch.key.trailing
        for index, (spec, trailing) in enumerate(zip(self._inputs, trailings, strict=True)):
            row = last_row(spec, trailing, last.rows, last.inputs[index])
            parts = [*tensors[index].parts, row * (rows - batch.rows)]
            tensors[index] = FrameTensor(spec.datatype, (rows, *trailing), parts)

    def _forget(self, ident: int, entry: _Running) -> None:
        """Take a batch off the books of its worker."""
        entry.overdue.cancel()
        instance = entry.instance
        instance.running.pop(ident, None)
        # Set to nothing where it is nothing: sums of floats would drift.
        self._pace.out_s = self._pace.out_s - entry.due_s if self._running else 0.0
        self._pace.done_s = 0.0
        if instance.retired is not None and not instance.running:
            instance.retired.set()

    def _abandon(self, instance: _Instance, now: float, *, blame: bool) -> list[Item]:
        """Take everything off a worker that is gone; what it was running may have ended it."""
        lost: list[Item] = []
        for number, (ident, entry) in enumerate(list(instance.running.items())):
            if number == 0 and blame:
                self._quarantine.blame(entry.batch.items, now)
            del self._running[ident]
            self._forget(ident, entry)
            lost += entry.batch.items
        if instance.retired is not None:
            instance.retired.set()
        return lost

    def _overdue(self, ident: int) -> None:
        """The last deadline of a running batch has come, or the longest time that a batch may run."""
        entry = self._running.get(ident)
        if entry is None:
            return
        now = self._clock.now()
        wanted = [item for item in entry.batch.items if not item.unwanted]
        late = [item for item in wanted if item.deadline <= now + TIMER_STEP_S]
        slow = [item for item in wanted if item.deadline > now + TIMER_STEP_S]
        self._fail(late, DeadlinePassed("while the batch ran"), now)
        self._fail(slow, BatchTooSlow(self.queue.policy.max_batch_time_s), now)
        for item in wanted:
            item.unwanted = True
        entry.instance.runner.interrupt(ident)
        entry.overdue = self._clock.call_at(now + HUNG_S, partial(self._kill_if_stuck, ident))

    def _kill_if_stuck(self, ident: int) -> None:
        """End the worker that does not stop. One that has not come to the batch yet is not to blame for it."""
        entry = self._running.get(ident)
        if entry is None:
            return
        if next(iter(entry.instance.running)) == ident:
            entry.instance.runner.kill()
        else:
            entry.overdue = self._clock.call_at(self._clock.now() + HUNG_S, partial(self._kill_if_stuck, ident))

    def _interrupt_unwanted(self) -> None:
        for ident, entry in self._running.items():
            if all(item.unwanted for item in entry.batch.items):
                entry.instance.runner.interrupt(ident)

    def _fail(self, items: Sequence[Item], error: ServiceError, now: float) -> None:
        wanted = [item for item in items if not item.unwanted]
        for item in wanted:
            self._count_out(item, error, now)
        for group in group_by_sink(wanted).values():
            group[0].sink.fail(group, error)

    def _answer_out(self, items: Sequence[Item], now: float) -> None:
        total_s = queue_s = 0.0
        for item in items:
            item.stage = Stage.DONE
            item.inputs = ()
            total_s += now - item.arrived
            queue_s += item.started - item.arrived
        self.gone(len(items))
        self.statistic.answered(len(items), total_s, queue_s)
        self._observer.items_done(self.key, items, "")

    def _count_out(
        self, item: Item, error: ServiceError | None, now: float, reason: str = "", *, calls: int = 1
    ) -> None:
        self.gone(calls)
        if not item.unwanted:
            item.stage = Stage.DONE
        self.statistic.failed(now - item.arrived, calls)
        self._observer.items_done(self.key, (item,) * calls, error.reason if error is not None else reason)

    def _adapt(self, now: float) -> None:
        """Set the largest batch and the longest wait by policy, latency target and memory.

        With a target a request waits for company, for the batch that runs, and for its own: the batch may take half of
        the target, the wait what two of them leave.
        """
        queue, policy = self.queue, self.queue.policy
        rows, delay_s = policy.max_batch_size, policy.max_delay_s
        if policy.latency_target_s:
            rows = self.times.largest_within(policy.sizes(), policy.latency_target_s / 2)
            spare_s = policy.latency_target_s * _TARGET_SHARE - 2 * self.times.seconds(rows)
            delay_s = min(max(spare_s, 0.0), policy.latency_target_s / 2)
        if self._ceiling:
            self._ceiling = self._ceiling if now < self._ceiling_until else 0
            rows = min(rows, self._ceiling or rows)
        queue.max_rows = self._pace.max_rows = rows
        self._pace.full_s = self.times.seconds(rows)
        queue.max_delay_s = delay_s

    def _done_s(self, now: float) -> float:
        """Return how much of what is out is done already."""
        done_s = 0.0
        for instance in self._instances:
            entry = next(iter(instance.running.values()), None)
            if entry is not None:
                done_s += min(now - entry.began, entry.due_s)
        return done_s

    def _batch_due_s(self) -> float:
        """Seconds from sending a batch now to its answer: it may stand behind another one."""
        rows = min(self.queue.rows, self.queue.max_rows)
        return self._pace.out_s / self._pace.instances + self.times.seconds(rows)

    def _arm(self, now: float) -> None:
        when = inf
        if self.queue.waiting or self._retries:
            takes_at = min(map(_Instance.takes_at, self._instances), default=inf)
            wake_at = self.queue.wake_at(self._batch_due_s()) if takes_at <= now else takes_at + _EARLY_S - _LATEST_S
            when = min(wake_at, self.queue.expires_at())
        if self._timer is not None:
            if now < self._timer_at <= when:
                return  # it comes early enough, and looking once too often is cheaper than a new timer
            self._timer.cancel()
            self._timer = None
        if when != inf:
            self._timer_at = when
            self._timer = self._clock.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.pump()


def _failure(failure: RunFailure) -> ServiceError:
    """Return what a request is told that fails alone."""
    if failure.failure is Failure.MODEL_REFUSED:
        return ModelRefused(failure.text)
    if failure.failure is Failure.OUT_OF_MEMORY:
        return ModelOutOfMemory()
    return InvalidModelOutput(failure.text)


def _rows_by_level(items: Sequence[Item]) -> dict[Criticality, int]:
    rows: dict[Criticality, int] = {}
    for item in items:
        rows[item.criticality] = rows.get(item.criticality, 0) + item.rows
    return rows


def _places_by_sink(items: Sequence[Item]) -> list[list[Place]]:
    """Return where the wanted items are, by who waits for them."""
    groups: dict[int, list[Place]] = {}
    row = 0
    for item in items:
        if not item.unwanted:
            groups.setdefault(id(item.sink), []).append(Place(item, row))
        row += item.rows
    return list(groups.values())
