"""A stream without drift: 1,000 hourly windows whose volume and values follow the hour, and whose windows depend on each other."""

from dataclasses import dataclass

import numpy as np

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.drift import (
    FALSE_DISCOVERY_RATE,
    MINIMUM_EFFECTS,
    FeatureComparison,
    FeatureDrift,
    benjamini_hochberg,
    measure_drift,
)
from services.monitor.domain.drift_metric import DriftMetric
from services.monitor.domain.drift_null import Window
from services.monitor.domain.numeric_sketch import NumericSketch
from services.monitor.domain.profile import CategoricalProfile, Histogram, NumericProfile, profile_numbers

HOUR_S = 3_600.0
HISTORY_HOURS = 28 * 24
BASELINE_HOURS = 60 * 24
NO_MINIMUM = dict.fromkeys((*MINIMUM_EFFECTS, DriftMetric.WASSERSTEIN, DriftMetric.CHI_SQUARE), 0.0)

Values = np.ndarray | list[str]


class Stream:
    """Features of an hour; each hour also has shifts of its own that last for some hours."""

    def __init__(self, seed: int, volume: float = 1_000.0) -> None:
        self.random = np.random.default_rng(seed)
        self.shift = 0.0
        self.volume = volume

    def hour(self, hour: int) -> dict[str, Values]:
        random, day = self.random, 2 * np.pi * (hour % 24) / 24
        count = int(random.poisson(self.volume * (1.0 + 0.7 * np.sin(day))))
        # Hours resemble the ones before: what one of them tells about the usual, the next one mostly repeats.
        self.shift = 0.8 * self.shift + random.normal(scale=0.05)
        sites = random.dirichlet(np.array([50.0, 30.0, 15.0, 5.0]))
        return {
            "independent": random.normal(size=count),
            "heavy_tail": random.lognormal(sigma=1.5, size=count),
            "daily": random.normal(np.sin(day), 1.0, count),
            "autocorrelated": random.normal(self.shift, 1.0, count),
            "hour_of_day": np.full(count, float(hour % 24)),
            "rare_event": (random.random(count) < 0.01).astype(float),
            "category": random.choice(["a", "b", "c", "d"], count, p=[0.6, 0.3, 0.09, 0.01]).tolist(),
            "category_daily": np.where(random.random(count) < 0.5 + 0.4 * np.sin(day), "x", "y").tolist(),
            "category_by_hour": random.choice(["w", "x", "y", "z"], count, p=sites).tolist(),
            "high_cardinality": [f"item{index}" for index in random.zipf(1.5, count) % 3_000],
        }


@dataclass(frozen=True)
class Outcome:
    """Every window's drifts, each without a minimum effect; and how many windows had an alarm with the default ones."""

    windows: list[list[FeatureDrift]]
    default_alarms: int

    def rejecting(self, rate: float) -> float:
        """Return the share of windows in which some feature is significant at a false discovery rate."""
        found = [any(s.q_value < rate for drift in window for s in drift.statistics) for window in self.windows]
        return float(np.mean(found))

    def p_values(self) -> dict[tuple[str, str], np.ndarray]:
        """Return the p-values of each feature and statistic."""
        found: dict[tuple[str, str], list[float]] = {}
        for window in self.windows:
            for drift in window:
                for statistic in drift.statistics:
                    found.setdefault((drift.name, statistic.metric.value), []).append(statistic.p_value)
        return {key: np.array(values) for key, values in found.items()}


def run_stationary(windows: int = 1_000, seed: int = 0, with_history: bool = True) -> Outcome:
    stream = Stream(seed)
    profiles = baseline(stream)
    warm_up = HISTORY_HOURS if with_history else 0
    past: dict[str, list[Window]] = {name: [] for name in profiles}
    found, alarms = [], 0
    for hour in range(BASELINE_HOURS, BASELINE_HOURS + warm_up + windows):
        now = {name: Window(hour * HOUR_S, histogram_of(profiles[name], v)) for name, v in stream.hour(hour).items()}
        if hour >= BASELINE_HOURS + warm_up:
            compared = [
                FeatureComparison(name, profile.histogram(), [now[name]], past[name])
                for name, profile in profiles.items()
            ]
            found.append(measure_drift(compared, window_s=HOUR_S, minimum_effects=NO_MINIMUM))
            alarms += is_alarm(found[-1])
        for name, window in now.items():
            past[name] = [*past[name][1 - HISTORY_HOURS :], window]
    return Outcome(found, alarms)


def is_alarm(drifts: list[FeatureDrift]) -> bool:
    """Return whether the defaults raise an alarm: the same p-values, fewer statistics to correct for, a minimum effect."""
    judged = [s for drift in drifts for s in drift.statistics if s.metric in MINIMUM_EFFECTS]
    q_values = benjamini_hochberg([s.p_value for s in judged])
    return any(
        q < FALSE_DISCOVERY_RATE and s.value.estimate >= MINIMUM_EFFECTS[s.metric]
        for q, s in zip(q_values.tolist(), judged, strict=True)
    )


def baseline(stream: Stream) -> dict[str, NumericProfile | CategoricalProfile]:
    hours = [stream.hour(hour) for hour in range(BASELINE_HOURS)]
    return {name: profile_of([hour[name] for hour in hours]) for name in hours[0]}


def profile_of(parts: list[Values]) -> NumericProfile | CategoricalProfile:
    if isinstance(parts[0], np.ndarray):
        return profile_numbers(np.concatenate(parts))
    values, counts = np.unique(np.concatenate([np.asarray(part, dtype=str) for part in parts]), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept, rest = order[:1_000], order[1_000:]
    names = tuple(str(values[index]) for index in kept)
    return CategoricalProfile(names, counts[kept].astype(float), float(counts[rest].sum()), int(counts.size))


def histogram_of(profile: NumericProfile | CategoricalProfile, values: Values) -> Histogram:
    sketch = NumericSketch(profile.edges) if isinstance(profile, NumericProfile) else CategorySketch(profile.categories)
    sketch.update(values)
    return sketch.histogram()
