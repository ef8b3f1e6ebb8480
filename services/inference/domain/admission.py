"""Admission: a request that would miss its deadline in the queue is refused at once, before it costs anything.

A bounded queue alone is no load shedding: under ten times the load it serves requests whose callers are gone. The
estimate is (batches before it + its own) x the moving average of a batch's time; sheddable requests may use 60 % of
their deadline for it, ordinary ones 90 %, critical ones all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.inference.domain.batching import BatchQueue
from services.inference.domain.failure import DeadlinePassed, QueueFull
from services.inference.domain.item import Criticality, Item

_WEIGHT_OF_NEW: Final = 0.2
_LEAST_RETRY_S: Final = 0.001
_SHARE_OF_DEADLINE: Final[Mapping[Criticality, float]] = {
    Criticality.CRITICAL: 1.0,
    Criticality.DEFAULT: 0.9,
    Criticality.SHEDDABLE: 0.6,
}


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Hard caps of one version's queue, whatever the estimate says."""

    requests: int = 2_000
    size_bytes: int = 64 * 1024 * 1024


class BatchTime:
    """Moving average of the seconds that a batch takes in the model's process."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def observe(self, seconds: float) -> None:
        """Take one batch into account."""
        if self.seconds == 0.0:
            self.seconds = seconds
        else:
            self.seconds += _WEIGHT_OF_NEW * (seconds - self.seconds)


def estimate_wait_s(rows_before: int, batches_out: int, max_batch_size: int, batch_s: float) -> float:
    """Return how long a request waits behind so many rows and batches already sent."""
    return (batches_out + -(-rows_before // max_batch_size)) * batch_s


def admit(item: Item, queue: BatchQueue, limits: QueueLimits, *, batches_out: int, batch_s: float, now: float) -> None:
    """Let the request in, or raise `QueueFull` with when to come back, or `DeadlinePassed`.

    While nothing waits and nothing runs every request is let in: refusing would leave an outdated average in force for
    ever, since only batches that run correct it.
    """
    remaining_s = item.deadline - now
    if remaining_s <= 0:
        raise DeadlinePassed("before the request was queued")
    wait_s = estimate_wait_s(queue.rows_before(item.criticality), batches_out, queue.policy.max_batch_size, batch_s)
    _check_caps(item, queue, limits, wait_s)
    if wait_s and wait_s + batch_s > remaining_s * _SHARE_OF_DEADLINE[item.criticality]:
        raise QueueFull(
            f"the wait of about {wait_s * 1000:.1f} ms and {batch_s * 1000:.1f} ms in the model would miss the deadline, "
            f"{remaining_s * 1000:.1f} ms are left",
            max(wait_s, _LEAST_RETRY_S),
            wait_ms=f"{wait_s * 1000:.1f}",
            remaining_ms=f"{remaining_s * 1000:.1f}",
        )


def _check_caps(item: Item, queue: BatchQueue, limits: QueueLimits, wait_s: float) -> None:
    if queue.waiting >= limits.requests:
        raise QueueFull(
            f"{queue.waiting} requests wait, the queue holds {limits.requests}",
            max(wait_s, _LEAST_RETRY_S),
            limit=str(limits.requests),
        )
    if queue.waiting and queue.size_bytes + item.size_bytes > limits.size_bytes:
        raise QueueFull(
            f"{queue.size_bytes} bytes wait and the request has {item.size_bytes}, the queue holds {limits.size_bytes}",
            max(wait_s, _LEAST_RETRY_S),
            limit_bytes=str(limits.size_bytes),
        )
