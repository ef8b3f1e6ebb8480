"""Pools of replicas: which one runs a request, and when it is tried a second time."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from services.common.call import Call, Pending
from services.common.errors import DeadlineExceeded, ServiceError
from services.common.tasks import spawn
from services.common.tracing import Tracing
from services.router.adapters.inference_client.failure import AttemptTimedOut, HopFailed
from services.router.adapters.inference_client.replica import Dial, Replica, VersionKey
from services.router.adapters.inference_client.standing import Usual
from services.router.adapters.inference_client.stream import InferStream, StreamOptions
from services.router.domain.failure import NoReplicaReady
from services.router.domain.ports import Job, OutputsReceiver
from services.router.domain.routing import Target
from services.router.domain.tensor import Tensor

# A request meets at most two models, so that one that kills its worker kills no third. One whose last try took too long
# has killed nobody, and gets a third where there is time for it. Tries that were refused before they ran cost nothing but
# time; they are bounded too.
_RUNS_LIMIT = 2
_THIRD_LEFT_S = 0.3
_TRIES_LIMIT = 5
_LEAST_LEFT_S = 0.005
# Who waited for a replica in vain is told so this long before his time is up, or when a quarter of it is left: a busy
# process is late with it, and "too late" would blame nobody.
_TELLING_S = 0.1

Place = tuple[Replica, InferStream]


class InferencePools:
    """Implements the domain's `Inference` over static addresses per pool.

    `hope_s`: how long a request waits for a version that was READY a moment ago (its process is being replaced, its
    worker restarted) or whose replica has only just been dialled. `attempt_timeout_s`: the least time that a replica gets
    for an answer before another one is asked; for a slow version it is as long as its answers usually take, and more.
    """

    def __init__(
        self,
        pools: Mapping[str, Sequence[str]],
        *,
        dial: Dial,
        options: StreamOptions,
        tracing: Tracing,
        hope_s: float,
        attempt_timeout_s: float,
        on_retry: Callable[[], None],
    ) -> None:
        self._changed = asyncio.Event()
        self._tracing = tracing
        self._hope_s = hope_s
        self._attempt_timeout_s = attempt_timeout_s
        self._on_retry = on_retry
        self._usual: dict[VersionKey, Usual] = {}
        self._replicas = {
            pool: [Replica(address, dial, options, self._notify) for address in addresses]
            for pool, addresses in pools.items()
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to connect; outside of any call, so that streams inherit no caller's deadline."""
        self._tasks = [
            spawn(replica.run(), f"replica {replica.address}")
            for replicas in self._replicas.values()
            for replica in replicas
        ]

    async def close(self) -> None:
        """Let go of every replica."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replicas in self._replicas.values():
            await asyncio.gather(*(replica.close() for replica in replicas))

    def is_ready(self, target: Target) -> bool:
        """Whether some replica of the target's pool says READY for its version."""
        return any(replica.stream(_key(target)) is not None for replica in self._of(target))

    async def infer(self, target: Target, job: Job, call: Call, hope_s: float | None = None) -> tuple[Tensor, ...]:
        """Return the outputs of a job's rows from the replica with the least queue time."""
        key = target.version.model, target.version.id
        longest_s = self._hope_s if hope_s is None else min(self._hope_s, hope_s)
        span = self._tracing.begin("interlock.router/infer", call.traceparent)
        try:
            outputs = await self._infer(
                _Asked(target, key, self._usual_of(key), job, call, span.traceparent), longest_s
            )
        except BaseException as error:
            span.end(type(error).__name__)
            raise
        span.end()
        return outputs

    def begin(self, target: Target, job: Job, call: Call, receiver: OutputsReceiver) -> Pending:
        """Ask as `infer` does, without a task as long as the first replica that is asked answers. Traces nothing."""
        key = target.version.model, target.version.id
        asked = _Asked(target, key, self._usual_of(key), job, call, call.traceparent)
        # The task finds the same error again, and tells of it.
        with suppress(ServiceError):
            found = self._pick_now(asked, ())
            if found is not None:
                patience_s = self._patience_s(asked.usual, call) if found[1] else None
                return _FirstTry(self, asked, found[0], patience_s, receiver)
        return _InTask(self._infer(asked, self._hope_s), receiver)

    async def go_on(self, asked: "_Asked", place: Place, failed: HopFailed) -> tuple[Tensor, ...]:
        """Return the outputs for a request whose first try has failed."""
        return await self._infer(asked, self._hope_s, (place, failed))

    async def _infer(
        self, asked: "_Asked", hope_s: float, first: tuple[Place, HopFailed] | None = None
    ) -> tuple[Tensor, ...]:
        """`first`: the first try and how it failed, where that is behind us."""
        usual, call = asked.usual, asked.call
        tried: tuple[Replica, ...] = ()
        runs, runs_limit, tries = 0, _RUNS_LIMIT, 0
        while True:
            if first is None:
                place, others = await self._pick(asked, tried, hope_s)
                patience_s = self._patience_s(usual, call) if others and runs < _RUNS_LIMIT else None
                try:
                    return await _try(asked, place, runs + 1, patience_s)
                except HopFailed as error:
                    failed = error
            else:
                (place, failed), first = first, None
            tries += 1
            if failed.ran:
                runs += 1
                runs_limit = _RUNS_LIMIT + int(isinstance(failed, AttemptTimedOut))
            if failed.told:
                place[0].suspect(asked.key, place[1])
            spent = runs >= runs_limit or tries >= _TRIES_LIMIT or (failed.ran and not usual.may_retry)
            if spent or call.remaining_s() < (_THIRD_LEFT_S if runs >= _RUNS_LIMIT else _LEAST_LEFT_S):
                raise failed
            if failed.ran:
                usual.retried()
            tried = (*tried, place[0])
            self._on_retry()

    def _patience_s(self, usual: Usual, call: Call) -> float | None:
        """Return how long one try may take; None when there would be no retry, or no time for one."""
        patience_s = usual.patience_s if usual.may_retry else None
        return None if patience_s is None or call.remaining_s() < patience_s + _THIRD_LEFT_S else patience_s

    def _usual_of(self, key: VersionKey) -> Usual:
        found = self._usual.get(key)
        if found is None:
            found = self._usual[key] = Usual(self._attempt_timeout_s)
        return found

    async def _pick(self, asked: "_Asked", tried: Sequence[Replica], hope_s: float) -> tuple[Place, bool]:
        """Return where a request goes, and whether there is another place for it; wait for one where that makes sense."""
        latest = asked.call.deadline - min(_TELLING_S, asked.call.remaining_s() / 4)
        while True:
            changed = self._changed
            found = self._pick_now(asked, tried)
            if found is not None:
                return found
            left_s = min(self._hope_left_s(asked.target, hope_s), latest - time.monotonic())
            if left_s <= 0:
                raise NoReplicaReady(*asked.key)
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                continue

    def _pick_now(self, asked: "_Asked", tried: Sequence[Replica]) -> tuple[Place, bool] | None:
        """Return what `_pick` returns; None where no replica is ready."""
        replicas = self._of(asked.target)
        ready = [(replica, stream) for replica in replicas if (stream := replica.stream(asked.key)) is not None]
        if not ready:
            return None
        found = _best(asked.key, ready, tried)
        if found is None:
            raise NoReplicaReady(*asked.key)
        return found

    def _hope_left_s(self, target: Target, hope_s: float) -> float:
        last = max((replica.last_hope(_key(target)) for replica in self._of(target)), default=0.0)
        return last + hope_s - time.monotonic()

    def _of(self, target: Target) -> Sequence[Replica]:
        return self._replicas.get(target.deployment.pool, ())

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(slots=True)
class _Asked:
    """What is the same in every try of a request."""

    target: Target
    key: VersionKey
    usual: Usual
    job: Job
    call: Call
    traceparent: str


