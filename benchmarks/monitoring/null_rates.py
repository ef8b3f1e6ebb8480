"""How often the null of the same hours alarms without drift, and how often at once with it.

That null only knows windows of the same hour of different days, so only those are made: independent streams by the dozen,
where windows of one stream in a row would repeat each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchmarks.monitoring.fresh_streams import BASELINE_DAYS, Kind, Profiled, Rates, State
from benchmarks.monitoring.stationary import HOUR_S, NO_MINIMUM, Values, histogram_of, is_alarm, profile_of
from services.monitor.domain.drift import FALSE_DISCOVERY_RATE, FeatureComparison, FeatureDrift, measure_drift
from services.monitor.domain.drift_null import Window

PAST_DAYS, JUDGED_DAYS = 28, 14
BASELINE_SIZE = 100
"""Predictions in an hour of the baseline, at most."""
SHIFTS = (0.3, 0.5, 0.8, 1.5, 3.0)
SHIFTED_FEATURES = 10
"""The shifted feature is looked at beside nine that have not drifted at all."""


def without_drift(kind: Kind, size: int, seeds: range, base: int) -> tuple[Rates, Rates]:
    """Judge one hour of the day in a stream for each seed: from the ninth day to the end of the fourth week, and two weeks more."""
    early, later = Rates(), Rates()
    for seed in seeds:
        for day, drifts in _judged(kind, size, State([base, seed, size]), JUDGED_DAYS):
            (later if day >= PAST_DAYS else early).add(drifts)
    return early, later


def _judged(kind: Kind, size: int, state: State, days: int) -> Iterator[tuple[int, list[FeatureDrift]]]:
    """Yield days and their drifts from the ninth on; as in the monitor, what drifted does not tell what is usual."""
    profiles = _baseline(kind.features, kind.volume, min(size, BASELINE_SIZE), state)
    past: dict[str, list[Window]] = {name: [] for name in profiles}
    hour = int(state.random.integers(24))
    state.step(hour + 1)
    for day in range(PAST_DAYS + days):
        at = day * 24 + hour
        values = kind.features(state, at, max(int(state.random.poisson(size * kind.volume(at, state.random))), 1))
        now = {name: Window(at * HOUR_S, histogram_of(profiles[name], found)) for name, found in values.items()}
        if day >= 8:
            compared = [FeatureComparison(n, p.histogram(), [now[n]], past[n]) for n, p in profiles.items()]
            drifts = measure_drift(compared, window_s=HOUR_S, minimum_effects=NO_MINIMUM)
            yield day, drifts
            alarming = {drift.name for drift in drifts if is_alarm([drift])}
            now = {name: replace(window, is_drifted=name in alarming) for name, window in now.items()}
        for name, window in now.items():
            past[name] = [*past[name][1 - PAST_DAYS :], window]
        state.step(24)


def _baseline(
    features: Callable[[State, int, int], dict[str, Values]],
    volume: Callable[[int, np.random.Generator], float],
    size: int,
    state: State,
) -> dict[str, Profiled]:
    state.step(1_000)
    hours = []
    for hour in range(BASELINE_DAYS * 24):
        state.step()
        hours.append(features(state, hour, max(int(state.random.poisson(size * volume(hour, state.random))), 1)))
    return {name: profile_of([values[name] for values in hours]) for name in hours[0]}


def found_at_once(size: int, past_days: int, base: int, streams: int = 40) -> dict[str, list[float]]:
    """Return, by kind of feature, the share of streams in which the first window after each of `SHIFTS` alarms."""
    found = {name: np.zeros(len(SHIFTS)) for name in _SHIFTED}
    for stream in range(streams):
        state = State([base, stream, size, past_days])
        profiles = _baseline(_shifted(0.0), lambda hour, random: 1.0, min(size, BASELINE_SIZE), state)
        past: dict[str, list[Window]] = {name: [] for name in profiles}
        for day in range(past_days):
            for name, values in _shifted(0.0)(state, 0, int(state.random.poisson(size))).items():
                past[name].append(Window(day * 24 * HOUR_S, histogram_of(profiles[name], values)))
            state.step(24)
        for index, shift in enumerate(SHIFTS):
            for name, values in _shifted(shift)(state, 0, int(state.random.poisson(size))).items():
                now = Window(past_days * 24 * HOUR_S, histogram_of(profiles[name], values))
                compared = FeatureComparison(name, profiles[name].histogram(), [now], past[name])
                # Nine features whose p-values are all 1 divide the rate by ten.
                rate = FALSE_DISCOVERY_RATE / SHIFTED_FEATURES
                drift = measure_drift([compared], window_s=HOUR_S, false_discovery_rate=rate)[0]
                found[name][index] += drift.is_drifted / streams
    return {name: shares.tolist() for name, shares in found.items()}


_SHIFTED = ("steady", "days differ by 0.2", "the same, correlated", "share of 0.3")


def _shifted(shift: float) -> Callable[[State, int, int], dict[str, Values]]:
    def features(state: State, hour: int, count: int) -> dict[str, Values]:
        random, (_, slow, slower) = state.random, state.levels
        return {
            "steady": random.normal(shift, 1.0, count),
            "days differ by 0.2": random.normal(0.2 * slow + shift, 1.0, count),
            "the same, correlated": random.normal(0.2 * slower + shift, 1.0, count),
            "share of 0.3": (random.normal(shift, 1.0, count) > 0.5244).astype(float),
        }

    return features
