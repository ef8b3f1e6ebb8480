"""Admission: a request that would miss its deadline in the queue is refused at once, before it costs anything.

A bounded queue alone is no load shedding: under ten times the load it serves requests whose callers are gone. What is
compared with the deadline is the time of the batches at the worker, of the full ones that wait before it, and of its own;
sheddable requests may use 60 % of their deadline for it, ordinary ones 90 %, critical ones all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from services.common.criticality import Criticality
from services.inference.domain.batch_time import BatchTime
from services.inference.domain.batching import BatchQueue
from services.inference.domain.failure import DeadlinePassed, QueueFull
from services.inference.domain.item import Item

LEAST_RETRY_S: Final = 0.001
_LEAST_SHARE: Final = 0.05
_WEIGHT_OF_NEW: Final = 0.05
# Only what is critical may count on every millisecond: nothing is put before it.
_SHARE_OF_DEADLINE: Final = 0.9
# How much longer than reckoned the wait behind others may become for what is not critical, since more critical requests
# come in bursts. Whoever is let in on a wait that just suffices is displaced after having waited, and hears late that he is
# refused; at twice the capacity that befell up to 7 % of the refused, now less than 1 % (ADR 0011).
_CAUTION: Final = 2.0
# More full batches than a request can be reckoned to wait for, for each that is before it: caution, the least share that
# the more critical leave, and its own.
_AMPLE: Final = _CAUTION / _LEAST_SHARE + 1.0


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
    full_s: float = 0.0
    """Seconds of a full batch."""
    shares: dict[Criticality, float] = field(default_factory=lambda: dict.fromkeys(Criticality, 0.0))
    """How much of each full batch went to a criticality lately: what a batch leaves empty is nobody's."""
    taken: dict[Criticality, float] = field(default_factory=lambda: dict.fromkeys(Criticality, 0.0))
    """How much of it went to those that are more critical."""

    def wait_s(self, rows_before: int, criticality: Criticality = Criticality.DEFAULT) -> float:
        """Return how long a request waits until its batch starts, behind so many rows."""
        return self.out_wait_s() + self.behind_s(rows_before, criticality)

    def out_wait_s(self) -> float:
        """Return the part of the wait that is due to the batches at the workers."""
        return max(0.0, self.out_s - self.done_s) / self.instances

    def behind_s(self, rows_before: int, criticality: Criticality) -> float:
        """Return the part of the wait that is due to so many rows that wait too.

        More critical requests that come meanwhile go before it: they take what they took lately.
        """
        full, started = divmod(rows_before, self.max_rows)
        batches = float(full)
        if criticality is not Criticality.CRITICAL:
            # Its own batch fills up with them too before it leaves.
            own = started / self.max_rows
            batches = (full + own) / max(_LEAST_SHARE, 1.0 - self.taken[criticality]) - own
        return batches * self.times.seconds(self.max_rows) / self.instances if batches else 0.0

    def ran(self, rows: Mapping[Criticality, int]) -> None:
        """Take the members of one batch into account."""
        taken = 0.0
        for level in self.shares:
            self.taken[level] = taken
            self.shares[level] += _WEIGHT_OF_NEW * (rows.get(level, 0) / self.max_rows - self.shares[level])
            taken += self.shares[level]

    def own_s(self, rows_before: int, rows: int) -> float:
        """Return the time of its own batch: with those before it that fill no other."""
        return self.times.seconds(min(self.max_rows, rows_before % self.max_rows + rows))


def admit(item: Item, queue: BatchQueue, limits: QueueLimits, pace: Pace, now: float) -> list[Item]:
    """Let the request in, or raise `QueueFull` with when to come back, or `DeadlinePassed`.

    Returns what had to leave the queue to make room: less critical requests, which are to be refused at once.
    While nothing waits and nothing runs every request is let in: refusing would leave outdated times in force for ever,
    since only batches that run correct them.
    """
    remaining_s = item.deadline - now
    if remaining_s <= 0:
        raise DeadlinePassed("before the request was queued")
    if not queue.waiting and not pace.out_s:
        return []
    if _SHARE_OF_DEADLINE * remaining_s > pace.out_s + _AMPLE * pace.full_s * (1.0 + queue.rows / pace.max_rows):
        # Nearly every request has far more time than it needs, by whichever reckoning.
        return _make_room(item, queue, limits, pace)
    rows_before = queue.rows_before(item.criticality)
    behind_s = pace.behind_s(rows_before, item.criticality)
    wait_s = pace.out_wait_s() + behind_s
    own_s = pace.own_s(rows_before, item.rows)
    needed_s, most_s = wait_s + own_s, remaining_s
    if item.criticality is not Criticality.CRITICAL:
        needed_s += (_CAUTION - 1.0) * behind_s
        most_s *= _SHARE_OF_DEADLINE
    if needed_s > most_s:
        text, wait_ms, remaining_ms = _refusal(_about_ms(wait_s), _about_ms(own_s), _about_ms(remaining_s))
        raise QueueFull(text, max(float(wait_ms) / 1000, LEAST_RETRY_S), wait_ms=wait_ms, remaining_ms=remaining_ms)
    return _make_room(item, queue, limits, pace)


def _about_ms(seconds: float) -> float:
    """Return milliseconds with two digits that count, so that those who wait about as long are told the same."""
    ms = seconds * 1000
    if ms < 10:
        return round(ms, 1)
    return int(ms + 0.5) if ms < 100 else int(ms / 10 + 0.5) * 10


@lru_cache(maxsize=256)
def _refusal(wait_ms: float, own_ms: float, remaining_ms: float) -> tuple[str, str, str]:
    """Return what a refused request is told, and the wait and the time left as text."""
    text = f"the wait of about {wait_ms} ms and {own_ms} ms in the model would miss the deadline"
    return f"{text}, about {remaining_ms} ms are left", str(wait_ms), str(remaining_ms)


def _make_room(item: Item, queue: BatchQueue, limits: QueueLimits, pace: Pace) -> list[Item]:
    """Hold both caps exactly. One request alone is let in whatever its size: its message was not too large."""
    if not queue.waiting:
        return []
    most_rows = queue.policy.max_queue_rows or limits.rows
    most_bytes = queue.policy.max_queue_bytes or limits.size_bytes
    rows_over = queue.rows + item.rows - most_rows
    bytes_over = queue.size_bytes + item.size_bytes - most_bytes
    if rows_over <= 0 and bytes_over <= 0:
        return []
    displaced = queue.displace(item.criticality, rows_over, bytes_over)
    if displaced:
        return displaced
    wait_s = pace.wait_s(queue.rows_before(item.criticality), item.criticality)
    if rows_over > 0:
        raise QueueFull(
            f"{queue.rows} rows wait and the request has {item.rows}, the queue holds {most_rows}",
            max(wait_s, LEAST_RETRY_S),
            limit_rows=str(most_rows),
        )
    raise QueueFull(
        f"{queue.size_bytes} bytes wait and the request has {item.size_bytes}, the queue holds {most_bytes}",
        max(wait_s, LEAST_RETRY_S),
        limit_bytes=str(most_bytes),
    )
