"""Whether one feature of a signature is sound: its type, column, limits, default and policies fit each other."""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

from services.common.errors import Violation, echo
from services.common.text_check import check_text
from services.registry.domain.signature import (
    DataType,
    FeatureSpec,
    FeatureType,
    Kind,
    MissingPolicy,
    Scalar,
    TensorSpec,
    ViolationPolicy,
)

ALLOWED_LIMIT: Final = 10_000
DESCRIPTION_LIMIT_CHARS: Final = 1_000
VALUE_LIMIT_CHARS: Final = 1_000
_SOURCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_FITS: Final = {
    FeatureType.DOUBLE: (Kind.FLOAT,),
    FeatureType.INT64: (Kind.WHOLE, Kind.FLOAT),
    FeatureType.STRING: (Kind.TEXT,),
    FeatureType.BOOL: (Kind.BOOL, Kind.WHOLE, Kind.FLOAT),
}

Violations = Iterator[Violation]


def check_feature(feature: FeatureSpec, target: TensorSpec | None, path: str) -> Violations:
    """Yield what is wrong with one feature beside its name; `target` is its input tensor, None when there is none."""
    yield from check_text(feature.description, f"{path}.description", DESCRIPTION_LIMIT_CHARS)
    yield from _check_source(feature, path)
    yield from _check_policies(feature, path)
    if target is not None:
        yield from _check_column(feature, target, path)
    if feature.type is None:
        yield Violation(f"{path}.type", "want DOUBLE, INT64, STRING or BOOL, got none of them")
        return
    data_type = None if target is None else target.data_type
    if data_type is not None and data_type.kind not in _FITS[feature.type]:
        yield Violation(f"{path}.tensor", f"want a tensor that takes {feature.type.value}, got {data_type.value}")
        data_type = None
    yield from _check_limits(feature, path)
    yield from _check_values(feature, feature.type, data_type, path)
    yield from _check_stand_in(feature, data_type, path)


def _check_source(feature: FeatureSpec, path: str) -> Violations:
    if feature.fetched and (not _SOURCE.fullmatch(feature.source) or ".." in feature.source):
        yield Violation(f"{path}.source", f'want "request" or "<view>.<feature>", got {echo(feature.source)}')
    if feature.max_age is None:
        return
    if not feature.fetched:
        yield Violation(f"{path}.max_age", "want none for a feature that comes with the request")
    elif feature.max_age <= timedelta():
        yield Violation(f"{path}.max_age", f"want more than 0 s, got {feature.max_age.total_seconds():g} s")


def _check_policies(feature: FeatureSpec, path: str) -> Violations:
    if feature.violation_policy is None:
        yield Violation(f"{path}.violation_policy", "want REFUSE, FLAG or CLIP, got none of them")
    if feature.missing_policy is None:
        yield Violation(f"{path}.missing_policy", "want REFUSE, DEFAULT or FALLBACK, got none of them")
    if feature.violation_policy is ViolationPolicy.CLIP and feature.minimum is None and feature.maximum is None:
        yield Violation(f"{path}.violation_policy", "want a minimum or maximum to clip to, got neither")


def _check_column(feature: FeatureSpec, target: TensorSpec, path: str) -> Violations:
    columns = target.shape[1] if len(target.shape) == 2 else 0
    if columns < 1:
        yield Violation(
            f"{path}.tensor",
            f"want a tensor of the shape [-1, columns], got {echo(target.name)} of {list(target.shape)}",
        )
    elif not 0 <= feature.column < columns:
        yield Violation(f"{path}.column", f"want 0 to {columns - 1}, got {feature.column}")


def _check_limits(feature: FeatureSpec, path: str) -> Violations:
    given = {"minimum": feature.minimum, "maximum": feature.maximum}
    for name, limit in given.items():
        if limit is None:
            continue
        if feature.type is None or not feature.type.numeric:
            yield Violation(f"{path}.{name}", f"want none unless the feature is a number, got {limit:g}")
        elif not math.isfinite(limit):
            yield Violation(f"{path}.{name}", f"want a finite number, got {limit:g}")
    if feature.minimum is not None and feature.maximum is not None and feature.minimum > feature.maximum:
        yield Violation(f"{path}.minimum", f"want at most the maximum {feature.maximum:g}, got {feature.minimum:g}")


