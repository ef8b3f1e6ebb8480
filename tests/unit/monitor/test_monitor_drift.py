"""Drift statistics equal scipy's, and alarm neither because n is large nor because it is small."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.drift import (
    DriftStatistic,
    FeatureComparison,
    FeatureDrift,
    benjamini_hochberg,
    measure_drift,
)
from services.monitor.domain.drift_metric import (
    DriftMetric,
    compare_samples,
    count_in_edges,
    error_of_bins,
    measure_bins,
)
from services.monitor.domain.drift_null import DAY_S, NullSource, Window, model_null
from services.monitor.domain.null_distribution import fit_same_hours
from services.monitor.domain.numeric_sketch import NumericSketch
from services.monitor.domain.profile import CategoricalProfile, Histogram, NumericProfile, profile_numbers

HOUR_S = 3_600.0


def histogram(profile: NumericProfile, values: npt.ArrayLike) -> Histogram:
    sketch = NumericSketch(profile.edges)
    sketch.update(values)
    return sketch.histogram()


def verdict(
    reference: npt.ArrayLike, current: npt.ArrayLike, past: Sequence[npt.ArrayLike] = (), is_baseline: bool = True
) -> FeatureDrift:
    """Compare samples of one feature, in windows of an hour; `past` are the hours of the days before."""
    profile = profile_numbers(reference)
    windows = [Window(-DAY_S * (day + 1), histogram(profile, values)) for day, values in enumerate(past)]
    now = [Window(0.0, histogram(profile, current))]
    compared = FeatureComparison("x", profile.histogram(), now, windows, is_baseline=is_baseline)
    return measure_drift([compared], window_s=HOUR_S)[0]


def statistic(drift: FeatureDrift, metric: DriftMetric) -> DriftStatistic:
    return next(item for item in drift.statistics if item.metric is metric)


@given(seed=st.integers(0, 10_000), discrete=st.booleans())
@settings(max_examples=60, deadline=None)
def test_bins_equal_scipy_or_are_inside_their_error(seed: int, discrete: bool) -> None:
    random = np.random.default_rng(seed)
    mean = random.uniform(1.0, 3.0)
    first = random.poisson(2.0, 400).astype(float) if discrete else random.normal(2.0, 1, 400)
    second = random.poisson(mean, 300).astype(float) if discrete else random.normal(mean, 1, 300)
    profile = profile_numbers(first)
    reference, current = profile.histogram(), histogram(profile, second)
    exact = {
        DriftMetric.WASSERSTEIN: stats.wasserstein_distance(first, second),
        DriftMetric.KOLMOGOROV_SMIRNOV: stats.ks_2samp(first, second).statistic,
    }
    for metric, wanted in exact.items():
        error = error_of_bins(metric, reference, current)
        assert abs(measure_bins(metric, reference, current) - wanted) <= error + 1e-9
        # With a bin for each value nothing is lost.
        assert error > 0 or measure_bins(metric, reference, current) == pytest.approx(wanted, abs=1e-9)
    p, q = reference.counts / reference.total, current.counts / current.total
    assert measure_bins(DriftMetric.JENSEN_SHANNON, reference, current) == pytest.approx(
        distance.jensenshannon(p, q, base=2), abs=1e-9
    )


def test_a_bin_for_each_value_loses_nothing() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 12, 5_000), random.integers(0, 11, 3_000)
    profile = profile_numbers(first)
    reference, current = profile.histogram(), histogram(profile, second)
    wanted = stats.wasserstein_distance(first, second)
    assert measure_bins(DriftMetric.WASSERSTEIN, reference, current) == pytest.approx(wanted, abs=1e-9)
    assert error_of_bins(DriftMetric.WASSERSTEIN, reference, current) == 0
    assert error_of_bins(DriftMetric.KOLMOGOROV_SMIRNOV, reference, current) == 0


def test_categories_equal_scipy_and_the_definition() -> None:
    profile = CategoricalProfile(("a", "b", "c"), np.array([50.0, 30.0, 15.0]), 5.0)
    sketch = CategorySketch(profile.categories)
    sketch.update(["a"] * 20 + ["b"] * 30 + ["c"] * 8 + ["new"] * 2)
    reference, current = profile.histogram(), sketch.histogram()
    p, q = reference.counts / 100, current.counts / 60
    assert measure_bins(DriftMetric.PSI, reference, current) == pytest.approx(np.sum((q - p) * np.log(q / p)))
    table = stats.chi2_contingency(np.stack([reference.counts, current.counts]), correction=False)
    wanted = np.sqrt(table.statistic / 160)
    assert measure_bins(DriftMetric.CHI_SQUARE, reference, current) == pytest.approx(wanted, abs=1e-9)


def test_samples_equal_scipy() -> None:
    random = np.random.default_rng(3)
    first, second = random.normal(size=1_000), random.normal(0.3, 1.2, 700)
    found = compare_samples(first, second)
    assert found[DriftMetric.WASSERSTEIN] == pytest.approx(stats.wasserstein_distance(first, second), abs=1e-9)
    assert found[DriftMetric.KOLMOGOROV_SMIRNOV] == pytest.approx(stats.ks_2samp(first, second).statistic, abs=1e-9)
    edges = profile_numbers(first).edges
    p, q = count_in_edges(edges, first) / 1_000, count_in_edges(edges, second) / 700
    assert found[DriftMetric.JENSEN_SHANNON] == pytest.approx(distance.jensenshannon(p, q, base=2), abs=1e-9)
    assert np.isfinite(found[DriftMetric.PSI])


def test_the_q_values_are_scipys() -> None:
    p = np.random.default_rng(0).uniform(size=50) ** 2
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p, method="bh"))
    assert benjamini_hochberg([]).size == 0


def test_a_large_n_makes_no_alarm_of_a_small_effect() -> None:
    random = np.random.default_rng(0)
    drift = verdict(random.normal(size=200_000), random.normal(0.03, 1.0, 500_000), is_baseline=False)
    assert statistic(drift, DriftMetric.PSI).q_value < 0.001
    assert not drift.is_drifted


def test_a_tiny_n_makes_no_alarm() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(size=20_000)
    drifts = [verdict(reference, random.normal(size=12)) for _ in range(60)]
    assert all(statistic(drift, DriftMetric.PSI).value.estimate > 0.1 for drift in drifts)
    # One alarm in a hundred is what a false discovery rate of 0.01 puts up with.
    assert sum(drift.is_drifted for drift in drifts) <= 2


def test_a_real_shift_alarms_and_its_interval_holds_the_truth() -> None:
    random = np.random.default_rng(0)
    drift = verdict(random.normal(size=50_000), random.normal(0.7, 1.0, 2_000), is_baseline=False)
    assert drift.is_drifted
    found = statistic(drift, DriftMetric.KOLMOGOROV_SMIRNOV)
    truth = 2 * stats.norm.cdf(0.35) - 1
    assert found.value.lower < truth < found.value.upper + found.sketch_error
    assert found.null_quantile_95 < 0.05
    assert found.source is NullSource.SAMPLING
    assert drift.has_few_past_windows


def test_what_every_day_brings_at_this_hour_is_no_drift() -> None:
    random = np.random.default_rng(0)
    reference = np.concatenate([random.normal(np.sin(h / 24 * 2 * np.pi), 0.5, 500) for h in range(24)])
    past = [random.normal(1.0, 0.5, 400) for _ in range(20)]
    usual = verdict(reference, random.normal(1.0, 0.5, 400), past)
    assert statistic(usual, DriftMetric.PSI).value.estimate > 0.5
    assert statistic(usual, DriftMetric.PSI).source is NullSource.SAME_HOURS
    assert not usual.is_drifted
    assert not usual.has_few_past_windows
    assert verdict(reference, random.normal(1.5, 0.5, 400), past).is_drifted


def test_hours_that_differ_count_as_one_observation_each() -> None:
    profile = profile_numbers(np.repeat(np.arange(24.0), 100))
    hours = [Window(hour * HOUR_S, histogram(profile, np.full(1_000, float(hour)))) for hour in range(3)]
    compared = FeatureComparison("hour", profile.histogram(), hours[2:], hours[:2], is_baseline=False)
    drift = measure_drift([compared], window_s=HOUR_S)[0]
    assert drift.statistics[0].source is NullSource.DESIGN_EFFECT
    assert not drift.is_drifted


def test_another_scope_is_judged_from_the_fourth_window_on() -> None:
    random = np.random.default_rng(0)
    profile = profile_numbers(random.normal(size=20_000))
    windows = [Window(h * HOUR_S, histogram(profile, random.normal(size=500))) for h in range(4)]
    shifted = Window(4 * HOUR_S, histogram(profile, random.normal(1.5, 1, 500)))
    for now, drifted in ((windows[3], False), (shifted, True)):
        compared = FeatureComparison("x", profile.histogram(), [now], windows[:3], is_baseline=False)
        drift = measure_drift([compared], window_s=HOUR_S)[0]
        assert drift.statistics[0].source is NullSource.DESIGN_EFFECT
        assert drift.is_drifted == drifted


def first_drift(hours: Sequence[Window], baseline: npt.ArrayLike, first: int = 0, every: int = 1) -> int | None:
    """Return the first hour, of those judged, that alarms in a new version."""
    reference = profile_numbers(baseline).histogram()
    for hour in range(first, len(hours), every):
        compared = FeatureComparison("x", reference, [hours[hour]], hours[:hour])
        if measure_drift([compared], window_s=HOUR_S)[0].is_drifted:
            return hour
    return None


@pytest.mark.parametrize("begin_day", [0, 5])
@pytest.mark.parametrize("kind", ["hour", "weekday", "weekend", "slow"])
def test_what_a_week_brings_is_no_drift_in_the_first_one(kind: str, begin_day: int) -> None:
    random = np.random.default_rng(0)

    def values(hour: int) -> npt.NDArray[np.float64]:
        weekend = hour // 24 % 7 >= 5
        # Weekends have a quarter of the traffic.
        count = 50 if weekend else 200
        match kind:
            case "hour":
                return np.full(count, float(hour % 24))
            case "weekday":
                return np.full(count, float(hour // 24 % 7))
            case "weekend":
                return random.normal(0.8 * weekend, 1.0, count)
            case _:
                return random.normal(0.3 * np.sin(hour / 40), 1.0, count)

    baseline = np.concatenate([values(hour) for hour in range(28 * 24)])
    profile = profile_numbers(baseline)
    begin = (28 + begin_day) * 24
    hours = [Window(h * HOUR_S, histogram(profile, values(h))) for h in range(begin, begin + 8 * 24)]
    assert first_drift(hours, baseline, every=11) is None


def test_a_value_that_no_week_had_is_drift_at_once() -> None:
    baseline = np.random.default_rng(0).normal(size=20_000)
    hours = [Window(0.0, histogram(profile_numbers(baseline), np.full(50, 9.0)))]
    assert first_drift(hours, baseline) == 0


@pytest.mark.parametrize(("normal_days", "least", "most"), [(0, 24, 96), (6, 2, 24)])
def test_what_comes_more_often_than_a_week_has_it_is_drift(normal_days: int, least: int, most: int) -> None:
    random = np.random.default_rng(0)
    baseline = random.normal(size=20_000)
    profile = profile_numbers(baseline)
    hours = [
        Window(h * HOUR_S, histogram(profile, random.normal(1.5 * (h >= normal_days * 24), 1.0, 400)))
        for h in range(normal_days * 24 + most)
    ]
    found = first_drift(hours, baseline, first=normal_days * 24, every=6)
    assert found is not None
    assert found - normal_days * 24 >= least


def test_a_busy_hour_is_no_drift_where_bins_are_always_empty() -> None:
    profile = profile_numbers(np.repeat(np.arange(24.0), 1_000))
    past = [Window(-day * DAY_S, histogram(profile, np.full(300 + day, 5.0))) for day in range(1, 15)]
    for size in (30, 300, 30_000):
        now = Window(0.0, histogram(profile, np.full(size, 5.0)))
        drift = measure_drift([FeatureComparison("hour", profile.histogram(), [now], past)], window_s=HOUR_S)[0]
        assert not drift.is_drifted


def test_drift_that_lasts_does_not_become_usual() -> None:
    random = np.random.default_rng(0)
    profile = profile_numbers(random.normal(size=20_000))
    past: list[Window] = []
    for day in range(30):
        values = histogram(profile, random.normal(0.0 if day < 10 else 1.0, 1.0, 500))
        window = Window(day * DAY_S, values)
        drift = measure_drift([FeatureComparison("x", profile.histogram(), [window], past)], window_s=HOUR_S)[0]
        assert drift.is_drifted == (day >= 10)
        past.append(Window(day * DAY_S, values, drift.is_drifted))


def test_windows_without_drift_give_uniform_p_values() -> None:
    random = np.random.default_rng(5)
    profile = profile_numbers(random.normal(size=30_000))
    found = []
    for _ in range(80):
        past = [Window(-DAY_S * d, histogram(profile, random.normal(size=800))) for d in range(1, 12)]
        now = Window(0.0, histogram(profile, random.normal(size=500)))
        drift = measure_drift([FeatureComparison("x", profile.histogram(), [now], past)], window_s=HOUR_S)[0]
        found.append([item.p_value for item in drift.statistics])
    # Of 80 about 4 are below 0.05; 11 or more would come once in 500 tries.
    assert ((np.array(found) < 0.05).sum(axis=0) < 11).all()
    assert (np.abs(np.mean(found, axis=0) - 0.5) < 0.1).all()


@pytest.mark.parametrize(("daily", "correlation"), [(0.0, 0.0), (0.04, 0.0), (0.3, 0.0), (0.3, 0.6)])
def test_days_that_differ_are_no_more_significant_than_stated(daily: float, correlation: float) -> None:
    random = np.random.default_rng(7)
    found = []
    for _ in range(1_000):
        levels = [random.normal()]
        # The newest first: such a series is the same backwards.
        for step in np.sqrt(1 - correlation**2) * random.normal(size=28):
            levels.append(correlation * levels[-1] + step)
        # A population stability index of twelve bins and 400 values, and what a level of its own makes of it each day.
        values = random.chisquare(11, 29) / 400 + daily * np.square(levels)
        chance = random.chisquare(11, 400) / 400
        null = fit_same_hours(DriftMetric.PSI, values[1:, np.newaxis], range(1, 29), chance)
        found.append(null.p_value(float(values[0])))
    # Of 1,000 about 1 is below 0.001, 6 or more once in 1,500 tries.
    assert np.mean(np.array(found) < 0.001) < 0.006
    assert np.mean(np.array(found) < 0.05) < 0.08


def test_eight_days_of_past_tell_a_large_shift() -> None:
    random = np.random.default_rng(0)
    past = [random.normal(random.normal(0, 0.05), 1.0, 400) for _ in range(8)]
    drifts = [verdict(random.normal(size=20_000), random.normal(shift, 1.0, 400), past) for shift in (0.0, 3.0)]
    assert [drift.is_drifted for drift in drifts] == [False, True]


def test_what_none_of_the_days_had_may_be_chance() -> None:
    reference = np.repeat([0.0, 1.0], [99_900, 100])
    past = [np.zeros(40)] * 28
    once, often = (verdict(reference, np.repeat([0.0, 1.0], [40 - count, count]), past) for count in (1, 8))
    assert min(item.p_value for item in once.statistics) > 0.003
    assert not once.is_drifted
    assert often.is_drifted


def test_a_scope_of_a_day_is_compared_with_whole_days() -> None:
    profile = profile_numbers(np.arange(24.0))
    windows = [Window(10 * DAY_S + h * HOUR_S, histogram(profile, np.full(10, h))) for h in range(24)]
    past = [Window(d * DAY_S + h * HOUR_S, histogram(profile, np.full(10, h))) for d in range(10) for h in range(24)]
    model = model_null(windows, past, HOUR_S)
    assert model.source is NullSource.SAME_HOURS
    assert len(model.blocks) == 10
    assert all(block.total == 240 for block in model.blocks)


def test_features_without_values_have_no_statistics() -> None:
    profile = profile_numbers([1.0, 2.0, 3.0])
    nothing = histogram(profile, np.array([np.nan]))
    drift = measure_drift([FeatureComparison("x", profile.histogram(), [Window(0.0, nothing)])], window_s=HOUR_S)[0]
    assert drift.statistics == ()
    assert not drift.is_drifted


def test_the_same_input_gives_the_same_answer() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=500), random.normal(size=400)
    assert verdict(first, second) == verdict(first, second)
