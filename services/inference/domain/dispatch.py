"""Feeds one version's worker process with batches and hands the answers out.

Two batches are out at a time: one runs, one waits in the pipe, so that the process never idles while an answer is taken
apart here. A third would only be decided too early: what waits here can still grow, be reordered, cancelled or expire.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.common.errors import ServiceError
from services.inference.domain.admission import BatchTime, QueueLimits, admit, estimate_wait_s
from services.inference.domain.batching import Batch, BatchQueue, Reason
from services.inference.domain.failure import (
    DeadlinePassed,
    InvalidModelOutput,
    ModelRefused,
    WorkerDied,
)
from services.inference.domain.frame import Failure, FrameTensor
from services.inference.domain.item import BatchAnswer, Criticality, Item, Place, Stage, group_by_sink
from services.inference.domain.ports import BatchRunner, Clock, Observer, RunFailure, Timer
from services.inference.domain.quarantine import Quarantine
from services.inference.domain.statistic import VersionStatistic
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import BatchingPolicy, VersionKey

BATCHES_OUT: Final = 2
# A run that ignores its interruption holds the process: after this it is ended and replaced.
HUNG_S: Final = 10.0


@dataclass(slots=True)
class _Running:
    """A batch at the worker."""

    batch: Batch
    sent: float
    input_s: float
    overdue: Timer


class Dispatcher:
    """Queue, admission and running batches of one version. All of it on the event loop."""

    def __init__(
        self,
        key: VersionKey,
        inputs: Sequence[TensorSpec],
        policy: BatchingPolicy,
        *,
        clock: Clock,
        observer: Observer,
        limits: QueueLimits,
        refusal: ServiceError,
    ) -> None:
        self.key = key
        self.queue = BatchQueue(policy)
        self.in_flight = 0
        """Calls from the arrival of their message to their answer."""
        self.idle = asyncio.Event()
        """Set while no call is in flight."""
        self.idle.set()
        self.statistic = VersionStatistic()
        self.batch_time = BatchTime()
        self._inputs = tuple(inputs)
        self._clock = clock
        self._observer = observer
        self._limits = limits
        self._runner: BatchRunner | None = None
        self._refusal: ServiceError | None = refusal
        self._running: dict[int, _Running] = {}
        self._retries: deque[Batch] = deque()
        self._quarantine = Quarantine()
        self._next_ident = 0
        self._last_result = 0.0
        self._timer: Timer | None = None
        self._timer_at = 0.0

    @property
    def queue_time_s(self) -> float:
        """Seconds that an ordinary request arriving now would wait."""
        rows = self.queue.rows_before(Criticality.DEFAULT)
        return estimate_wait_s(rows, len(self._running), self.queue.policy.max_batch_size, self.batch_time.seconds)

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
                raise self._refusal
            self._quarantine.check(item, now)
            batch_s = self.batch_time.seconds
            admit(item, self.queue, self._limits, batches_out=len(self._running), batch_s=batch_s, now=now)
        except ServiceError as error:
            item.arrived = item.arrived or now
            self._count_out(item, error, now)
            raise
        self.queue.add(item, now)

    def cancel(self, item: Item) -> None:
        """Take a request back. Its batch-mates do not notice."""
        if item.stage is Stage.WAITING:
            self.queue.remove(item)
            self._count_out(item, None, self._clock.now(), reason="CANCELLED")
            self.pump()
        elif item.stage is Stage.RUNNING and not item.unwanted:
            item.unwanted = True
            self._count_out(item, None, self._clock.now(), reason="CANCELLED")
            self._interrupt_unwanted()

    def pump(self) -> None:
        """Send what should leave now, and set the timer for the next look."""
        now = self._clock.now()
        if self.queue.expires_at() <= now:
            self._fail(self.queue.expire(now), DeadlinePassed("while the request waited for a batch"), now)
        while self._runner is not None and len(self._running) < BATCHES_OUT:
            batch = self._next_retry(now) or self.queue.next_batch(now, self.in_flight, self._batch_due_s())
            if batch is None:
                break
            self._send(self._runner, batch, now)
        self._arm(now)

    def attach(self, runner: BatchRunner, batch_s: float) -> None:
        """Begin to serve: the runner is warm, its largest batch takes `batch_s` seconds."""
        self._runner = runner
        self._refusal = None
        self._last_result = self._clock.now()
        self.batch_time = BatchTime(batch_s)
        self.pump()

    def refuse(self, refusal: ServiceError) -> None:
        """Refuse new requests; what was accepted is still answered."""
        self._refusal = refusal

    def detach(self, cause: str, refusal: ServiceError) -> None:
        """The runner is gone: fail everything that was accepted, at once, and refuse what comes."""
        now = self._clock.now()
        self._runner = None
        self._refusal = refusal
        running = list(self._running.values())
        self._running.clear()
        if running:
            self._quarantine.blame(running[0].batch.items, now)
        lost = [item for batch in self._retries for item in batch.items]
        self._retries.clear()
        for entry in running:
            entry.overdue.cancel()
            lost += entry.batch.items
        lost += self.queue.clear()
        self._fail(lost, WorkerDied(self.key, cause), now)
        self._arm(now)

    def set_policy(self, policy: BatchingPolicy) -> None:
        """Join requests by another policy from now on."""
        self.queue.policy = policy
        self.pump()

    def take_result(self, ident: int, result: BatchAnswer | RunFailure) -> None:
        """Take what a batch came to. A batch that is not known any more was answered otherwise."""
        entry = self._running.pop(ident, None)
        if entry is None:
            return
        entry.overdue.cancel()
        now = self._clock.now()
        if isinstance(result, BatchAnswer):
            self._succeed(entry, result, now)
        else:
            self._handle_failure(entry, result, now)
        self._last_result = now
        self.pump()

    def _succeed(self, entry: _Running, answer: BatchAnswer, now: float) -> None:
        batch = entry.batch
        self.batch_time.observe(now - max(entry.sent, self._last_result))
        self.statistic.batch_ran(batch.rows, len(batch.items), entry.input_s, answer.compute_s)
        self._observer.batch_ran(self.key, batch, answer.compute_s)
        started = time.perf_counter()
        answer.finished = now
        for places in _places_by_sink(batch.items):
            for place in places:
                self._answer_out(place.item, now)
            places[0].item.sink.deliver(answer, places)
        self.statistic.batch_answered(batch.rows, len(batch.items), time.perf_counter() - started)

    def _handle_failure(self, entry: _Running, failure: RunFailure, now: float) -> None:
        """Halve a batch that the model refused until the request that spoils it stands alone."""
        batch = entry.batch
        if failure.failure is Failure.INTERRUPTED:
            self._fail(batch.items, DeadlinePassed("while the batch ran"), now)
            return
        self.statistic.execution_count += 1
        if len(batch.items) > 1:
            self._retries.extendleft(reversed(batch.halves()))
            return
        refused = failure.failure is Failure.MODEL_REFUSED
        error = ModelRefused(failure.text) if refused else InvalidModelOutput(failure.text)
        self._fail(batch.items, error, now)

    def _next_retry(self, now: float) -> Batch | None:
        while self._retries:
            batch = self._retries.popleft()
            late = [item for item in batch.items if not item.unwanted and item.deadline <= now]
            self._fail(late, DeadlinePassed("while the batch was run again"), now)
            wanted = [item for item in batch.items if not item.unwanted and item.stage is Stage.RUNNING]
            if wanted:
                return Batch(wanted, Reason.RETRY)
        return None

    def _send(self, runner: BatchRunner, batch: Batch, now: float) -> None:
        ident = self._next_ident = self._next_ident + 1
        key, items = batch.key, batch.items
        trace = next((item.trace for item in items if item.trace is not None), None)
        for item in items:
            if item.trace is not None:
                item.trace.started(batch.rows)
        tensors = [
            FrameTensor(spec.datatype, (batch.rows, *trailing), [item.inputs[index] for item in items])
            for index, (spec, trailing) in enumerate(zip(self._inputs, key.trailing, strict=True))
        ]
        overdue = self._clock.call_at(max(item.deadline for item in items), lambda: self._overdue(ident))
        started = time.perf_counter()
        entry = self._running[ident] = _Running(batch, now, 0.0, overdue)
        runner.run(ident, key.outputs, tensors, trace.traceparent if trace is not None else "")
        entry.input_s = time.perf_counter() - started

    def _overdue(self, ident: int) -> None:
        """The last deadline of a running batch has come: nobody waits for it any more."""
        entry = self._running.get(ident)
        if entry is None or self._runner is None:
            return
        now = self._clock.now()
        wanted = [item for item in entry.batch.items if not item.unwanted]
        self._fail(wanted, DeadlinePassed("while the batch ran"), now)
        for item in wanted:
            item.unwanted = True
        self._runner.interrupt(ident)
        entry.overdue = self._clock.call_at(now + HUNG_S, self._runner.kill)

    def _interrupt_unwanted(self) -> None:
        for ident, entry in self._running.items():
            if self._runner is not None and all(item.unwanted for item in entry.batch.items):
                self._runner.interrupt(ident)

    def _fail(self, items: Sequence[Item], error: ServiceError, now: float) -> None:
        wanted = [item for item in items if not item.unwanted]
        for item in wanted:
            self._count_out(item, error, now)
        for group in group_by_sink(wanted).values():
            group[0].sink.fail(group, error)

    def _answer_out(self, item: Item, now: float) -> None:
        item.stage = Stage.DONE
        item.inputs = ()
        self.gone(1)
        self.statistic.answered(now - item.arrived, item.started - item.arrived)
        self._observer.item_done(self.key, item, "", now)

    def _count_out(self, item: Item, error: ServiceError | None, now: float, reason: str = "") -> None:
        self.gone(1)
        if not item.unwanted:
            item.stage = Stage.DONE
        self.statistic.failed(now - item.arrived)
        self._observer.item_done(self.key, item, error.reason if error is not None else reason, now)

    def _batch_due_s(self) -> float:
        """Seconds from sending a batch now to its answer: it may stand behind another one."""
        return self.batch_time.seconds * (1 + len(self._running))

    def _arm(self, now: float) -> None:
        room = self._runner is not None and len(self._running) < BATCHES_OUT
        when = self.queue.wake_at(self._batch_due_s()) if room else self.queue.expires_at()
        if self._timer is not None:
            if now < self._timer_at <= when:
                return  # it comes early enough, and looking once too often is cheaper than a new timer
            self._timer.cancel()
            self._timer = None
        if when != float("inf"):
            self._timer_at = when
            self._timer = self._clock.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.pump()


def _places_by_sink(items: Sequence[Item]) -> list[list[Place]]:
    """Return where the wanted items are, by who waits for them."""
    groups: dict[int, list[Place]] = {}
    row = 0
    for item in items:
        if not item.unwanted:
            groups.setdefault(id(item.sink), []).append(Place(item, row))
        row += item.rows
    return list(groups.values())
