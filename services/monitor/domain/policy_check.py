"""Checks of a monitoring policy against what the model's versions have."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from services.common.errors import Violation, echo
from services.common.names import id_violation
from services.monitor.domain.policy import DAY_US, HOUR_US, MINUTE_US, SECOND_US, FairnessGroup, MonitoringPolicy, Slice
from services.monitor.domain.version_info import FeatureInfo, FeatureKind, Scalar, Task, VersionInfo

SLICE_LIMIT: Final = 32
SLICE_VALUE_LIMIT: Final = 100
GROUP_LIMIT: Final = 8
STATISTICS: Final = ("psi", "jensen_shannon", "wasserstein", "kolmogorov_smirnov", "chi_square")
_BASIS_POINTS: Final = 10_000
_WINDOW_RANGE_US: Final = (MINUTE_US, 7 * DAY_US)
_RETENTION_RANGE_US: Final = (HOUR_US, 3_650 * DAY_US)
_TYPES: Final[Mapping[FeatureKind, tuple[type, ...]]] = {
    FeatureKind.DOUBLE: (float, int),
    FeatureKind.INT64: (int,),
    FeatureKind.STRING: (str,),
    FeatureKind.BOOL: (bool,),
}


def check_policy(policy: MonitoringPolicy, versions: Sequence[VersionInfo], path: str) -> Iterator[Violation]:
    """Yield everything that is wrong with a policy; features and labels are looked up in `versions` of the model."""
    yield from _check_durations(policy, path)
    yield from _check_figures(policy, path)
    features = {found.name: found for version in reversed(versions) for found in version.features}
    yield from _check_slices(policy.slices, features, f"{path}.slices")
    yield from _check_groups(policy.fairness_groups, features, f"{path}.fairness_groups")
    labels = [label for version in versions if version.task is Task.CLASSIFICATION for label in version.labels]
    if policy.positive_label and policy.positive_label not in labels:
        known = f"want a label of a version ({_some(labels)})"
        yield Violation(f"{path}.positive_label", f"{known}, got {echo(policy.positive_label)}")


def _check_durations(policy: MonitoringPolicy, path: str) -> Iterator[Violation]:
    for name, value, (least, most), text in (
        ("window_duration", policy.window_us, _WINDOW_RANGE_US, "1 minute to 7 days"),
        ("log_retention", policy.log_retention_us, _RETENTION_RANGE_US, "1 hour to 3,650 days"),
        ("label_retention", policy.label_retention_us, _RETENTION_RANGE_US, "1 hour to 3,650 days"),
    ):
        if not least <= value <= most:
            yield Violation(f"{path}.{name}", f"want {text}, got {value / SECOND_US:g} s")


def _check_figures(policy: MonitoringPolicy, path: str) -> Iterator[Violation]:
    if not 0 <= policy.log_basis_points <= _BASIS_POINTS:
        yield Violation(f"{path}.log_basis_points", f"want 0 to {_BASIS_POINTS}, got {policy.log_basis_points}")
    if not 0 < policy.false_discovery_rate < 1:
        got = policy.false_discovery_rate
        yield Violation(f"{path}.false_discovery_rate", f"want a number above 0 and below 1, got {got:g}")
    for name, value in policy.minimum_effects.items():
        if name not in STATISTICS:
            yield Violation(f"{path}.minimum_effects", f"want names among {', '.join(STATISTICS)}; got {echo(name)}")
        elif not 0 <= value < float("inf"):
            yield Violation(f"{path}.minimum_effects[{name}]", f"want a finite number of at least 0, got {value:g}")


def _check_slices(slices: Sequence[Slice], features: Mapping[str, FeatureInfo], path: str) -> Iterator[Violation]:
    if len(slices) > SLICE_LIMIT:
        yield Violation(path, f"want at most {SLICE_LIMIT}, got {len(slices)}")
    seen: set[str] = set()
    for index, found in enumerate(slices):
        at = f"{path}[{index}]"
        wrong = id_violation(found.name, f"{at}.name")
        if wrong is not None:
            yield wrong
        elif found.name in seen:
            yield Violation(f"{at}.name", f"want each name once, got {echo(found.name)} again")
        seen.add(found.name)
        yield from _check_slice(found, features, at)


def _check_slice(found: Slice, features: Mapping[str, FeatureInfo], path: str) -> Iterator[Violation]:
    feature = features.get(found.feature)
    if feature is None:
        yield _unknown_feature(found.feature, features, path)
        return
    limits = [limit for limit in (found.minimum, found.maximum) if limit is not None]
    if bool(found.values) == bool(limits):
        yield Violation(path, f"want either values or limits, got {'both' if limits else 'neither'}")
    if len(found.values) > SLICE_VALUE_LIMIT:
        yield Violation(f"{path}.values", f"want at most {SLICE_VALUE_LIMIT}, got {len(found.values)}")
    for index, value in enumerate(found.values):
        yield from _check_value(value, feature, f"{path}.values[{index}]")
    if limits and feature.kind not in (FeatureKind.DOUBLE, FeatureKind.INT64):
        yield Violation(path, f"want values, for {found.feature} is no number; got limits")
    if any(limit != limit or abs(limit) == float("inf") for limit in limits):  # noqa: PLR0124 - NaN
        yield Violation(path, "want finite limits, got NaN or an infinity")
    elif len(limits) == 2 and limits[0] >= limits[1]:
        yield Violation(f"{path}.maximum", f"want more than the minimum {limits[0]:g}, got {limits[1]:g}")


def _check_groups(
    groups: Sequence[FairnessGroup], features: Mapping[str, FeatureInfo], path: str
) -> Iterator[Violation]:
    if len(groups) > GROUP_LIMIT:
        yield Violation(path, f"want at most {GROUP_LIMIT}, got {len(groups)}")
    seen: set[str] = set()
    for index, group in enumerate(groups):
        at = f"{path}[{index}]"
        feature = features.get(group.feature)
        if feature is None:
            yield _unknown_feature(group.feature, features, at)
        elif group.feature in seen:
            yield Violation(f"{at}.feature", f"want each feature once, got {echo(group.feature)} again")
        elif group.reference is not None:
            yield from _check_value(group.reference, feature, f"{at}.reference_value")
        seen.add(group.feature)
        if group.minimum_count < 1:
            yield Violation(f"{at}.minimum_count", f"want at least 0 (0 = 100), got {group.minimum_count}")


def _check_value(value: Scalar, feature: FeatureInfo, path: str) -> Iterator[Violation]:
    fits = isinstance(value, _TYPES[feature.kind]) and (feature.kind is FeatureKind.BOOL or not isinstance(value, bool))
    if not fits:
        want = f"want a value of type {feature.kind}, as {feature.name} is"
        yield Violation(path, f"{want}; got {type(value).__name__} {echo(str(value))}")


def _unknown_feature(name: str, features: Collection[str], path: str) -> Violation:
    return Violation(f"{path}.feature", f"want a feature of a version ({_some(features)}), got {echo(name)}")


def _some(names: Iterable[str]) -> str:
    found = sorted(set(names))
    return ", ".join(found[:10]) + (", ..." if len(found) > 10 else "") if found else "there is none"
