"""Whether the values of a route are sound, whatever is deployed."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.common import names
from services.common.errors import Violation, echo
from services.registry.domain.bucket import BUCKET_COUNT
from services.registry.domain.resource import FallbackRung, Variant
from services.registry.domain.signature_check import FEATURE_NAME_RULE, is_feature_name

VARIANT_LIMIT: Final = 32
RUNG_LIMIT: Final = 8
REDACTED_LIMIT: Final = 500


def check_variants(variants: Sequence[Variant], path: str) -> list[Violation]:
    """Return what is wrong with the variants of a route, whatever is deployed; an empty name is given one later."""
    if not 1 <= len(variants) <= VARIANT_LIMIT:
        return [Violation(path, f"want 1 to {VARIANT_LIMIT}, got {len(variants)}")]
    found = [wrong for index, variant in enumerate(variants) for wrong in _check_variant(variant, f"{path}[{index}]")]
    for name, count in Counter(variant.name.lower() for variant in variants if variant.name).items():
        if count > 1:
            found.append(Violation(path, f"want names that differ in more than case, got {echo(name)} {count} times"))
    total = sum(variant.weight for variant in variants)
    if total != BUCKET_COUNT:
        found.append(Violation(path, f"want weights that add up to {BUCKET_COUNT}, got {total}"))
    return found


def check_route_values(values: Mapping[str, Any], path: str) -> list[Violation]:
    """Return what is wrong with the values of a route, by field name, whatever is deployed."""
    wrong = check_variants(values["variants"], f"{path}.variants") if "variants" in values else []
    wrong += _check_fallback(values.get("fallback", ()), f"{path}.fallback.rungs")
    return wrong + _check_redacted(values.get("redacted_features", ()), f"{path}.redacted_features")


def _check_fallback(rungs: Sequence[FallbackRung], path: str) -> list[Violation]:
    if len(rungs) > RUNG_LIMIT:
        return [Violation(path, f"want at most {RUNG_LIMIT}, got {len(rungs)}")]
    found: list[Violation | None] = []
    for index, rung in enumerate(rungs):
        at = f"{path}[{index}]"
        if rung.static_prediction is None:
            found.append(names.DEPLOYMENT.violation(rung.deployment, f"{at}.deployment"))
        elif not math.isfinite(rung.static_prediction):
            found.append(Violation(f"{at}.static_prediction", f"want a finite number, got {rung.static_prediction:g}"))
    return [wrong for wrong in found if wrong is not None]


def _check_redacted(features: Sequence[str], path: str) -> list[Violation]:
    if len(features) > REDACTED_LIMIT:
        return [Violation(path, f"want at most {REDACTED_LIMIT}, got {len(features)}")]
    wrong = [
        Violation(f"{path}[{index}]", f"want {FEATURE_NAME_RULE}; got {echo(feature)}")
        for index, feature in enumerate(features)
        if not is_feature_name(feature)
    ]
    if len(set(features)) < len(features):
        wrong.append(Violation(path, "want each feature once, got one of them again"))
    return wrong


def _check_variant(variant: Variant, path: str) -> list[Violation]:
    wrong = [names.DEPLOYMENT.violation(variant.deployment, f"{path}.deployment")]
    if variant.name:
        wrong.append(names.id_violation(variant.name, f"{path}.name"))
    if not 0 <= variant.weight <= BUCKET_COUNT:
        want = f"want 0 to {BUCKET_COUNT}, got {variant.weight}"
        wrong.append(Violation(f"{path}.weight_basis_points", want))
    return [violation for violation in wrong if violation is not None]
