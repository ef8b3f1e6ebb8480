"""Data quality of a version, from its windows: which rates are checked against what."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.data_quality import (
    DataQualityCheck,
    DataQualityFinding,
    RateCheck,
    VolumeVerdict,
    check_rates,
    check_volume,
    volume_finding,
)
from services.monitor.domain.numeric_sketch import NumericSketch
from services.monitor.domain.policy import DAY_US, MonitoringPolicy
from services.monitor.domain.profile import CategoricalProfile, FeatureProfile
from services.monitor.domain.version_info import FeatureInfo, VersionInfo
from services.monitor.domain.window import Sketch, WindowSketch
from services.monitor.domain.window_series import Placed, merged

_INVALID_ARGUMENT: Final = 3
_NAMED: Final = 10
_WEEK_US: Final = 7 * DAY_US
WEEKS: Final = 8
"""How far back the usual volume is looked for."""


@dataclass(frozen=True, slots=True)
class DataQualityInput:
    """Windows of a version, and those before them."""

    windows: Sequence[Placed[WindowSketch]]
    past: Sequence[Placed[WindowSketch]]
    """For the usual rates; newer than the weeks that the volume looks back."""
    weekly_counts: Sequence[float]
    """Predictions in the same hours of the weeks before."""


def check_data(
    given: DataQualityInput, info: VersionInfo, policy: MonitoringPolicy
) -> tuple[list[DataQualityFinding], VolumeVerdict]:
    """Return what is wrong, the worst first, and what volume was expected."""
    now = merged(given.windows)
    found = check_rates(list(_checks(given, now, info)), policy.false_discovery_rate)
    verdict = check_volume(now.prediction_count, given.weekly_counts)
    finding = volume_finding(now.prediction_count, verdict)
    return ([finding, *found] if finding is not None else found), verdict


def same_hours(start_us: int, end_us: int, week: int) -> tuple[int, int]:
    """Return the same hours some weeks before."""
    return start_us - week * _WEEK_US, end_us - week * _WEEK_US


def _checks(given: DataQualityInput, now: WindowSketch, info: VersionInfo) -> Iterator[RateCheck]:
    for feature in info.features:
        sketch = now.features.get(feature.name)
        profile = info.baseline.features.get(feature.name) if info.baseline else None
        if sketch is not None:
            yield from _null_check(given, feature, sketch, profile)
            yield from _range_check(given, now, feature, sketch)
            yield from _category_check(given, feature, sketch, profile)
        if feature.max_age_us is not None:
            yield _age_check(given, now, feature.name, feature.max_age_us)
    # Which value was of another type the router tells its caller; here is how many requests it refused.
    yield RateCheck(
        "",
        DataQualityCheck.TYPE,
        now.statuses.get(_INVALID_ARGUMENT, 0.0),
        now.prediction_count,
        past=_past(given, lambda w: (w.statuses.get(_INVALID_ARGUMENT, 0.0), w.prediction_count)),
        expected="requests that fit the signature",
    )


def _age_check(given: DataQualityInput, now: WindowSketch, name: str, max_age_us: int) -> RateCheck:
    return RateCheck(
        name,
        DataQualityCheck.FRESHNESS,
        now.stale.get(name, 0.0),
        now.prediction_count,
        past=_past(given, lambda w: (w.stale.get(name, 0.0), w.prediction_count)),
        expected=f"values of at most {max_age_us / 1e6:g} s",
    )


def _null_check(
    given: DataQualityInput, feature: FeatureInfo, sketch: Sketch, profile: FeatureProfile | None
) -> Iterator[RateCheck]:
    past = _past(given, _missing_of(feature.name))
    usual = (float(profile.missing_count), float(profile.count)) if profile else (0.0, 0.0)
    if profile is None and feature.nullable:
        # Nobody said how often it is missing, so what was missing before is usual.
        usual = (sum(count for count, _ in past), sum(total for _, total in past))
        if not usual[1]:
            return
    yield RateCheck(
        feature.name,
        DataQualityCheck.NULLS,
        sketch.missing_weight,
        sketch.total_weight,
        *usual,
        past=past,
        expected="" if usual[1] else "no missing value",
    )


def _range_check(
    given: DataQualityInput, now: WindowSketch, feature: FeatureInfo, sketch: Sketch
) -> Iterator[RateCheck]:
    if feature.minimum is None and feature.maximum is None and not feature.allowed:
        return
    yield RateCheck(
        feature.name,
        DataQualityCheck.RANGE,
        now.illegal.get(feature.name, 0.0),
        sketch.total_weight,
        past=_past(given, lambda w: (w.illegal.get(feature.name, 0.0), _total(w, feature.name))),
        expected=_limits(feature),
        examples=tuple(_outside(feature, sketch)),
    )


def _category_check(
    given: DataQualityInput, feature: FeatureInfo, sketch: Sketch, profile: FeatureProfile | None
) -> Iterator[RateCheck]:
    if profile is None or not isinstance(profile.content, CategoricalProfile) or not isinstance(sketch, CategorySketch):
        return
    names = profile.content.categories
    yield RateCheck(
        feature.name,
        DataQualityCheck.NEW_CATEGORY,
        sketch.other_weight,
        sketch.value_weight,
        profile.content.other_count,
        float(profile.content.counts.sum() + profile.content.other_count),
        past=_past(given, _other_of(feature.name)),
        expected=", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""),
        examples=tuple(name for name, _ in sketch.new_categories()),
    )


def _past(
    given: DataQualityInput, count: Callable[[WindowSketch], tuple[float, float]]
) -> tuple[tuple[float, float], ...]:
    return tuple(count(placed.window) for placed in given.past)


def _missing_of(name: str) -> Callable[[WindowSketch], tuple[float, float]]:
    def count(window: WindowSketch) -> tuple[float, float]:
        sketch = window.features.get(name)
        return (0.0, 0.0) if sketch is None else (sketch.missing_weight, sketch.total_weight)

    return count


def _other_of(name: str) -> Callable[[WindowSketch], tuple[float, float]]:
    def count(window: WindowSketch) -> tuple[float, float]:
        sketch = window.features.get(name)
        return (sketch.other_weight, sketch.value_weight) if isinstance(sketch, CategorySketch) else (0.0, 0.0)

    return count


def _total(window: WindowSketch, name: str) -> float:
    sketch = window.features.get(name)
    return 0.0 if sketch is None else sketch.total_weight


def _limits(feature: FeatureInfo) -> str:
    if feature.allowed:
        more = f" and {len(feature.allowed) - _NAMED} more" if len(feature.allowed) > _NAMED else ""
        return ", ".join(str(value) for value in feature.allowed[:_NAMED]) + more
    if feature.minimum is None:
        return f"at most {feature.maximum:g}"
    if feature.maximum is None:
        return f"at least {feature.minimum:g}"
    return f"{feature.minimum:g} to {feature.maximum:g}"


def _outside(feature: FeatureInfo, sketch: Sketch) -> Iterator[str]:
    """Yield values outside of the limits: texts, the most frequent first, or the ends of the range."""
    if isinstance(sketch, CategorySketch):
        allowed = {str(value) for value in feature.allowed}
        known = zip(sketch.categories, sketch.category_weights.tolist(), strict=True)
        found = [*known, *sketch.new_categories()]
        for name, weight in sorted(found, key=lambda pair: -pair[1]):
            if weight > 0 and name not in allowed:
                yield name
    elif isinstance(sketch, NumericSketch):
        if feature.minimum is not None and sketch.minimum < feature.minimum:
            yield f"{sketch.minimum:g}"
        if feature.maximum is not None and sketch.maximum > feature.maximum:
            yield f"{sketch.maximum:g}"
