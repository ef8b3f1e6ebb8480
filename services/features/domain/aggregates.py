"""What an aggregate of events is as of a time: the one meaning that online reads, offline joins and tests share.

As of T an event counts if it happened in (T - window, T], was known by T, and did not come late: the events whose
known_at - event_time is over the view's allowed lateness are history only. Of events with one event_id the first taken
counts. The order in which events come changes nothing else.

Sums are exact: whole numbers (and truth values, as 0 and 1) are added as integers, numbers by `math.fsum`, which rounds
the true sum once (Shewchuk 1997, Adaptive Precision Floating-Point Arithmetic). So every order, and every grouping by
`exact_parts`, gives the same bits.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from hashlib import sha256
from typing import Final

EventScalar = float | int | str | bool
AggregateResult = EventScalar | Sequence[EventScalar] | None

MAX_WINDOW_US: Final = 400 * 86_400_000_000
MAX_LAST_COUNT: Final = 1_000
INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)
ID_BYTES: Final = 16


class AggregateFunction(Enum):
    """What is computed from the events of a window."""

    COUNT = "COUNT"
    SUM = "SUM"
    MEAN = "MEAN"
    MINIMUM = "MINIMUM"
    MAXIMUM = "MAXIMUM"
    LAST_N = "LAST_N"


@dataclass(frozen=True, slots=True)
class Aggregate:
    """How one feature is computed; `field` is empty for COUNT, `last_count` is for LAST_N only."""

    feature: str
    function: AggregateFunction
    field: str
    window_us: int
    last_count: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One event; times in microseconds since 1970-01-01 UTC. A field that is absent or None does not count."""

    event_id: str
    event_time_us: int
    known_at_us: int
    values: Mapping[str, EventScalar | None]


@dataclass(frozen=True, slots=True)
class AggregateValue:
    """The value, None if there is none, and both times of the newest event in it; 0 where no event is in it.

    COUNT and SUM of nothing are 0 and present; MEAN, MINIMUM, MAXIMUM and LAST_N of nothing are missing. A sum that
    does not fit its type is None.
    """

    value: AggregateResult
    event_time_us: int = 0
    known_at_us: int = 0


def event_digest(event_id: str) -> bytes:
    """Return what stands for the id in the online store, and decides between events of equal times: 16 bytes.

    They are the first 16 of SHA-256 of the id as UTF-8, so an SQL engine can order by `sha256(event_id)`.
    """
    return sha256(event_id.encode()).digest()[:ID_BYTES]


def is_late(event_time_us: int, known_at_us: int, allowed_lateness_us: int) -> bool:
    """Return whether an event became known too late to count in any window."""
    return known_at_us - event_time_us > allowed_lateness_us


def events_in_time(events: Iterable[Event], allowed_lateness_us: int) -> list[Event]:
    """Return what may count in windows, from events in the order in which they were taken: once each, none late."""
    first: dict[str, Event] = {}
    for event in events:
        if not is_late(event.event_time_us, event.known_at_us, allowed_lateness_us):
            first.setdefault(event.event_id, event)
    return list(first.values())


def compute_aggregate(
    aggregate: Aggregate, events: Iterable[Event], as_of_us: int, *, obey_known_at: bool = True
) -> AggregateValue:
    """Return the aggregate as of a time from what `events_in_time` gave, in any order.

    `obey_known_at` False leaves the second clock out: it then counts what was learned after `as_of_us` too.
    """
    counted = [event for event in events if _counts(event, aggregate, as_of_us, obey_known_at=obey_known_at)]
    counted.sort(key=_newest_last)
    values = [event.values[aggregate.field] for event in counted] if aggregate.field else []
    value = combine(aggregate, len(counted), [value for value in values if value is not None])
    if not counted:
        return AggregateValue(value)
    return AggregateValue(value, counted[-1].event_time_us, counted[-1].known_at_us)


def combine(aggregate: Aggregate, count: int, values: Sequence[EventScalar]) -> AggregateResult:
    """Return the value from the events that count: how many there are, and their values, the oldest first."""
    match aggregate.function:
        case AggregateFunction.COUNT:
            return count
        case AggregateFunction.SUM:
            return exact_sum(values)
        case AggregateFunction.MEAN:
            return exact_mean(values)
        case AggregateFunction.LAST_N:
            return list(values[: -aggregate.last_count - 1 : -1]) or None
    if not values:
        return None
    extreme = min(values) if aggregate.function is AggregateFunction.MINIMUM else max(values)  # type: ignore[type-var]
    return extreme + 0.0 if isinstance(extreme, float) else extreme


def exact_sum(values: Sequence[EventScalar]) -> float | int | None:
    """Return the sum, rounded once; None if it does not fit into INT64 or DOUBLE."""
    if any(isinstance(value, float) for value in values):
        return _float_sum(values)
    total = sum(values)  # type: ignore[arg-type]
    return total if INT64_MIN <= total <= INT64_MAX else None


def exact_mean(values: Sequence[EventScalar]) -> float | None:
    """Return the sum over the number of values, each rounded once; None without values or if the sum does not fit."""
    if not values:
        return None
    if any(isinstance(value, float) for value in values):
        total = _float_sum(values)
        return None if total is None else total / len(values)
    return sum(values) / len(values)  # type: ignore[arg-type]


def exact_parts(values: Sequence[float]) -> list[float]:
    """Return few numbers whose true sum is that of the values: what stands for a group of values in a later sum.

    Raises OverflowError if a sum on the way does not fit into DOUBLE.
    """
    parts: list[float] = []
    rest = list(values)
    while part := math.fsum(rest):
        parts.append(part)
        rest.append(-part)
    return parts


def _float_sum(values: Sequence[EventScalar]) -> float | None:
    try:
        return math.fsum(values) + 0.0  # type: ignore[arg-type]
    except OverflowError:
        # fsum gives up when a sum on the way overflows, which depends on the order; the true sum does not.
        with contextlib.suppress(OverflowError):
            return float(sum(map(Fraction, values)))  # type: ignore[arg-type]
        return None


def _counts(event: Event, aggregate: Aggregate, as_of_us: int, *, obey_known_at: bool) -> bool:
    if not as_of_us - aggregate.window_us < event.event_time_us <= as_of_us:
        return False
    if obey_known_at and event.known_at_us > as_of_us:
        return False
    return not aggregate.field or event.values.get(aggregate.field) is not None


def _newest_last(event: Event) -> tuple[int, int, bytes]:
    return event.event_time_us, event.known_at_us, event_digest(event.event_id)
