"""Quality with labels and without, fairness, data quality: equal to sklearn's and scipy's figures, intervals as stated."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from services.monitor.domain.data_quality import (
    DataQualityCheck,
    RateCheck,
    beta_binomial_tail,
    check_rates,
    check_volume,
    volume_finding,
)
from services.monitor.domain.estimate_check import hold_against_labels, known_coverage, widening
from services.monitor.domain.fairness import GroupCounts, measure_fairness
from services.monitor.domain.interval import Interval, difference_interval, mean_interval, rate_interval
from services.monitor.domain.label_free import (
    NotCalibrated,
    ScoreSketch,
    Stretch,
    check_calibration,
    estimate_quality,
)
from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.quality import (
    ClassificationQuality,
    EstimateBasis,
    QualityMetric,
    RegressionQuality,
    auc_difference,
)


def sample(
    seed: int, size: int = 2_000, shape: tuple[float, float] = (0.5, 4.0), drift: float = 0.0
) -> tuple[Any, Any]:
    """Probabilities and labels; the drift is that of the logit of what is true."""
    random = np.random.default_rng(seed)
    p = random.beta(*shape, size)
    return p, random.random(size) < p / (p + (1 - p) * np.exp(-drift))


def quality_of(p: Any, y: Any, **options: Any) -> ClassificationQuality:
    quality = ClassificationQuality()
    quality.update(p, y, **options)
    return quality


def area_of(quality: ClassificationQuality) -> Interval:
    area = quality.auc()
    assert area is not None
    return area


def scores_of(p: Any) -> ScoreSketch:
    scores = ScoreSketch()
    scores.update(p)
    return scores


def by_name(metrics: Iterable[QualityMetric]) -> dict[str, Interval]:
    return {metric.name: metric.value for metric in metrics}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_quality_equals_sklearn(seed: int) -> None:
    p, y = sample(seed)
    found = by_name(quality_of(p, y).metrics())
    predicted = p >= 0.5
    wanted = {
        "accuracy": sk.accuracy_score(y, predicted),
        "log_loss": sk.log_loss(y, p),
        "brier": sk.brier_score_loss(y, p),
        "precision": sk.precision_score(y, predicted),
        "recall": sk.recall_score(y, predicted),
    }
    for name, value in wanted.items():
        assert found[name].estimate == pytest.approx(value, abs=1e-9), name
        assert found[name].lower <= value <= found[name].upper
    # AUC comes from 2,048 bins.
    assert found["auc"].estimate == pytest.approx(sk.roc_auc_score(y, p), abs=1e-3)


def test_a_replaced_label_is_taken_out_again() -> None:
    p, y = sample(0)
    everything, replaced = quality_of(p, y), quality_of(p[:50], y[:50])
    everything.subtract(replaced)
    rest = quality_of(p[50:], y[50:])
    for name, value in by_name(rest.metrics()).items():
        assert by_name(everything.metrics())[name].estimate == pytest.approx(value.estimate, abs=1e-9)
    everything.merge(replaced)
    assert everything.positives.tolist() == quality_of(p, y).positives.tolist()


def test_quality_survives_its_encoding() -> None:
    quality = quality_of(*sample(1))
    copy = ClassificationQuality.from_bytes(quality.to_bytes())
    assert by_name(copy.metrics()) == by_name(quality.metrics())
    regression = RegressionQuality()
    regression.update([1.0, 2.0], [1.5, 1.0])
    assert RegressionQuality.from_bytes(regression.to_bytes()).metrics() == regression.metrics()
    scores = scores_of(sample(1)[0])
    assert ScoreSketch.from_bytes(scores.to_bytes()).to_bytes() == scores.to_bytes()


@pytest.mark.parametrize("kind", [ClassificationQuality, RegressionQuality, ScoreSketch])
@pytest.mark.parametrize(
    "data", [b"", b"none", b"ILQ1", b"ILR1\0", b"ILS1" + bytes(8), b"ILQ1" + bytes(88) + b"\x09\0\0\0"]
)
def test_bytes_that_are_no_quality_are_refused(
    kind: type[ClassificationQuality | RegressionQuality | ScoreSketch], data: bytes
) -> None:
    with pytest.raises(SketchUnreadable):
        kind.from_bytes(data)


def test_weights_count_as_that_many_labels_but_tell_no_more() -> None:
    p, y = sample(2)
    weighted, plain = quality_of(p, y, weights=np.full(p.size, 3.0)), quality_of(p, y)
    assert weighted.labelled_weight == 3 * plain.labelled_weight
    for name, value in by_name(plain.metrics()).items():
        if name != "expected_calibration_error":
            assert by_name(weighted.metrics())[name].lower == pytest.approx(value.lower, abs=1e-6), name


def test_more_than_two_classes_bring_their_own_accuracy_and_log_loss() -> None:
    p = np.array([0.2, 0.7])
    found = by_name(quality_of(p, [False, True], is_correct=[True, True], label_probabilities=[0.5, 0.7]).metrics())
    assert found["accuracy"].estimate == 1
    assert found["log_loss"].estimate == pytest.approx(-(np.log(0.5) + np.log(0.7)) / 2)


def test_the_auc_interval_of_a_rare_class_covers() -> None:
    # 20 positives among 1,000; scores of two normal distributions, whose AUC is known.
    random, truth, covered = np.random.default_rng(0), stats.norm.cdf(1.5 / np.sqrt(2)), 0
    for _ in range(200):
        scores = np.concatenate([random.normal(1.5, 1, 20), random.normal(0, 1, 980)])
        area = area_of(quality_of(stats.norm.cdf(scores / 2), np.arange(1_000) < 20))
        covered += area.lower <= truth <= area.upper
    # 95 % of 200, give or take three standard deviations.
    assert 181 <= covered <= 199


def test_one_class_has_no_auc_and_a_perfect_one_no_certainty() -> None:
    assert quality_of([0.1, 0.2], [False, False]).auc() is None
    perfect = area_of(quality_of(np.linspace(0, 1, 100), np.arange(100) >= 95))
    assert perfect.estimate == pytest.approx(1.0)
    assert 0.4 < perfect.lower < 0.7
    assert ClassificationQuality().metrics() == []


def test_arms_that_differ_are_told_apart() -> None:
    p, y = sample(3, 4_000)
    blurred = np.clip(p + np.random.default_rng(0).normal(0, 0.2, p.size), 0, 1)
    difference = auc_difference(quality_of(p, y), quality_of(blurred, y))
    assert difference is not None
    wanted = sk.roc_auc_score(y, p) - sk.roc_auc_score(y, blurred)
    assert difference.estimate == pytest.approx(wanted, abs=2e-3)
    assert 0 < difference.lower < wanted < difference.upper
    same = auc_difference(quality_of(p, y), quality_of(*sample(4, 4_000)))
    assert same is not None
    assert same.lower < 0 < same.upper


def test_a_calibration_curve_covers_all_probabilities_and_its_error_is_right() -> None:
    p, y = sample(5, 20_000)
    quality = quality_of(p, y)
    curve = quality.calibration_curve()
    assert [curve[0].lower, curve[-1].upper, len(curve)] == [0, 1, 10]
    assert all(before.upper == after.lower for before, after in pairwise(curve))
    assert sum(item.observed_rate.sample_count for item in curve) == p.size
    assert quality.calibration_error().lower < 0.005
    off = quality_of(np.sqrt(p), y).calibration_error()
    assert off.lower > 0.1
    assert off.estimate == pytest.approx(np.sqrt(p).mean() - p.mean(), abs=0.01)


def test_regression_equals_the_definition_and_numpy() -> None:
    random = np.random.default_rng(0)
    labels, errors = random.normal(size=500), random.laplace(size=500)
    quality = RegressionQuality()
    quality.update(labels[:300] + errors[:300], labels[:300])
    rest = RegressionQuality()
    rest.update(labels[300:] + errors[300:], labels[300:])
    quality.merge(rest)
    found = by_name(quality.metrics())
    assert found["mean_absolute_error"].estimate == pytest.approx(np.abs(errors).mean())
    assert found["root_mean_squared_error"].estimate == pytest.approx(np.sqrt((errors**2).mean()))
    assert found["root_mean_squared_error"].lower < np.sqrt(2) < found["root_mean_squared_error"].upper
    quality.subtract(rest)
    assert quality.metrics()[0].value.estimate == pytest.approx(np.abs(errors[:300]).mean())


def test_the_label_free_estimate_covers_as_often_as_stated() -> None:
    calibration = check_calibration(
        [Stretch(10 - at, quality_of(*sample(100 + at, 1_000, (1, 3)))) for at in range(10)]
    )
    covered: dict[str, int] = {}
    for seed in range(30):
        # Another mix of cases than in the reference: covariate shift.
        p, y = sample(seed, 1_000, (1.5, 2.5))
        truth, estimate = by_name(quality_of(p, y).metrics()), by_name(estimate_quality(scores_of(p), calibration))
        for name, interval in estimate.items():
            covered[name] = covered.get(name, 0) + (interval.lower <= truth[name].estimate <= interval.upper)
    assert set(covered) == {"accuracy", "auc", "brier", "precision", "recall"}
    # 95 % of 30 is 28.5; below 25 would come once in 600 tries.
    assert min(covered.values()) >= 25, covered


@given(
    inside=st.lists(st.floats(-1, 0), min_size=1, max_size=40),
    size=st.floats(1e-3, 1),
    shares=st.lists(st.floats(0.3, 1), min_size=40, max_size=120),
    lag=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_whatever_drifts_intervals_miss_as_seldom_as_stated_in_the_long_run(
    inside: list[float], size: float, shares: list[float], lag: int
) -> None:
    outside = [*inside, size, *(size * share for share in shares)]
    missed, count = 0, len(outside)
    fits: list[bool] = []
    for now in range(count):
        known = [(now - at, miss) for at, miss in enumerate(outside[: max(now - lag + 1, 0)])]
        width, held = widening(known, lag)
        assert held == sum(fits[: len(known)]), "what is said to have been held is what was"
        assert width == 0 or now > len(inside), "nothing had drifted yet"
        fits.append(outside[now] <= width)
        missed += outside[now] > width
    assert missed <= 0.05 * count + 3 + lag


@pytest.mark.parametrize(("checked", "lag", "lower"), [(10, 1, 0.72), (10, 3, 0.46), (40, 1, 0.91), (1, 1, 0.2)])
def test_few_or_late_labels_tell_little_of_the_coverage(checked: int, lag: int, lower: float) -> None:
    known = known_coverage(checked, checked, lag)
    assert (known.estimate, known.sample_count) == (1.0, checked)
    assert known.lower == pytest.approx(lower, abs=0.01)
    assert known.upper == 1.0


def test_an_estimate_is_held_against_the_labels_of_the_stretches_before() -> None:
    windows = [sample(seed, 1_000, drift=0.8 if seed >= 22 else 0.0) for seed in range(24)]
    stretches = [Stretch(24 - at, quality_of(p, y), scores_of(p)) for at, (p, y) in enumerate(windows)]
    p, y = sample(99, 1_000, drift=0.8)
    estimates = estimate_quality(scores_of(p), check_calibration(stretches))
    found = hold_against_labels(estimates, stretches)
    real, before, after = (by_name(metrics)["accuracy"] for metrics in (quality_of(p, y).metrics(), estimates, found))
    unaware = by_name(estimate_quality(scores_of(p), check_calibration(stretches[:22])))["accuracy"]
    assert not unaware.lower <= real.estimate <= unaware.upper, "no label had told of the drift"
    assert abs(before.estimate - real.estimate) < abs(unaware.estimate - real.estimate) / 2, "the last two have"
    assert after.lower <= real.estimate <= after.upper
    assert after.estimate == before.estimate
    assert {metric.checked_count for metric in found} == {23}, "the first has nothing before it to be estimated from"
    assert next(metric.held_count for metric in found if metric.name == "accuracy") < 23, (
        "none knew of the drift at once"
    )
    for metric in found:
        assert metric.coverage is not None
        assert metric.coverage.estimate == pytest.approx(metric.held_count / 23)
        assert metric.coverage.sample_count == 23
    assert all(metric.coverage is None for metric in estimates)
    half_labelled = [Stretch(one.ago, quality_of(p[:800], y[:800]), one.scores) for one in stretches]
    assert hold_against_labels(estimates, half_labelled) == estimates


def test_no_level_is_stated_where_inputs_drifted_as_in_no_stretch_with_labels() -> None:
    def stretch(ago: int, seed: int, *drifted: str) -> Stretch:
        p, y = sample(seed, 2_000, (1, 3), drift=-0.4 if drifted else 0.0)
        return Stretch(ago, quality_of(p, y), scores_of(p), frozenset(drifted))

    def estimated(stretches: list[Stretch], now: Stretch) -> list[QualityMetric]:
        calibration = check_calibration(stretches, now.drifted)
        return hold_against_labels(estimate_quality(now.scores, calibration), stretches)

    before = [stretch(9 - at, at) for at in range(9)]
    now = stretch(0, 99, "age", "state")
    for metric in estimated(before, now):
        assert (metric.value.level, metric.basis, metric.unsupported_inputs) == (
            0.0,
            EstimateBasis.DRIFTED_INPUTS,
            ("age", "state"),
        )
        assert metric.coverage is None, "nothing is known of what such intervals hold"
    alike = [*before[2:], stretch(2, 50, "age"), stretch(1, 51, "age", "state")]
    assert estimated(alike[:-1], now)[0].unsupported_inputs == ("state",)
    real = by_name(now.quality.metrics())
    for metric in estimated(alike, now):
        assert (metric.value.level, metric.basis) == (0.95, EstimateBasis.LABELS)
        assert metric.value.lower <= real[metric.name].estimate <= metric.value.upper
    assert not [m for m in estimated(alike, stretch(0, 98)) if m.value.level == 0], "as before the drift"
    drifted_only = [stretch(3 - at, at, "age") for at in range(3)]
    assert estimated(drifted_only, stretch(0, 98))[0].unsupported_inputs == ("age",), "it had always drifted"


@pytest.mark.parametrize("p", [[0.0], [1.0], [1e-9, 1e-9], [0.3, 0.9]])
def test_a_handful_of_predictions_has_an_estimate_too(p: list[float]) -> None:
    found = by_name(estimate_quality(scores_of(p), check_calibration([Stretch(1, quality_of(*sample(0)))])))
    assert "accuracy" in found
    assert all(0 <= value.lower <= value.estimate <= value.upper <= 1 for value in found.values())


def test_a_classifier_that_is_not_calibrated_is_refused() -> None:
    p, y = sample(0, 4_000)
    with pytest.raises(NotCalibrated, match="calibration error"):
        check_calibration([Stretch(1, quality_of(p**0.4, y))])
    with pytest.raises(NotCalibrated, match="labelled predictions"):
        check_calibration([Stretch(1, quality_of(p[:100], y[:100]))])
    assert estimate_quality(ScoreSketch(), check_calibration([Stretch(1, quality_of(p, y))])) == []


def test_a_rates_interval_is_wilsons() -> None:
    wanted = stats.binomtest(7, 40).proportion_ci(method="wilson")
    found = rate_interval(7, 40)
    assert (found.lower, found.upper) == pytest.approx((wanted.low, wanted.high))
    assert (rate_interval(0, 0).lower, rate_interval(0, 0).upper) == (0, 1)
    wanted = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval()
    assert mean_interval(7 / 3, float(np.var([1, 2, 4], ddof=1)), 3).lower == pytest.approx(wanted.low)


def test_a_difference_of_rates_is_newcombes() -> None:
    # Newcombe (1998), table II, method 10: 56/70 - 48/80 is 0.0524 to 0.3339.
    found = difference_interval(rate_interval(56, 70), rate_interval(48, 80))
    assert (found.lower, found.upper) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_groups_are_compared_with_the_reference() -> None:
    groups = {
        "a": GroupCounts(1_000, 300, 200, 100, 500, 200),
        "b": GroupCounts(400, 40, 20, 20, 260, 100),
        "tiny": GroupCounts(30, 30, 30),
    }
    first, second, third = measure_fairness(groups)
    assert (first.group, first.is_reference, first.gaps) == ("a", True, {})
    assert second.gaps["demographic_parity"].estimate == pytest.approx(-0.2)
    assert second.gaps["demographic_parity"].upper < 0
    assert second.gaps["equal_opportunity"].estimate == pytest.approx(20 / 120 - 200 / 400)
    assert second.gaps["predictive_parity"].estimate == pytest.approx(20 / 40 - 200 / 300)
    assert second.gaps["false_positive_rate"].estimate == pytest.approx(20 / 280 - 100 / 600)
    assert (third.is_judged, third.gaps) == (False, {})
    assert measure_fairness(groups, "b")[0].group == "b"
    assert not any(group.is_judged for group in measure_fairness(groups, "unknown"))
    assert measure_fairness({}) == []
    assert groups["a"] + groups["b"] - groups["b"] == groups["a"]


def test_more_nulls_than_usual_are_found_and_the_usual_ones_are_not() -> None:
    nulls, category = DataQualityCheck.NULLS, DataQualityCheck.NEW_CATEGORY
    checks = [
        RateCheck("worse", nulls, 80, 1_000, 20, 10_000),
        RateCheck("usual", nulls, 25, 1_000, 250, 10_000),
        # Significant with so many, but a quarter of a percent is nothing.
        RateCheck("small", nulls, 3_500, 1_000_000, 1_000, 1_000_000),
        # One of ten.
        RateCheck("few", nulls, 1, 10, 250, 10_000),
        # It comes and goes between windows.
        RateCheck("bursts", nulls, 200, 1_000, 500, 10_000, past=[(0, 1_000), (300, 1_000), (0, 1_000), (180, 1_000)]),
        RateCheck("new", category, 30, 1_000, 0, 10_000, examples=("XNA",)),
        RateCheck("type", DataQualityCheck.TYPE, 20, 1_000),
        RateCheck("none", nulls, 0, 0),
    ]
    found = check_rates(checks)
    assert [(item.feature, item.check) for item in found] == [
        ("worse", nulls),
        ("new", category),
        ("type", DataQualityCheck.TYPE),
    ]
    assert found[1].examples == ("XNA",)
    assert found[0].share == 0.08


@given(total=st.integers(1, 3_000), share=st.floats(0, 1), wrong=st.floats(0.5, 2_000), right=st.floats(0.5, 100_000))
@settings(max_examples=50, deadline=None)
def test_the_beta_binomial_tail_is_scipys(total: int, share: float, wrong: float, right: float) -> None:
    count = round(share * total)
    expected = stats.betabinom.sf(count - 1, total, wrong, right)
    assert beta_binomial_tail(count, total, wrong, right) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_usual_rates_give_few_findings() -> None:
    random = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        baseline, now = random.binomial(5_000, 0.05), random.binomial(60, 0.05)
        found += len(check_rates([RateCheck("x", DataQualityCheck.NULLS, now, 60, baseline, 5_000)]))
    assert found <= 8


def test_a_volume_is_held_against_the_same_hours() -> None:
    past = [1_000, 1_150, 900, 1_050, 980]
    usual = check_volume(1_100, past)
    assert not usual.is_unusual
    assert usual.expected is not None
    assert usual.expected.lower < 1_000 < usual.expected.upper
    assert volume_finding(1_100, usual) is None
    for count in (0, 100, 5_000):
        finding = volume_finding(count, check_volume(count, past))
        assert finding is not None
        assert finding.check is DataQualityCheck.VOLUME
        assert finding.count == count
    assert check_volume(0, [1_000, 1_000]).expected is None
    # Exactly the same every week, and a little more now: no finding.
    assert not check_volume(1_020, [1_000] * 5).is_unusual
