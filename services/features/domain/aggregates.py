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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from hashlib import sha256
from typing import Final, TypeAlias

from services.common.errors import Violation, echo
from services.features.domain.definitions import (
    Aggregate,
    AggregateFunction,
    AggregateSource,
    Feature,
    FeatureType,
    FeatureView,
    Scalar,
    Value,
)

Number: TypeAlias = int | float

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)
ID_BYTES: Final = 16
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Event:
    """One event; times in microseconds since 1970-01-01 UTC. A field that is absent or None does not count."""

    event_id: str
    event_time_us: int
    known_at_us: int
    values: Mapping[str, Scalar | None]


@dataclass(frozen=True, slots=True)
class AggregateValue:
    """The value, None if there is none, and both times of the newest event in it; 0 where no event is in it.

    COUNT and SUM of nothing are 0 and present; MEAN, MINIMUM, MAXIMUM and LAST_N of nothing are missing. A sum that
    does not fit its type is None.
    """

    value: Value
    event_time_us: int = 0
    known_at_us: int = 0


def event_digest(event_id: str) -> bytes:
    """Return what stands for the id in the online store, and decides between events of equal times: 16 bytes.

    They are the first 16 of SHA-256 of the id as UTF-8, so an SQL engine can order by `sha256(event_id)`.
    """
    return sha256(event_id.encode()).digest()[:ID_BYTES]


def window_us(aggregate: Aggregate) -> int:
    """Return the length of the window in microseconds."""
    return aggregate.window // _MICROSECOND


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


def combine(aggregate: Aggregate, count: int, values: Sequence[Scalar]) -> Value:
    """Return the value from the events that count: how many there are, and their values, the oldest first."""
    match aggregate.function:
        case AggregateFunction.COUNT:
            return count
        case AggregateFunction.SUM:
            return exact_sum(values)
        case AggregateFunction.MEAN:
            return exact_mean(values)
        case AggregateFunction.LAST_N:
            return tuple(values[: -aggregate.last_count - 1 : -1]) or None
    if not values:
        return None
    extreme = min(values) if aggregate.function is AggregateFunction.MINIMUM else max(values)
    return extreme + 0.0 if isinstance(extreme, float) else extreme


def aggregate_type(aggregate: Aggregate, field_type: FeatureType | None) -> FeatureType | None:
    """Return the type of the values, or of the elements for LAST_N; None if the field's type does not allow it.

    COUNT is INT64 and MEAN DOUBLE; a SUM of BOOL is INT64 (how many are true), every other has its field's type.
    """
    match aggregate.function:
        case AggregateFunction.COUNT:
            return FeatureType.INT64
        case AggregateFunction.MEAN:
            return None if field_type is FeatureType.STRING else FeatureType.DOUBLE
        case AggregateFunction.SUM:
            return {FeatureType.BOOL: FeatureType.INT64, FeatureType.STRING: None}.get(field_type, field_type)  # type: ignore[arg-type]
        case AggregateFunction.LAST_N:
            return field_type
    return field_type if field_type in (FeatureType.INT64, FeatureType.DOUBLE) else None


def check_aggregates(view: FeatureView, path: str = "") -> Iterator[Violation]:
    """Yield where aggregates, fields and features of a view do not fit together; `path` stands before every field.

    Names, windows and counts by themselves are not looked at.
    """
    source = view.source
    if not isinstance(source, AggregateSource):
        return
    fields = {field.name: field.type for field in source.fields}
    aggregates = {aggregate.feature: aggregate for aggregate in source.aggregates}
    for feature in view.features:
        if feature.name not in aggregates:
            yield Violation(f"{path}aggregate_source.aggregates", f"want one for {echo(feature.name)}, got none")
    features = {feature.name: feature for feature in view.features}
    for name, aggregate in sorted(aggregates.items()):
        where = f"{path}aggregate_source.aggregates[{echo(name)}]"
        if name not in features:
            yield Violation(f"{where}.feature", f"want the name of a feature, got {echo(name)}")
        elif aggregate.function is not None:
            yield from _check_aggregate(aggregate, fields, features[name], where)


def _check_aggregate(
    aggregate: Aggregate, fields: Mapping[str, FeatureType | None], feature: Feature, where: str
) -> Iterator[Violation]:
    counts = aggregate.function is AggregateFunction.COUNT
    if counts and aggregate.field:
        yield Violation(f"{where}.field", f"want none for COUNT, got {echo(aggregate.field)}")
    elif not counts and aggregate.field not in fields:
        yield Violation(f"{where}.field", f"want the name of a field, got {echo(aggregate.field)}")
    else:
        field_type = fields.get(aggregate.field)
        want = aggregate_type(aggregate, field_type)
        function = aggregate.function.value if aggregate.function else ""
        if want is None and field_type is not None:
            yield Violation(f"{where}.field", f"want a field whose type {function} can use, got {field_type.value}")
        elif want is not None and feature.type is not None and feature.type is not want:
            yield Violation(f"{where}.feature", f"want type {want.value} for {function}, got {feature.type.value}")
    if feature.is_list is not (aggregate.function is AggregateFunction.LAST_N):
        yield Violation(f"{where}.feature", f"want is_list for LAST_N only, got {str(feature.is_list).lower()}")


def exact_total(values: Sequence[Scalar]) -> Number | None:
    """Return the true sum: a whole number as it is, of numbers rounded once; None if that does not fit into DOUBLE."""
    if float not in set(map(type, values)):
        return sum(values)  # type: ignore[arg-type]
    try:
        return math.fsum(values) + 0.0  # type: ignore[arg-type]
    except OverflowError:
        # fsum gives up when a sum on the way overflows, which depends on the order; the true sum does not.
        with contextlib.suppress(OverflowError):
            return float(sum(map(Fraction, values)))
        return None


def exact_sum(values: Sequence[Scalar]) -> Number | None:
    """Return the sum, rounded once; None if it does not fit into INT64 or DOUBLE."""
    return sum_of(exact_total(values))


def exact_mean(values: Sequence[Scalar]) -> float | None:
    """Return the sum over the number of values, each rounded once; None without values or if the sum does not fit."""
    return mean_of(exact_total(values), len(values))


def sum_of(total: Number | None) -> Number | None:
    """Return SUM from the true sum: None if it does not fit into INT64."""
    return None if isinstance(total, int) and not INT64_MIN <= total <= INT64_MAX else total


def mean_of(total: Number | None, count: int) -> float | None:
    """Return MEAN from the true sum and the number of values."""
    return None if total is None or not count else total / count


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


def _counts(event: Event, aggregate: Aggregate, as_of_us: int, *, obey_known_at: bool) -> bool:
    if not as_of_us - window_us(aggregate) < event.event_time_us <= as_of_us:
        return False
    if obey_known_at and event.known_at_us > as_of_us:
        return False
    return not aggregate.field or event.values.get(aggregate.field) is not None


def _newest_last(event: Event) -> tuple[int, int, bytes]:
    return event.event_time_us, event.known_at_us, event_digest(event.event_id)
