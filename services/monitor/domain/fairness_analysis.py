"""Fairness of a version, from windows and what labels say about them."""

from collections.abc import Sequence

from services.monitor.domain.batch_view import MISSING_GROUP
from services.monitor.domain.column_form import form_of
from services.monitor.domain.fairness import measure_fairness
from services.monitor.domain.policy import FairnessGroup
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.report import FeatureFairness
from services.monitor.domain.scope import Scope
from services.monitor.domain.version_info import FeatureKind, VersionInfo
from services.monitor.domain.window import Groups, WindowSketch, merge_groups
from services.monitor.domain.window_series import Placed


def measure_groups(
    windows: Sequence[Placed[WindowSketch]], labelled: Sequence[Placed[QualityWindow]], scope: Scope
) -> list[FeatureFairness]:
    """Return the groups of each feature that the policy declares, in its order; a missing value is no group."""
    groups: Groups = {}
    for placed in windows:
        merge_groups(groups, placed.window.groups)
    for found in labelled:
        merge_groups(groups, found.window.groups)
    return [
        FeatureFairness(
            declared.feature,
            measure_fairness(
                {name: counts for name, counts in groups.get(declared.feature, {}).items() if name != MISSING_GROUP},
                group_name(declared, scope.info),
                declared.minimum_count,
            ),
        )
        for declared in scope.policy.fairness_groups
    ]


def group_name(group: FairnessGroup, info: VersionInfo) -> str | None:
    """Return the reference group under the name that its predictions are counted under; None: the largest."""
    value, feature = group.reference, info.feature(group.feature)
    if value is None or feature is None:
        return None
    if feature.kind is FeatureKind.BOOL:
        forms = form_of(info, len(info.features) + len(info.labels) + 1).features
        return forms[feature.name].truth_words[bool(value)]
    return value if isinstance(value, str) else f"{float(value):g}"