async def _try(asked: _Asked, place: Place, attempt: int, patience_s: float | None) -> tuple[Tensor, ...]:
    """Ask one replica, and learn from how that ends."""
    replica, stream = place
    standing = replica.standing(asked.key)
    started = time.monotonic()
    probing = standing.enter()
    failed: bool | None = None
    try:
        outputs = await stream.infer(asked.job, asked.call, attempt, asked.traceparent, patience_s)
        failed = False
    except ServiceError as error:
        failed = _counts_as_failed(error, asked, started)
        raise
    finally:
        standing.left(started, probing=probing, failed=failed)
    asked.usual.answered(time.monotonic() - started)
    return outputs


def _counts_as_failed(error: ServiceError, asked: _Asked, started: float) -> bool | None:
    """Return whether a try's error is its replica's fault; None tells nothing."""
    if isinstance(error, HopFailed):
        return error.ran or None
    if isinstance(error, DeadlineExceeded):
        return asked.usual.was_enough(asked.call.deadline - started) or None
    # INTERNAL; what the caller or the model did wrong has a type of its own.
    return type(error) is ServiceError or None


class _FirstTry:
    """The first try of a request that has no task. Another one needs a task, and is `infer`'s business."""

    __slots__ = ("_asked", "_item", "_later", "_over", "_place", "_pool", "_probing", "_receiver", "_started")

    def __init__(
        self, pool: InferencePools, asked: _Asked, place: Place, patience_s: float | None, receiver: OutputsReceiver
    ) -> None:
        """Ask a replica. Raises ServiceError where it cannot be asked."""
        self._pool = pool
        self._asked = asked
        self._place = place
        self._receiver = receiver
        self._over = False
        self._later: _InTask | None = None
        self._item = place[1].begin(asked.job, asked.call, 1, asked.traceparent, outcome=self, patience_s=patience_s)
        self._started = time.monotonic()
        self._probing = place[0].standing(asked.key).enter()

    def done(self) -> bool:
        return self._over

    def set_result(self, result: tuple[Tensor, ...]) -> None:
        self._end(failed=False)
        self._asked.usual.answered(time.monotonic() - self._started)
        self._receiver.take_outputs(result)

    def set_exception(self, exception: ServiceError) -> None:
        if isinstance(exception, AttemptTimedOut):
            self._place[1].withdraw(self._item)
        self._end(failed=_counts_as_failed(exception, self._asked, self._started))
        if isinstance(exception, HopFailed):
            self._later = _InTask(self._pool.go_on(self._asked, self._place, exception), self._receiver)
        else:
            self._receiver.fail(exception)

    def take_back(self) -> None:
        if self._later is not None:
            self._later.take_back()
        elif not self._over:
            self._place[1].withdraw(self._item)
            self._end(failed=None)

    def _end(self, *, failed: bool | None) -> None:
        self._over = True
        self._place[1].end(self._item)
        # It knows this object too.
        del self._item
        self._place[0].standing(self._asked.key).left(self._started, probing=self._probing, failed=failed)


