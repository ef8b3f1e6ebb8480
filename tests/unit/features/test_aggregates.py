"""What aggregates mean: windows, two clocks, duplicates, and sums that no order changes."""

import math
import random
from datetime import timedelta
from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.features.domain.aggregates import (
    AggregateValue,
    Event,
    check_aggregates,
    combine,
    compute_aggregate,
    events_in_time,
    exact_mean,
    exact_parts,
    exact_sum,
)
from services.features.domain.definitions import (
    Aggregate,
    AggregateFunction,
    AggregateSource,
    EventField,
    Feature,
    FeatureType,
    FeatureView,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def event(event_id: str, time: int, known_at: int | None = None, **values: float | str | None) -> Event:
    return Event(event_id, time, time if known_at is None else known_at, values)


def aggregate(function: AggregateFunction, field: str = "x", window: int = 10, last: int = 0) -> Aggregate:
    return Aggregate(
        feature="f", function=function, field=field, window=timedelta(microseconds=window), last_count=last
    )


COUNT = aggregate(AggregateFunction.COUNT, "")


def test_a_window_leaves_its_start_out_and_takes_its_end_in() -> None:
    events = [event("at start", 90), event("after start", 91), event("at end", 100), event("after end", 101)]
    assert compute_aggregate(COUNT, events, 100) == AggregateValue(2, 100, 100)


def test_what_is_known_later_does_not_count_unless_the_second_clock_is_left_out() -> None:
    events = [event("a", 95), event("b", 96, known_at=101)]
    assert compute_aggregate(COUNT, events, 100) == AggregateValue(1, 95, 95)
    assert compute_aggregate(COUNT, events, 100, obey_known_at=False) == AggregateValue(2, 96, 101)


def test_late_events_never_count_and_the_first_taken_of_an_id_does() -> None:
    events = [event("a", 95, known_at=98, x=1.0), event("a", 96, known_at=96, x=2.0), event("late", 96, known_at=100)]
    assert events_in_time(events, 3) == [events[0]]
    assert events_in_time(events, 2) == [events[1]], "a late event does not stand in the way of one that is not"


def test_nothing_in_the_window_is_zero_for_count_and_sum_and_missing_for_the_others() -> None:
    results = {f.name: compute_aggregate(aggregate(f, last=3), [], 100).value for f in AggregateFunction}
    assert results == {"COUNT": 0, "SUM": 0, "MEAN": None, "MINIMUM": None, "MAXIMUM": None, "LAST_N": None}


def test_an_event_without_the_field_counts_as_an_event_only() -> None:
    events = [event("a", 95, x=4.0), event("b", 99, x=None), event("c", 98)]
    assert compute_aggregate(COUNT, events, 100) == AggregateValue(3, 99, 99)
    assert compute_aggregate(aggregate(AggregateFunction.MEAN), events, 100) == AggregateValue(4.0, 95, 95)


def test_the_last_values_come_newest_first_by_both_clocks() -> None:
    events = [event("a", 95, 97, x="old"), event("b", 95, 99, x="corrected"), event("c", 94, 94, x="oldest")]
    last = compute_aggregate(aggregate(AggregateFunction.LAST_N, last=2), events, 100)
    assert last == AggregateValue(("corrected", "old"), 95, 99)


def test_whole_numbers_are_added_as_such_and_a_sum_that_does_not_fit_is_none() -> None:
    assert exact_sum([2**62, 1, 2**62 - 2]) == 2**63 - 1
    assert exact_sum([2**62, 2**62]) is None
    assert exact_mean([2**62, 2**62]) == 2.0**62
    assert exact_sum([1.7e308, 1.7e308]) is None


@settings(max_examples=200)
@given(st.lists(FINITE, min_size=1, max_size=30), st.randoms(use_true_random=False))
@example([1.7e308, 1.7e308, -1.7e308], None)
@example([1e16, 1.0, -1e16, 1e-16], None)
def test_the_sum_of_numbers_is_the_true_sum_rounded_once_in_any_order_and_grouping(
    values: list[float], shuffler: random.Random | None
) -> None:
    true = sum(map(Fraction, values))
    try:
        want = float(true)
    except OverflowError:
        want = None
    if shuffler is not None:
        shuffler.shuffle(values)
    assert exact_sum(values) == want
    try:
        parts = exact_parts(values)
    except OverflowError:
        return
    assert sum(map(Fraction, parts)) == true
    assert combine(aggregate(AggregateFunction.SUM), len(values), parts or [0.0]) == want
    assert not any(math.isinf(part) for part in parts)


def test_aggregates_fields_and_features_must_fit_together() -> None:
    fields = (EventField("delay", FeatureType.DOUBLE), EventField("gate", FeatureType.STRING))
    day = timedelta(days=1)
    wanted = {
        "n": (FeatureType.INT64, False, AggregateFunction.COUNT, "delay"),
        "mean": (FeatureType.INT64, False, AggregateFunction.MEAN, "delay"),
        "most": (FeatureType.STRING, False, AggregateFunction.MAXIMUM, "gate"),
        "last": (FeatureType.STRING, False, AggregateFunction.LAST_N, "gate"),
        "sum": (FeatureType.DOUBLE, False, AggregateFunction.SUM, "nothing"),
        "fine": (FeatureType.DOUBLE, False, AggregateFunction.SUM, "delay"),
    }
    view = FeatureView(
        id="v",
        entities=("carrier",),
        features=(
            *(Feature(name=name, type=kind, is_list=lists) for name, (kind, lists, _, _) in wanted.items()),
            Feature(name="alone", type=FeatureType.INT64),
        ),
        source=AggregateSource(
            fields,
            (
                *tuple(Aggregate(feature=n, function=f, field=x, window=day) for n, (_, _, f, x) in wanted.items()),
                Aggregate(feature="other", function=AggregateFunction.COUNT, window=day),
            ),
        ),
    )
    assert {wrong.field: wrong.description for wrong in check_aggregates(view)} == {
        "aggregate_source.aggregates": 'want one for "alone", got none',
        'aggregate_source.aggregates["n"].field': 'want none for COUNT, got "delay"',
        'aggregate_source.aggregates["mean"].feature': "want type DOUBLE for MEAN, got INT64",
        'aggregate_source.aggregates["most"].field': "want a field whose type MAXIMUM can use, got STRING",
        'aggregate_source.aggregates["last"].feature': "want is_list for LAST_N only, got false",
        'aggregate_source.aggregates["sum"].field': 'want the name of a field, got "nothing"',
        'aggregate_source.aggregates["other"].feature': 'want the name of a feature, got "other"',
    }
