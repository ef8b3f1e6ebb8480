"""Admission: a request that would miss its deadline in the queue is refused at once, before it costs anything.

A bounded queue alone is no load shedding: under ten times the load it serves requests whose callers are gone. What is
compared with the deadline is the time of the batches at the worker, of the full ones that wait before it, and of its own;
sheddable requests may use 60 % of their deadline for it, ordinary ones 90 %, critical ones all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.inference.domain.batch_time import BatchTime
from services.inference.domain.batching import BatchQueue
from services.inference.domain.failure import DeadlinePassed, QueueFull
from services.inference.domain.item import Criticality, Item

_LEAST_RETRY_S: Final = 0.001
_LEAST_SHARE: Final = 0.05
_WEIGHT_OF_NEW: Final = 0.05
_SHARE_OF_DEADLINE: Final[Mapping[Criticality, float]] = {
    Criticality.CRITICAL: 1.0,
    Criticality.DEFAULT: 0.9,
    Criticality.SHEDDABLE: 0.6,
}


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Hard caps of one version's queue, whatever the estimate says. The version's own policy goes before them."""

    rows: int = 65_536
    size_bytes: int = 64 * 1024 * 1024


@dataclass(slots=True)
class Pace:
    """How fast a version works: its batch times, its largest batch, what is at the workers, and how many they are."""

    times: BatchTime
    max_rows: int
    out_s: float = 0.0
    """Seconds of the batches at the workers, by the same reckoning."""
    done_s: float = 0.0
    """How much of it is done."""
    instances: int = 1
    shares: dict[Criticality, float] = field(default_factory=lambda: dict.fromkeys(Criticality, 0.0))
    """How much of each full batch went to a criticality lately: what a batch leaves empty is nobody's."""

    def wait_s(self, rows_before: int, criticality: Criticality = Criticality.DEFAULT) -> float:
        """Return how long a request waits until its batch starts, behind so many rows.

        More critical requests that come meanwhile go before it: they take what they took lately.
        """
        full = rows_before // self.max_rows
        behind_s = full * self.times.seconds(self.max_rows)
        if behind_s and criticality is not Criticality.CRITICAL:
            behind_s /= max(_LEAST_SHARE, 1.0 - self._more_critical(criticality))
        return (max(0.0, self.out_s - self.done_s) + behind_s) / self.instances

    def ran(self, rows: Mapping[Criticality, int]) -> None:
        """Take the members of one batch into account."""
        for level, share in self.shares.items():
            self.shares[level] = share + _WEIGHT_OF_NEW * (rows.get(level, 0) / self.max_rows - share)

    def _more_critical(self, criticality: Criticality) -> float:
        return sum(share for level, share in self.shares.items() if level < criticality)

    def own_s(self, rows_before: int, rows: int) -> float:
        """Return the time of its own batch: with those before it that fill no other."""
        return self.times.seconds(min(self.max_rows, rows_before % self.max_rows + rows))


def admit(item: Item, queue: BatchQueue, limits: QueueLimits, pace: Pace, now: float) -> None:
    """Let the request in, or raise `QueueFull` with when to come back, or `DeadlinePassed`.

    While nothing waits and nothing runs every request is let in: refusing would leave outdated times in force for ever,
    since only batches that run correct them.
    """
    remaining_s = item.deadline - now
    if remaining_s <= 0:
        raise DeadlinePassed("before the request was queued")
    rows_before = queue.rows_before(item.criticality)
    wait_s = pace.wait_s(rows_before, item.criticality)
    if queue.waiting:
        _check_caps(item, queue, limits, wait_s)
    elif not pace.out_s:
        return
    own_s = pace.own_s(rows_before, item.rows)
    if wait_s + own_s > remaining_s * _SHARE_OF_DEADLINE[item.criticality]:
        raise QueueFull(
            f"the wait of about {wait_s * 1000:.1f} ms and {own_s * 1000:.1f} ms in the model would miss the deadline, "
            f"{remaining_s * 1000:.1f} ms are left",
            max(wait_s, _LEAST_RETRY_S),
            wait_ms=f"{wait_s * 1000:.1f}",
            remaining_ms=f"{remaining_s * 1000:.1f}",
        )


def _check_caps(item: Item, queue: BatchQueue, limits: QueueLimits, wait_s: float) -> None:
    """Hold both caps exactly. One request alone is let in whatever its size: its message was not too large."""
    most_rows = queue.policy.max_queue_rows or limits.rows
    if queue.rows + item.rows > most_rows:
        raise QueueFull(
            f"{queue.rows} rows wait and the request has {item.rows}, the queue holds {most_rows}",
            max(wait_s, _LEAST_RETRY_S),
            limit_rows=str(most_rows),
        )
    most_bytes = queue.policy.max_queue_bytes or limits.size_bytes
    if queue.size_bytes + item.size_bytes > most_bytes:
        raise QueueFull(
            f"{queue.size_bytes} bytes wait and the request has {item.size_bytes}, the queue holds {most_bytes}",
            max(wait_s, _LEAST_RETRY_S),
            limit_bytes=str(most_bytes),
        )
