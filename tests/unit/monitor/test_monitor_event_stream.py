"""A stream knows what was lost on the way."""

import pytest

from services.monitor.domain.event_stream import EventStream, SequenceBroken, StreamTotals


def test_gaps_are_counted_from_the_first_number_on() -> None:
    totals = StreamTotals()
    stream = EventStream(totals)
    for sequence in (2, 3, 7):
        stream.take(sequence, prediction_count=10, dropped_count=1)
    assert totals == StreamTotals(batch_count=3, prediction_count=30, dropped_count=3, missing_batch_count=4)
    assert stream.prediction_count == 30


@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_number_that_does_not_rise_is_refused_and_counts_nothing(again: int) -> None:
    totals = StreamTotals()
    stream = EventStream(totals)
    stream.take(2, prediction_count=1, dropped_count=0)
    with pytest.raises(SequenceBroken, match=f"want more than 2, got {again}"):
        stream.take(again, prediction_count=1, dropped_count=5)
    assert (totals.prediction_count, totals.dropped_count, totals.missing_batch_count) == (1, 0, 1)


def test_streams_share_totals_and_count_their_own() -> None:
    totals = StreamTotals()
    first, second = EventStream(totals), EventStream(totals)
    first.take(1, prediction_count=3, dropped_count=0)
    second.take(1, prediction_count=4, dropped_count=0)
    assert (first.prediction_count, second.prediction_count, totals.prediction_count) == (3, 4, 7)