def _check_values(feature: FeatureSpec, kind: FeatureType, data_type: DataType | None, path: str) -> Violations:
    """Every legal value must have the feature's type, lie in its limits and fit into its column."""
    if len(feature.allowed) > ALLOWED_LIMIT:
        yield Violation(f"{path}.allowed_values", f"want at most {ALLOWED_LIMIT}, got {len(feature.allowed)}")
        return
    for index, value in enumerate(feature.allowed):
        yield from _check_value(value, feature, kind, data_type, f"{path}.allowed_values[{index}]")
    if len(set(feature.allowed)) < len(feature.allowed):
        yield Violation(f"{path}.allowed_values", "want each value once, got one of them again")
    if feature.default is not None or feature.illegal_default:
        yield from _check_default(feature, kind, data_type, f"{path}.default_value")


def _check_default(feature: FeatureSpec, kind: FeatureType, data_type: DataType | None, path: str) -> Violations:
    yield from _check_value(feature.default, feature, kind, data_type, path)
    if feature.default is not None and feature.allowed and feature.default not in feature.allowed:
        yield Violation(path, f"want one of the allowed values, got {describe(feature.default)}")


def _check_value(
    value: Scalar | None, feature: FeatureSpec, kind: FeatureType, data_type: DataType | None, path: str
) -> Violations:
    if value is None or not _has_type(value, kind):
        yield Violation(path, f"want a single {kind.value} value, got {describe(value)}")
    elif isinstance(value, str):
        yield from check_text(value, path, VALUE_LIMIT_CHARS)
    elif kind.numeric:
        yield from _check_number(value, feature, data_type, path)


def _has_type(value: Scalar, kind: FeatureType) -> bool:
    # bool is an int in Python, so the truth values go first.
    if isinstance(value, bool):
        return kind is FeatureType.BOOL
    if isinstance(value, str):
        return kind is FeatureType.STRING
    if isinstance(value, int):
        return kind.numeric
    return kind is FeatureType.DOUBLE or (kind is FeatureType.INT64 and value.is_integer())


def _check_number(value: float, feature: FeatureSpec, data_type: DataType | None, path: str) -> Violations:
    if not math.isfinite(value):
        yield Violation(path, f"want a finite number, got {value:g}")
        return
    low, high = _bounds(feature)
    if not low <= value <= high:
        yield Violation(path, f"want a number from {low:g} to {high:g}, got {value:g}")
    if data_type is not None and data_type.kind in (Kind.WHOLE, Kind.FLOAT):
        lowest, highest = data_type.limits()
        if not lowest <= value <= highest:
            yield Violation(path, f"want a number that fits into {data_type.value}, got {value:g}")


def _bounds(feature: FeatureSpec) -> tuple[float, float]:
    low = -math.inf if feature.minimum is None else feature.minimum
    high = math.inf if feature.maximum is None else feature.maximum
    return low, high


def _check_stand_in(feature: FeatureSpec, data_type: DataType | None, path: str) -> Violations:
    """Say where a default value is needed and is not there."""
    if feature.default is not None or feature.illegal_default:
        return
    has_null = feature.nullable and data_type is not None and data_type.kind is Kind.FLOAT
    if feature.missing_policy is MissingPolicy.DEFAULT and not has_null:
        yield Violation(
            f"{path}.default_value", "want a value for when none comes, as missing_policy says; got nothing"
        )
    if feature.nullable and data_type is not None and data_type.kind is not Kind.FLOAT:
        yield Violation(f"{path}.default_value", f"want a value for null, as {data_type.value} has no NaN; got nothing")


def describe(value: Scalar | Sequence[object] | None) -> str:
    """Return a value as it may stand in a message."""
    if value is None:
        return "null, a list or nothing"
    return echo(value) if isinstance(value, str) else str(value)
