"""Counts stay right and bounded."""

import pytest

from services.monitor.domain.prediction_counts import OVERFLOW, Outcomes, PredictionCounts, VariantKey


def test_counts_add_up_per_variant_and_come_sorted() -> None:
    counts = PredictionCounts(limit=10)
    counts.add(VariantKey("b", "1", "x"), ok_count=2, error_count=1)
    counts.add(VariantKey("a", "2", ""), ok_count=1, error_count=0)
    counts.add(VariantKey("b", "1", "x"), ok_count=3, error_count=0)
    assert list(counts.of_model()) == [
        (VariantKey("a", "2", ""), Outcomes(1, 0)),
        (VariantKey("b", "1", "x"), Outcomes(5, 1)),
    ]
    assert [key.model for key, _ in counts.of_model("b")] == ["b"]
    assert list(counts.of_model("c")) == []


def test_keys_beyond_the_limit_share_one_count_and_known_ones_keep_theirs() -> None:
    counts = PredictionCounts(limit=3)
    for version in range(50):
        counts.add(VariantKey("m", str(version), "v"), ok_count=1, error_count=0)
    counts.add(VariantKey("m", "0", "v"), ok_count=10, error_count=0)
    found = dict(counts.of_model())
    assert found == {
        OVERFLOW: Outcomes(48, 0),
        VariantKey("m", "0", "v"): Outcomes(11, 0),
        VariantKey("m", "1", "v"): Outcomes(1, 0),
    }


def test_a_limit_of_one_counts_everything_together() -> None:
    counts = PredictionCounts(limit=1)
    counts.add(VariantKey("m", "1", ""), ok_count=1, error_count=0)
    counts.add(VariantKey("n", "1", ""), ok_count=0, error_count=2)
    assert list(counts.of_model()) == [(OVERFLOW, Outcomes(1, 2))]


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="want at least 1, got 0"):
        PredictionCounts(limit=0)
