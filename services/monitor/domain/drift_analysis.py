"""Drift of a version, from its windows: what is compared with what."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from services.monitor.domain.drift import FeatureComparison, FeatureDrift, measure_drift
from services.monitor.domain.drift_metric import DriftMetric
from services.monitor.domain.drift_null import Window
from services.monitor.domain.numeric_sketch import NumericSketch
from services.monitor.domain.policy import MonitoringPolicy
from services.monitor.domain.profile import FeatureProfile
from services.monitor.domain.rebinning import common_bins, rebinned
from services.monitor.domain.version_info import Baseline, VersionInfo
from services.monitor.domain.window import Sketch, WindowSketch
from services.monitor.domain.window_series import Placed, merged

Verdicts = Mapping[tuple[int, int], Collection[str]]
"""By begin and end of a window: names of what had drifted in it."""
OUTPUT_PREFIX: Final = "output:"
"""Marks outputs among the names of verdicts; a feature may have the name of an output."""


@dataclass(frozen=True, slots=True)
class DriftInput:
    """Windows of a version, and how the past ones were judged."""

    windows: Sequence[Placed[WindowSketch]]
    past: Sequence[Placed[WindowSketch]]
    verdicts: Verdicts
    names: Collection[str] = ()
    """Features and outputs to look at; empty: all."""


def drift_from_baseline(given: DriftInput, info: VersionInfo, policy: MonitoringPolicy) -> list[FeatureDrift]:
    """Return the drift of everything that the version's baseline knows, the largest first."""
    return _measured(list(_with_baseline(given, info.baseline or Baseline())), policy)


def drift_from_windows(
    given: DriftInput, reference: Sequence[Placed[WindowSketch]], policy: MonitoringPolicy
) -> list[FeatureDrift]:
    """Return the drift of everything that both have, the largest first."""
    before, now = merged(reference), merged(given.windows)
    found = []
    errors: dict[tuple[bool, str], float] = {}
    for is_output in (False, True):
        mine, theirs = _sketches(now, is_output), _sketches(before, is_output)
        for name in _chosen(mine, given.names):
            pair = (mine[name], theirs.get(name))
            if isinstance(pair[1], type(pair[0])) and pair[1] is not None:
                comparison, error = _against(given, name, is_output, pair[1])
                found.append(comparison)
                errors[is_output, name] = error
    drifts = _measured(found, policy)
    return [_with_error(drift, errors[drift.is_output, drift.name]) for drift in drifts]


def drifted_names(drifts: Sequence[FeatureDrift]) -> list[str]:
    """Return the names for a verdict."""
    return sorted(_verdict_name(drift.name, drift.is_output) for drift in drifts if drift.is_drifted)


def _measured(comparisons: Sequence[FeatureComparison], policy: MonitoringPolicy) -> list[FeatureDrift]:
    effects = {metric: effect for metric in DriftMetric if (effect := policy.minimum_effect(metric)) is not None}
    return measure_drift(
        comparisons,
        window_s=policy.window_us / 1e6,
        false_discovery_rate=policy.false_discovery_rate,
        minimum_effects=effects,
    )


def _with_baseline(given: DriftInput, baseline: Baseline) -> Iterator[FeatureComparison]:
    now = merged(given.windows)
    for is_output in (False, True):
        sketches = _sketches(now, is_output)
        profiles = baseline.outputs if is_output else baseline.features
        for name in _chosen(sketches, given.names):
            profile, sketch = profiles.get(name), sketches[name]
            if profile is None:
                continue
            reference = profile.content.histogram()
            windows = _histograms(given.windows, given, name, is_output)
            if any(window.histogram.counts.shape != reference.counts.shape for window in windows):
                continue
            yield FeatureComparison(
                name=name,
                reference=reference,
                windows=windows,
                past=_histograms(given.past, given, name, is_output),
                is_output=is_output,
                missing_share=_missing_share(sketch),
                baseline_missing_share=_profile_missing(profile),
            )