class _InTask:
    """A request without a task that needs one after all: it waits for a replica, or goes to another one."""

    __slots__ = ("_task",)

    def __init__(self, outputs: Coroutine[Any, Any, tuple[Tensor, ...]], receiver: OutputsReceiver) -> None:
        self._task = spawn(_hand_over(outputs, receiver), "infer")

    def take_back(self) -> None:
        self._task.cancel()


async def _hand_over(outputs: Coroutine[Any, Any, tuple[Tensor, ...]], receiver: OutputsReceiver) -> None:
    try:
        found = await outputs
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is to hear of it
        receiver.fail(error)
    else:
        receiver.take_outputs(found)


def _best(key: VersionKey, ready: list[Place], tried: Sequence[Replica]) -> tuple[Place, bool] | None:
    """Return the least loaded place of those in good standing, and whether there are others; at most half are left alone.

    None when a breaker keeps requests from all of them.
    """
    allowed = [place for place in ready if not place[0].standing(key).refuses]
    if len(allowed) <= 1:
        return (allowed[0], False) if allowed else None
    now = time.monotonic()
    away = [place for place in allowed if place[0].standing(key).away_until > now]
    if away:
        away.sort(key=lambda place: place[0].standing(key).away_until, reverse=True)
        left_alone = away[: len(ready) // 2]
        allowed = [place for place in allowed if place not in left_alone] or allowed
    fresh = [place for place in allowed if place[0] not in tried] or allowed
    return min(fresh, key=lambda place: place[1].load), len(allowed) > 1


def _key(target: Target) -> VersionKey:
    return target.version.model, target.version.id
