"""The queue of one version: which requests leave together, and when. Pure: the caller brings the time.

Requests leave
- at once when a full batch of rows waits (FULL),
- at once when at least half of the calls in flight wait here (SHARE): the others are being computed or answered, and
  waiting for them would only add latency; a lone request is all of the calls in flight and never waits,
- when the oldest has waited `max_delay_s` (DELAY),
- when the tightest deadline needs it (DEADLINE).

Everything is counted in rows. Criticality goes first, then the tightest deadline; but every fourth batch begins with
those that have waited longest, as far as they are old, so that nothing waits for ever and the others keep three quarters.
Members that are cancelled or expired are dropped when the batch is formed, so no work is done for nobody.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Final

from services.common.criticality import Criticality
from services.inference.domain.item import BatchKey, Item, Stage
from services.inference.domain.version import BatchingPolicy

_DEAD_KEPT: Final = 64
_TURN_OF_THE_OLDEST: Final = 4
# Walking a tuple costs a tenth of walking the enum, and it is walked several times a batch.
_LEVELS: Final = tuple(Criticality)


class Reason(StrEnum):
    """Why a batch left."""

    FULL = "full"
    SHARE = "share"
    DELAY = "delay"
    DEADLINE = "deadline"
    RETRY = "retry"


@dataclass(slots=True)
class Batch:
    """Requests that run together."""

    items: list[Item]
    reason: Reason
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = sum(item.rows for item in self.items)

    @property
    def key(self) -> BatchKey:
        """What the members share."""
        return self.items[0].key

    def parts(self, count: int) -> list["Batch"]:
        """Return at most so many batches with equal shares of the members, to be run again."""
        size = -(-len(self.items) // count)
        return [Batch(self.items[at : at + size], Reason.RETRY) for at in range(0, len(self.items), size)]


class _Lane:
    """Waiting requests of one key: a heap by deadline for each criticality, and the order of arrival."""

    __slots__ = ("_added", "arrivals", "heaps", "rows", "waiting")

    def __init__(self) -> None:
        self.heaps: list[list[tuple[float, int, Item]]] = [[] for _ in range(len(_LEVELS) + 1)]
        """Entries are deadline, number and request: tuples are compared without a call."""
        self.arrivals: deque[Item] = deque()
        self.rows = 0
        self.waiting = 0
        self._added = 0

    def add(self, item: Item) -> None:
        self._added += 1
        heapq.heappush(self.heaps[item.criticality], (item.deadline, self._added, item))
        self.arrivals.append(item)
        self.rows += item.rows
        self.waiting += 1
        if len(self.arrivals) > 2 * self.waiting + _DEAD_KEPT:
            self._forget_dead()

    def leave(self, item: Item) -> None:
        self.rows -= item.rows
        self.waiting -= 1

    def eldest(self) -> Item | None:
        """Return the request that waits longest."""
        while self.arrivals and self.arrivals[0].stage is not Stage.WAITING:
            self.arrivals.popleft()
        return self.arrivals[0] if self.arrivals else None

    def oldest(self) -> float:
        """Return when the request that waits longest arrived; infinite when none waits."""
        eldest = self.eldest()
        return eldest.arrived if eldest is not None else inf

    def head(self, level: Criticality) -> Item | None:
        """Return the request of a criticality that is due first."""
        heap = self.heaps[level]
        while heap and heap[0][2].stage is not Stage.WAITING:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def take_all(self) -> list[Item]:
        """Take out and return every waiting request, in the order of arrival."""
        items = [item for item in self.arrivals if item.stage is Stage.WAITING]
        self.arrivals.clear()
        for level in _LEVELS:
            self.heaps[level].clear()
        self.rows = self.waiting = 0
        return items

    def first(self) -> Item | None:
        """Return the request that goes first: by criticality, then deadline."""
        for level in _LEVELS:
            head = self.head(level)
            if head is not None:
                return head
        return None

    def tightest(self) -> float:
        tightest = inf
        for level in _LEVELS:
            head = self.head(level)
            if head is not None and head.deadline < tightest:
                tightest = head.deadline
        return tightest

    def _forget_dead(self) -> None:
        """Drop what was cancelled from both orders; a wave of cancels must not be held in memory."""
        self.arrivals = deque(item for item in self.arrivals if item.stage is Stage.WAITING)
        for level in _LEVELS:
            self.heaps[level] = [entry for entry in self.heaps[level] if entry[2].stage is Stage.WAITING]
            heapq.heapify(self.heaps[level])


class BatchQueue:
    """Requests of one version that wait for a batch. No timers, no clock: `now` comes in, monotonic seconds."""

    def __init__(self, policy: BatchingPolicy) -> None:
        self.policy = policy
        self.max_rows = policy.max_batch_size
        """Most rows of a batch at the moment: the policy's or fewer."""
        self.max_delay_s = policy.max_delay_s
        """Longest wait for company at the moment."""
        self.waiting = 0
        self.rows = 0
        self.size_bytes = 0
        self._lanes: dict[BatchKey, _Lane] = {}
        self._rows_of = [0] * (len(_LEVELS) + 1)
        self._turn = 0

    def rows_before(self, criticality: Criticality) -> int:
        """Return the waiting rows that a new request of this criticality stands behind."""
        return sum(self._rows_of[: criticality + 1]) if self.waiting else 0

    def add(self, item: Item, now: float) -> None:
        """Let a request wait. Whether it may is the admission's business."""
        item.stage = Stage.WAITING
        item.arrived = now
        lane = self._lanes.get(item.key)
        if lane is None:
            lane = self._lanes[item.key] = _Lane()
        lane.add(item)
        self._count(item, 1)

    def remove(self, item: Item) -> None:
        """Take a waiting request out; its bytes are let go at once."""
        self._leave(self._lanes[item.key], item)
        item.stage = Stage.DONE
        item.inputs = ()

    def expire(self, now: float) -> list[Item]:
        """Take out and return every request whose deadline has come."""
        expired = []
        for lane in self._lanes.values():
            for level in _LEVELS:
                while (head := lane.head(level)) is not None and head.deadline <= now:
                    self._leave(lane, head)
                    head.stage = Stage.DONE
                    head.inputs = ()
                    expired.append(head)
        self._drop_empty()
        return expired

    def displace(self, criticality: Criticality, rows: int, size_bytes: int) -> list[Item]:
        """Take out and return less critical requests, the least critical first, until so many rows and bytes are free.

        Nothing, when all of them together are not enough.
        """
        found: list[tuple[_Lane, tuple[float, int, Item]]] = []
        for level in reversed(_LEVELS[criticality:]):
            for lane in self._lanes.values():
                heap = lane.heaps[level]
                while heap and (rows > 0 or size_bytes > 0):
                    # The last of a heap can go without a search, and is among those that are due late.
                    entry = heap.pop()
                    item = entry[2]
                    if item.stage is Stage.WAITING:
                        found.append((lane, entry))
                        rows -= item.rows
                        size_bytes -= item.size_bytes
        if rows > 0 or size_bytes > 0:
            for lane, entry in found:
                heapq.heappush(lane.heaps[entry[2].criticality], entry)
            return []
        for lane, (_, _, item) in found:
            self._leave(lane, item)
            item.stage = Stage.DONE
            item.inputs = ()
        return [entry[2] for _, entry in found]

    def clear(self) -> list[Item]:
        """Take out and return every request."""
        return self.expire(inf)

    def next_batch(self, now: float, in_flight: int, batch_s: float) -> Batch | None:
        """Return the batch that should leave now, or None.

        `in_flight` counts the calls from the arrival of their message to their answer, waiting ones included; `batch_s`
        is how long a batch takes. Call `expire` before.
        """
        if not self.waiting:
            return None
        old = now - self.policy.ageing_s if self._turn == _TURN_OF_THE_OLDEST - 1 else -inf
        for lane in self._by_urgency(old):
            reason = self._due(lane, now, in_flight, batch_s)
            if reason is not None:
                self._turn = (self._turn + 1) % _TURN_OF_THE_OLDEST
                return self._take(lane, reason, now, old)
        return None

    def wake_at(self, batch_s: float) -> float:
        """Return when to look again although nothing came: a delay ends, a deadline needs it, a request expires."""
        earliest = inf
        if self.waiting:
            for lane in self._lanes.values():
                earliest = min(earliest, lane.oldest() + self.max_delay_s, lane.tightest() - batch_s)
        return earliest

    def expires_at(self) -> float:
        """Return when the next waiting request expires."""
        return min((lane.tightest() for lane in self._lanes.values()), default=inf) if self.waiting else inf

    def _due(self, lane: _Lane, now: float, in_flight: int, batch_s: float) -> Reason | None:
        if lane.rows >= self.max_rows:
            return Reason.FULL
        if 2 * self.waiting >= in_flight:
            return Reason.SHARE
        if now >= lane.oldest() + self.max_delay_s:
            return Reason.DELAY
        if now >= lane.tightest() - batch_s:
            return Reason.DEADLINE
        return None

    def _by_urgency(self, old: float) -> list[_Lane]:
        """Return the lanes that have something, the most urgent first: one with a request from before `old` leads."""
        if len(self._lanes) == 1:
            lanes = list(self._lanes.values())
            return lanes if lanes[0].waiting else []
        self._drop_empty()
        ranked = [(first.criticality, first.deadline, lane) for lane in self._lanes.values() if (first := lane.first())]
        ranked.sort(key=lambda entry: (min(entry[2].oldest() - old, 0.0), *entry[:2]))
        return [lane for _, _, lane in ranked]

    def _take(self, lane: _Lane, reason: Reason, now: float, old: float) -> Batch:
        """Form a batch; one request alone may be larger than the largest batch, since callers split those."""
        if lane.rows <= self.max_rows:
            items = lane.take_all()
            for each in items:
                self._begin(each, now)
            return Batch(items, reason)
        items, rows = [], 0
        while (item := lane.first() if old == -inf else _oldest_or_first(lane, old)) is not None:
            if items and rows + item.rows > self.max_rows:
                break
            lane.leave(item)
            self._begin(item, now)
            items.append(item)
            rows += item.rows
        return Batch(items, reason)

    def _begin(self, item: Item, now: float) -> None:
        """Count a request out of the queue that has left its lane for a batch."""
        self._count(item, -1)
        item.stage = Stage.RUNNING
        item.started = now

    def _leave(self, lane: _Lane, item: Item) -> None:
        lane.leave(item)
        self._count(item, -1)

    def _count(self, item: Item, sign: int) -> None:
        self.waiting += sign
        self.rows += sign * item.rows
        self.size_bytes += sign * item.size_bytes
        self._rows_of[item.criticality] += sign * item.rows

    def _drop_empty(self) -> None:
        for key in [key for key, lane in self._lanes.items() if not lane.waiting]:
            del self._lanes[key]


def _oldest_or_first(lane: _Lane, old: float) -> Item | None:
    eldest = lane.eldest()
    return eldest if eldest is not None and eldest.arrived <= old else lane.first()
