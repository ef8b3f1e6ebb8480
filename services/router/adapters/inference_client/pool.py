"""Pools of replicas: which one runs a request, and when it is tried a second time."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from services.common.call import Call
from services.common.tasks import spawn
from services.common.tracing import Tracing
from services.router.adapters.inference_client.failure import HopFailed
from services.router.adapters.inference_client.replica import Dial, Replica, VersionKey
from services.router.adapters.inference_client.stream import InferStream, StreamOptions
from services.router.domain.failure import NoReplicaReady
from services.router.domain.ports import Job
from services.router.domain.routing import Target
from services.router.domain.tensor import Tensor

# A request meets at most two models, so that one that kills its worker kills no third. Tries that were refused before
# they ran cost nothing but time; they are bounded too.
_RUNS_LIMIT = 2
_TRIES_LIMIT = 5
_LEAST_LEFT_S = 0.005


class InferencePools:
    """Implements the domain's `Inference` over static addresses per pool.

    `hope_s`: how long a request waits for a version that was READY a moment ago (its process is being replaced, its
    worker restarted) or whose replica has only just been dialled.
    """

    def __init__(
        self,
        pools: Mapping[str, Sequence[str]],
        *,
        dial: Dial,
        options: StreamOptions,
        tracing: Tracing,
        hope_s: float,
        on_retry: Callable[[], None],
    ) -> None:
        self._changed = asyncio.Event()
        self._tracing = tracing
        self._hope_s = hope_s
        self._on_retry = on_retry
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
        longest_s = self._hope_s if hope_s is None else min(self._hope_s, hope_s)
        span = self._tracing.begin("interlock.router/infer", call.traceparent)
        try:
            outputs = await self._infer(target, job, call, span.traceparent, longest_s)
        except BaseException as error:
            span.end(type(error).__name__)
            raise
        span.end()
        return outputs

    async def _infer(self, target: Target, job: Job, call: Call, traceparent: str, hope_s: float) -> tuple[Tensor, ...]:
        avoid: Replica | None = None
        runs, tries = 0, 0
        while True:
            replica, stream = await self._pick(target, avoid, call, hope_s)
            try:
                return await stream.infer(job, call, runs + 1, traceparent)
            except HopFailed as failed:
                tries += 1
                runs += int(failed.ran)
                if runs >= _RUNS_LIMIT or tries >= _TRIES_LIMIT or call.remaining_s() < _LEAST_LEFT_S:
                    raise
                avoid = replica
                replica.suspect(_key(target), stream)
                self._on_retry()

    async def _pick(
        self, target: Target, avoid: Replica | None, call: Call, hope_s: float
    ) -> tuple[Replica, InferStream]:
        while True:
            changed = self._changed
            found = self._best(target, avoid)
            if found is not None:
                return found
            left_s = min(self._hope_left_s(target, hope_s), call.remaining_s() - _LEAST_LEFT_S)
            if left_s <= 0:
                raise NoReplicaReady(target.version.model, target.version.id)
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                continue

    def _best(self, target: Target, avoid: Replica | None) -> tuple[Replica, InferStream] | None:
        key = _key(target)
        ready = [(replica, stream) for replica in self._of(target) if (stream := replica.stream(key)) is not None]
        others = [found for found in ready if found[0] is not avoid] or ready
        return min(others, key=lambda found: (found[1].queue_time_us, found[1].in_flight), default=None)

    def _hope_left_s(self, target: Target, hope_s: float) -> float:
        last = max((replica.last_hope(_key(target)) for replica in self._of(target)), default=0.0)
        return last + hope_s - time.monotonic()

    def _of(self, target: Target) -> Sequence[Replica]:
        return self._replicas.get(target.deployment.pool, ())

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _key(target: Target) -> VersionKey:
    return target.version.model, target.version.id
