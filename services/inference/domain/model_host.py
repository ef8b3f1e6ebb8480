"""One version on this replica: its processes, and the dispatcher that feeds them.

Whatever happens here, other versions do not notice.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Final

from services.common.errors import ServiceError
from services.common.tasks import spawn
from services.inference.domain.dispatch import Dispatcher
from services.inference.domain.failure import NonFiniteTensors, ReplicaDraining, VersionNotReady
from services.inference.domain.finite import non_finite
from services.inference.domain.instance import MESSAGE_LIMIT_CHARS, HostParts, Instance
from services.inference.domain.item import Item
from services.inference.domain.lengths import fill_lengths
from services.inference.domain.ports import LoadFailure, WorkerExit
from services.inference.domain.splitting import PartsSink, split_item
from services.inference.domain.version import BatchingPolicy, LoadState, VersionKey, VersionSpec

_NEARNESS: Final = {
    LoadState.READY: 3,
    LoadState.LOADING: 2,
    LoadState.FETCHING: 1,
    LoadState.FAILED: 0,
    LoadState.UNLOADING: 0,
}


class ModelHost:
    """One version: its state, its processes, and the dispatcher that feeds them."""

    def __init__(
        self, spec: VersionSpec, policy: BatchingPolicy, parts: HostParts, changed: Callable[["ModelHost"], None]
    ) -> None:
        self.spec = spec
        self.state = LoadState.FETCHING
        self.message = ""
        self.tried = False
        """Whether it was READY or has failed once: what a replica's readiness waits for."""
        self.last_exit: WorkerExit | None = None
        """How the last of its processes that ended unasked has ended."""
        self.parts = parts
        self.dispatcher = Dispatcher(
            spec.key,
            spec.inputs,
            spec.outputs,
            policy,
            clock=parts.clock,
            observer=parts.observer,
            limits=parts.limits,
            refusal=self._not_ready(),
            arriving=parts.arriving,
        )
        self._policy = policy
        self._changed = changed
        self._instances: list[Instance] = []
        self._adjusting: set[asyncio.Task[None]] = set()
        # Filled outputs of variable size could not be told from those that were asked for.
        self._may_fill = all(-1 not in output.trailing for output in spec.outputs)

    @property
    def key(self) -> VersionKey:
        """Model and version."""
        return self.spec.key

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.state is LoadState.READY

    @property
    def max_batch_size(self) -> int:
        """Most rows of a batch."""
        return self.dispatcher.queue.policy.max_batch_size

    @property
    def max_queue_rows(self) -> int:
        """Most rows that wait."""
        return self.dispatcher.queue.policy.max_queue_rows or self.parts.limits.rows

    @property
    def memory_bytes(self) -> int:
        """Resident memory of its processes."""
        return sum(each.process.memory_bytes for each in self._instances if each.process is not None)

    @property
    def worker_pids(self) -> list[int]:
        """Ids of the processes that answer, one for each instance."""
        return [each.process.pid for each in self._instances if each.process is not None]

    def start(self) -> None:
        """Begin to load, in the background."""
        self._keep_instances()

    def set_policy(self, policy: BatchingPolicy) -> None:
        """Serve by another policy; batch sizes that are new count once they are warm."""
        if policy == self._policy:
            return
        before, self._policy = self._policy, policy
        serving = [each for each in self._instances if each.process is not None]
        current = self.dispatcher.queue.policy
        if serving and not set(policy.sizes()) <= set(current.sizes()):
            self.dispatcher.set_policy(
                replace(policy, max_batch_size=current.max_batch_size, batch_sizes=current.batch_sizes)
            )
            self._adjust(self._grow(serving, policy), "warm")
        else:
            self.dispatcher.set_policy(policy)
        for each in self._instances:
            if each.process is not None:
                each.process.limit_memory(policy.memory_limit_bytes)
            if policy.placement is not before.placement:
                each.renew()
        self._keep_instances()

    def check_ready(self) -> None:
        """Raise what a request to this version is told while it does not answer."""
        if self.state is LoadState.UNLOADING:
            raise self._unloading()
        if not self.ready:
            raise self._not_ready()

    def submit(self, item: Item) -> None:
        """Queue a request that the dispatcher has counted as arrived; call `dispatcher.pump` after the last of a group.

        Raises a `ServiceError` when it is refused. More rows than a batch holds run in parts.
        """
        if self._policy.refuse_non_finite:
            self._refuse_non_finite(item)
        if self._policy.length_buckets and self._may_fill:
            fill_lengths(item, self.spec.inputs, self._policy.length_buckets)
        if item.rows <= self.max_batch_size:
            self.dispatcher.offer(item)
            return
        self._submit_parts(item)

    def cancel(self, item: Item) -> None:
        """Take a request back; nobody else notices."""
        self.dispatcher.cancel(item)

    async def unload(self) -> None:
        """Refuse what comes, answer what was accepted, let the process go."""
        self._set(LoadState.UNLOADING)
        await self.idle(self.parts.pauses.drain_s)
        await self.close()

    async def idle(self, limit_s: float) -> None:
        """Wait until every accepted request is answered, at most so long."""
        try:
            async with asyncio.timeout(limit_s):
                await self.dispatcher.idle.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Stop at once; what is accepted and unanswered fails."""
        for task in tuple(self._adjusting):
            task.cancel()
        await asyncio.gather(*self._adjusting, return_exceptions=True)
        refusal = self._unloading()
        await asyncio.gather(*(each.close(refusal) for each in self._instances))
        self.dispatcher.detach(None, "was stopped", refusal)

    def _keep_instances(self) -> None:
        """Start processes, or let some go, until there are as many as the policy says."""
        while len(self._instances) < self._policy.instances:
            policy = lambda: self._policy  # noqa: E731 - what counts is the policy when it loads
            self._instances.append(Instance(self.spec, self.parts, self.dispatcher, policy, self._recount))
        while len(self._instances) > self._policy.instances:
            self._adjust(self._let_go(self._instances.pop()), "leave")

    async def _let_go(self, instance: Instance) -> None:
        try:
            await instance.retire()
        finally:
            await instance.close(self._unloading())

    def _adjust(self, work: Coroutine[None, None, None], what: str) -> None:
        task = spawn(work, name=f"{what} {self.key}")
        self._adjusting.add(task)
        task.add_done_callback(self._adjusting.discard)

    async def _grow(self, serving: Sequence[Instance], policy: BatchingPolicy) -> None:
        try:
            for each in serving:
                if each.process is not None:
                    await each.process.warm(policy.sizes())
        except LoadFailure as failure:
            self.message = f"kept batches of at most {self.max_batch_size} rows: {failure.message}"
            self._changed(self)
            return
        if policy == self._policy:
            self.dispatcher.set_policy(policy)

    def _refuse_non_finite(self, item: Item) -> None:
        found = non_finite(item, self.spec.inputs)
        if found:
            error = NonFiniteTensors(found)
            self.dispatcher.turn_away(item, error)
            raise error

    def _submit_parts(self, item: Item) -> None:
        sink = PartsSink(item, self.spec.outputs, self.dispatcher.cancel)
        sink.parts = split_item(item, self.spec.inputs, self.max_batch_size, sink)
        item.parts = sink
        item.arrived = self.parts.clock.now()
        self.dispatcher.arrived(len(sink.parts))
        self.dispatcher.gone(1)
        for index, part in enumerate(sink.parts):
            try:
                self.dispatcher.offer(part)
            except ServiceError:
                self.dispatcher.gone(len(sink.parts) - index - 1)
                sink.cancel()
                raise

    def _recount(self) -> None:
        """Derive the state from the processes: READY with one that answers, else the state of the one that is nearest."""
        if self.state is LoadState.UNLOADING:
            self.dispatcher.refuse(self._unloading())
            return
        exits = [each.last_exit for each in self._instances if each.last_exit is not None]
        self.last_exit = max([*exits, *([self.last_exit] if self.last_exit else [])], key=_when, default=None)
        self.tried = self.tried or any(each.tried for each in self._instances)
        ready, wanted = self.dispatcher.instances, len(self._instances)
        if ready:
            troubles = [each.message for each in self._instances if each.message]
            missing = f"{ready} of {wanted} processes answer: " if ready < wanted and troubles else ""
            self._set(LoadState.READY, f"{missing}{'; '.join(troubles)}")
            return
        nearest = max(self._instances, key=lambda each: _NEARNESS[each.state], default=None)
        if nearest is not None:
            self._set(nearest.state, nearest.message)

    def _set(self, state: LoadState, message: str = "") -> None:
        self.state = state
        self.message = message[:MESSAGE_LIMIT_CHARS]
        if state is not LoadState.READY:
            self.dispatcher.refuse(self._unloading() if state is LoadState.UNLOADING else self._not_ready())
        self._changed(self)

    def _not_ready(self) -> VersionNotReady:
        return VersionNotReady(self.key, self.state.name, self.message)

    def _unloading(self) -> ReplicaDraining:
        return ReplicaDraining(f"version {self.key.version} of model {self.key.model} is being unloaded here")


def _when(how: WorkerExit) -> float:
    return how.end_time
