"""Streams without drift that no constant was chosen on: other distributions, daily and weekly profiles, and sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.monitoring.stationary import (
    HOUR_S,
    NO_MINIMUM,
    Values,
    histogram_of,
    is_alarm,
    profile_of,
)
from services.monitor.domain.drift import FALSE_DISCOVERY_RATE, FeatureComparison, FeatureDrift, measure_drift
from services.monitor.domain.drift_null import Window
from services.monitor.domain.profile import CategoricalProfile, NumericProfile

SIZES = (40, 400, 5_000)
"""Predictions in a window, on average."""
BASELINE_DAYS = 28
FIRST_HOURS, JUDGED_EVERY = 8 * 24, 7
"""Hours at the begin of a version, and which of them are judged."""
BEGIN_DAYS = (0, 5)
"""Weekdays on which a version without history begins: a Monday, a Saturday."""

Profiled = NumericProfile | CategoricalProfile
Profile = Callable[[int, np.random.Generator], float]


@dataclass(frozen=True)
class Kind:
    """One kind of stream: how the volume follows the clock, and its features."""

    name: str
    volume: Profile
    features: Callable[["State", int, int], dict[str, Values]]


class State:
    """What lasts from one hour to the next."""

    def __init__(self, seed: Sequence[int]) -> None:
        self.random = np.random.default_rng(seed)
        self.levels = np.zeros(3)

    def step(self, hours: int = 1) -> None:
        """Move three levels: fast, slow and slower; each is stationary with a standard deviation of 1."""
        keep = np.array([0.5, 0.9, 0.98]) ** hours
        self.levels = keep * self.levels + np.sqrt(1 - keep**2) * self.random.normal(size=3)


def flat(hour: int, random: np.random.Generator) -> float:
    return 1.0


def two_peaks(hour: int, random: np.random.Generator) -> float:
    of_day = hour % 24
    return 0.15 + 1.5 * np.exp(-((of_day - 8) ** 2) / 4) + 1.2 * np.exp(-((of_day - 18) ** 2) / 8)


def office_week(hour: int, random: np.random.Generator) -> float:
    """Closed at night and almost closed at weekends."""
    open_now = 7 <= hour % 24 < 19
    return (0.2 if hour // 24 % 7 >= 5 else 1.6) if open_now else 0.02


def bursts(hour: int, random: np.random.Generator) -> float:
    return float(random.lognormal(-0.5, 1.0))


def heavy(state: State, hour: int, count: int) -> dict[str, Values]:
    random = state.random
    return {
        "student_3": random.standard_t(3, count),
        "cauchy": random.standard_cauchy(count),
        "pareto": random.pareto(1.1, count),
        "two_humps": np.where(random.random(count) < 0.3, random.normal(-3, 0.5, count), random.normal(2, 1.5, count)),
        "zero_inflated": np.where(random.random(count) < 0.85, 0.0, random.gamma(0.7, 30, count)),
        "bounded": random.beta(0.3, 0.4, count),
        "counts": random.negative_binomial(1.2, 0.2, count).astype(float),
        "lattice": random.integers(0, 6, count) * 5.0,
    }


def correlated(state: State, hour: int, count: int) -> dict[str, Values]:
    random = state.random
    fast, slow, slower = state.levels
    return {
        "fast_level": random.normal(0.3 * fast, 1.0, count),
        "slow_level": random.gumbel(0.2 * slow, 1.0, count),
        "slower_scale": random.normal(0.0, np.exp(0.15 * slower), count),
        "clusters": np.repeat(random.normal(size=count // 20 + 1), 20)[:count] + random.normal(0, 0.3, count),
        "share": (random.random(count) < 1 / (1 + np.exp(3 - 0.5 * slow))).astype(float),
        "mix": random.choice(
            ["a", "b", "c"], count, p=_softmax(np.array([1.0, 0.5, 0.0]) + 0.2 * state.levels)
        ).tolist(),
    }


def seasonal(state: State, hour: int, count: int) -> dict[str, Values]:
    random, weekend = state.random, hour // 24 % 7 >= 5
    day = 2 * np.pi * (hour % 24) / 24
    return {
        "rate_by_hour": random.exponential(np.exp(0.6 * np.cos(day) + 0.3 * np.cos(2 * day)), count),
        "weekend_shift": random.normal(0.8 if weekend else 0.0, 1.0, count),
        "calls_by_hour": random.poisson(3 + 2 * np.sin(day), count).astype(float),
        "weekday": np.full(count, float(hour // 24 % 7)),
        "channel": random.choice(
            ["web", "app", "shop"], count, p=_softmax(np.array([0.5, np.sin(day), 1.0 * weekend]))
        ).tolist(),
        "steady": random.gamma(2.0, 1.0, count),
    }


def rare(state: State, hour: int, count: int) -> dict[str, Values]:
    random = state.random
    zipf = np.arange(1, 301) ** -1.1
    return {
        "rare_levels": random.choice(["x", "y", "r1", "r2", "r3"], count, p=[0.7, 0.297, 0.001, 0.001, 0.001]).tolist(),
        "zipf_300": [f"c{index}" for index in random.choice(300, count, p=zipf / zipf.sum())],
        "once_in_1000": (random.random(count) < 0.001).astype(float),
        "constant": np.full(count, 7.0),
        "ids": [f"u{index}" for index in random.integers(0, 50_000, count)],
        "rounded": np.round(random.normal(20, 4, count)),
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum())


@dataclass
class Rates:
    """Windows, and in how many of them something was significant, or alarmed with the defaults."""

    windows: int = 0
    significant: int = 0
    alarms: int = 0

    def add(self, drifts: list[FeatureDrift]) -> None:
        self.windows += 1
        self.significant += any(s.q_value < FALSE_DISCOVERY_RATE for drift in drifts for s in drift.statistics)
        self.alarms += is_alarm(drifts)

    def merge(self, other: "Rates") -> None:
        self.windows += other.windows
        self.significant += other.significant
        self.alarms += other.alarms


def first_days(kind: Kind, seed: int) -> Rates:
    """Judge the first eight days of versions without any window before, over all sizes and both begins."""
    rates = Rates()
    for size in SIZES:
        for begin_day in BEGIN_DAYS:
            for drifts in _judged(kind, size, [seed, KINDS.index(kind), size, begin_day], begin_day):
                rates.add(drifts)
    return rates


def hours_until_found(shift: float, past_hours: int, seed: int, hours: int = 240, every: int = 3) -> int | None:
    """Return after how many hours a shift of a steady feature alarms; None: not in ten days.

    The shift is in standard deviations; 400 predictions in a window, every third of which is judged.
    """
    random = np.random.default_rng([seed, past_hours])
    profile = profile_of([random.normal(size=20_000)])
    past: list[Window] = []
    for hour in range(past_hours + hours):
        by = shift if hour >= past_hours else 0.0
        now = Window(hour * HOUR_S, histogram_of(profile, random.normal(by, 1.0, 400)))
        if hour >= past_hours and (hour - past_hours) % every == 0:
            compared = FeatureComparison("x", profile.histogram(), [now], past)
            if measure_drift([compared], window_s=HOUR_S)[0].is_drifted:
                return hour - past_hours + 1
        past.append(now)
    return None


KINDS = (
    Kind("heavy tails, flat volume", flat, heavy),
    Kind("heavy tails, bursts", bursts, heavy),
    Kind("correlated hours, two peaks", two_peaks, correlated),
    Kind("correlated hours, flat volume", flat, correlated),
    Kind("day and week, two peaks", two_peaks, seasonal),
    Kind("day and week, office hours", office_week, seasonal),
    Kind("rare levels, two peaks", two_peaks, rare),
    Kind("rare levels, bursts", bursts, rare),
)


def _judged(kind: Kind, size: int, seed: Sequence[int], begin_day: int) -> Iterator[list[FeatureDrift]]:
    """Yield the drifts of windows, without minimum effects; a window that drifted does not tell what is usual."""
    state = State(seed)
    hours = [_hour(kind, state, hour, size) for hour in range(BASELINE_DAYS * 24)]
    profiles = {name: profile_of([values[name] for values in hours]) for name in hours[0]}
    past: dict[str, list[Window]] = {name: [] for name in profiles}
    begin = (BASELINE_DAYS + begin_day) * 24
    for hour in range(begin, begin + FIRST_HOURS):
        values = _hour(kind, state, hour, size)
        now = {name: Window(hour * HOUR_S, histogram_of(profiles[name], found)) for name, found in values.items()}
        if (hour - begin) % JUDGED_EVERY == 0:
            compared = [FeatureComparison(n, p.histogram(), [now[n]], past[n]) for n, p in profiles.items()]
            drifts = measure_drift(compared, window_s=HOUR_S, minimum_effects=NO_MINIMUM)
            yield drifts
            alarming = {drift.name for drift in drifts if is_alarm([drift])}
            now = {name: replace(window, is_drifted=name in alarming) for name, window in now.items()}
        for name, window in now.items():
            past[name].append(window)


def _hour(kind: Kind, state: State, hour: int, size: int) -> dict[str, Values]:
    state.step()
    count = max(int(state.random.poisson(size * kind.volume(hour, state.random))), 1)
    return kind.features(state, hour, count)