def _against(given: DriftInput, name: str, is_output: bool, reference: Sketch) -> tuple[FeatureComparison, float]:
    """Return the comparison in bins that both sides have, and the largest error of ranks that making them costs."""
    sketches = [
        (placed, _sketches(placed.window, is_output)[name]) for placed in _having(given.windows, name, is_output)
    ]
    past = [(placed, _sketches(placed.window, is_output)[name]) for placed in _having(given.past, name, is_output)]
    bins = common_bins(reference, [sketch for _, sketch in (*sketches, *past)])

    def windows(found: Sequence[tuple[Placed[WindowSketch], Sketch]]) -> list[Window]:
        return [
            Window(placed.start_s, rebinned(sketch, bins), _is_drifted(placed, given, name, is_output))
            for placed, sketch in found
        ]

    comparison = FeatureComparison(
        name=name,
        reference=rebinned(reference, bins),
        windows=windows(sketches),
        past=windows(past),
        is_output=is_output,
        is_baseline=False,
        missing_share=_missing_share(_sketches(merged(given.windows), is_output)[name]),
        baseline_missing_share=_missing_share(reference),
    )
    error = 0.0
    if not bins.is_exact and isinstance(reference, NumericSketch):
        numeric = [sketch.rank_error for _, sketch in sketches if isinstance(sketch, NumericSketch)]
        error = reference.rank_error + max(numeric, default=0.0)
    return comparison, error


def _with_error(drift: FeatureDrift, rank_error: float) -> FeatureDrift:
    """Add what counts that were read from quantiles may be off by.

    Jensen-Shannon and Kolmogorov-Smirnov are distances, so what moves a distribution by e moves them by no more than the
    distance of that: e, and at most sqrt(e) for Jensen-Shannon (Lin, Divergence measures based on the Shannon entropy,
    1991). PSI and Wasserstein have no such bound in the ranks alone, so theirs is NaN: unknown.
    """
    if not rank_error:
        return drift
    added = {
        DriftMetric.KOLMOGOROV_SMIRNOV: 2 * rank_error,
        DriftMetric.JENSEN_SHANNON: float(np.sqrt(min(1.0, 2 * rank_error))),
    }
    statistics = tuple(
        replace(statistic, sketch_error=statistic.sketch_error + added.get(statistic.metric, float("nan")))
        for statistic in drift.statistics
    )
    return replace(drift, statistics=statistics)


def _histograms(windows: Sequence[Placed[WindowSketch]], given: DriftInput, name: str, is_output: bool) -> list[Window]:
    return [
        Window(
            placed.start_s,
            _sketches(placed.window, is_output)[name].histogram(),
            _is_drifted(placed, given, name, is_output),
        )
        for placed in _having(windows, name, is_output)
    ]


def _having(windows: Sequence[Placed[WindowSketch]], name: str, is_output: bool) -> Iterator[Placed[WindowSketch]]:
    return (placed for placed in windows if name in _sketches(placed.window, is_output))


def _is_drifted(placed: Placed[WindowSketch], given: DriftInput, name: str, is_output: bool) -> bool:
    return _verdict_name(name, is_output) in given.verdicts.get((placed.start_us, placed.end_us), ())


def _verdict_name(name: str, is_output: bool) -> str:
    return f"{OUTPUT_PREFIX}{name}" if is_output else name


def _sketches(window: WindowSketch, is_output: bool) -> Mapping[str, Sketch]:
    return window.outputs if is_output else window.features


def _chosen(names: Collection[str], wanted: Collection[str]) -> list[str]:
    return [name for name in names if not wanted or name in wanted]


def _missing_share(sketch: Sketch) -> float:
    return sketch.missing_weight / sketch.total_weight if sketch.total_weight else 0.0


def _profile_missing(profile: FeatureProfile) -> float:
    return profile.missing_count / profile.count if profile.count else 0.0
