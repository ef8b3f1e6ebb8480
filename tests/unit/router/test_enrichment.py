"""What becomes of a row whose fetched values are there, missing, old or null, under each policy."""

import math
import struct
from typing import Any

import pytest

from services.common.errors import ServiceError
from services.router.domain.enrichment import (
    FallsBack,
    FeatureFailurePolicy,
    FeatureStatus,
    FetchedRow,
    Missing,
    MissingReason,
    fill,
)
from services.router.domain.failure import FeaturesMissing, FeaturesUnavailable, InvalidFeatures
from services.router.domain.plan import Plan, compile_plan
from services.router.domain.signature import (
    FeatureSpec,
    FeatureType,
    MissingPolicy,
    PredictionSpec,
    Signature,
    TensorSpec,
)

PRESENT, STALE, GONE = FeatureStatus.PRESENT, FeatureStatus.STALE, FeatureStatus.MISSING
SIGNATURE = FeatureFailurePolicy.SIGNATURE
REFUSE, DEFAULT, FALLBACK = MissingPolicy.REFUSE, MissingPolicy.DEFAULT, MissingPolicy.FALLBACK


def plan_of(*fetched: dict[str, Any], **request: Any) -> Plan:
    """One feature of the request in column 0, and fetched ones f1, f2... behind it."""
    double = FeatureType.DOUBLE
    features = [FeatureSpec(name="r", type=double, tensor="x", column=0, **request)]
    features += [
        FeatureSpec(name=f"f{place}", type=double, tensor="x", column=place, source=f"view.f{place}", **rest)
        for place, rest in enumerate(fetched, 1)
    ]
    tensor = TensorSpec("x", "FP64", (-1, len(features)))
    output = TensorSpec("y", "FP64", (-1, 1))
    return compile_plan(Signature((tensor,), (output,), tuple(features), PredictionSpec("y")))


def row_of(*found: tuple[object, FeatureStatus, int]) -> FetchedRow:
    values, statuses, ages = zip(*found, strict=True)
    return FetchedRow(values, statuses, ages, tuple(0 for _ in values), 1)


def filled(
    plan: Plan, row: FetchedRow | None, policy: FeatureFailurePolicy = SIGNATURE
) -> tuple[tuple[float, ...], Missing]:
    found = fill(plan, plan.draft({"r": 1.0}), row, policy)
    return struct.unpack(f"<{1 + len(plan.fetched)}d", found.encoded.chunks[0]), found.missing


def test_present_values_take_their_columns_in_the_order_of_the_signature() -> None:
    row = row_of((2, PRESENT, 0), (3.5, PRESENT, 10**9))
    assert filled(plan_of({}, {}), row) == ((1.0, 2.0, 3.5), {})


@pytest.mark.parametrize(
    ("value", "status", "age_ms", "missing"),
    [
        (2.0, PRESENT, 5_000, None),
        (2.0, PRESENT, 5_001, MissingReason.STALE),
        (2.0, STALE, 1, MissingReason.STALE),
        (None, GONE, -1, MissingReason.ABSENT),
        # A view may have a default of its own for what is missing; the signature's decides.
        (2.0, GONE, -1, MissingReason.ABSENT),
        (None, PRESENT, 1, MissingReason.ABSENT),
    ],
)
def test_what_counts_as_missing(
    value: object, status: FeatureStatus, age_ms: int, missing: MissingReason | None
) -> None:
    plan = plan_of({"missing": DEFAULT, "default": 9.0, "max_age_s": 5.0})
    values, found = filled(plan, row_of((value, status, age_ms)))
    assert (values[1], found) == ((9.0, {"f1": missing}) if missing else (2.0, {}))


def test_null_is_a_value_where_the_signature_allows_it() -> None:
    values, names = filled(plan_of({"nullable": True}), row_of((None, PRESENT, 1)))
    assert (math.isnan(values[1]), names) == (True, {})


def test_refusal_goes_before_fallback_and_lists_all_that_is_refused() -> None:
    plan = plan_of({"missing": FALLBACK}, {}, {"missing": DEFAULT, "default": 1.0}, {})
    with pytest.raises(FeaturesMissing) as caught:
        filled(plan, row_of(*[(None, GONE, -1)] * 4))
    assert [found.field for found in caught.value.violations] == ["features.f2", "features.f4"]


def test_fallback_goes_before_default_and_knows_all_that_is_missing() -> None:
    plan = plan_of({"missing": FALLBACK}, {"missing": DEFAULT, "default": 1.0}, {})
    with pytest.raises(FallsBack) as caught:
        filled(plan, row_of((None, GONE, -1), (None, GONE, -1), (1.0, PRESENT, 0)))
    assert isinstance(caught.value.error, FeaturesMissing)
    assert caught.value.missing == {"f1": MissingReason.ABSENT, "f2": MissingReason.ABSENT}


def test_a_request_value_may_fall_back_too() -> None:
    plan = plan_of(missing=FALLBACK)
    assert not plan.plain
    with pytest.raises(FallsBack) as caught:
        fill(plan, plan.draft({}), None, SIGNATURE)
    assert isinstance(caught.value.error, InvalidFeatures)
    assert caught.value.missing == {}


UNAVAILABLE, FALLS, STANDS_IN = FeaturesUnavailable, FallsBack, None
SILENT = [
    (SIGNATURE, REFUSE, UNAVAILABLE),
    (SIGNATURE, DEFAULT, STANDS_IN),
    (SIGNATURE, FALLBACK, FALLS),
    *((FeatureFailurePolicy.REFUSE, policy, UNAVAILABLE) for policy in MissingPolicy),
    *((FeatureFailurePolicy.DEFAULTS, policy, STANDS_IN) for policy in MissingPolicy),
    *((FeatureFailurePolicy.FALLBACK, policy, FALLS) for policy in MissingPolicy),
]


@pytest.mark.parametrize(("route", "signature", "outcome"), SILENT)
def test_the_route_s_word_goes_before_the_signature_s_when_the_service_is_silent(
    route: FeatureFailurePolicy, signature: MissingPolicy, outcome: type[Exception] | None
) -> None:
    plan = plan_of({"missing": signature, "default": 4.0})
    if outcome is None:
        assert filled(plan, None, route) == ((1.0, 4.0), {"f1": MissingReason.UNAVAILABLE})
        return
    with pytest.raises(outcome) as caught:
        filled(plan, None, route)
    if isinstance(caught.value, FallsBack):
        assert isinstance(caught.value.error, FeaturesUnavailable)


def test_the_route_s_word_counts_only_when_the_service_is_silent() -> None:
    plan = plan_of({"missing": DEFAULT, "default": 4.0})
    assert filled(plan, row_of((None, GONE, -1)), FeatureFailurePolicy.REFUSE)[0] == (1.0, 4.0)


def test_without_a_declared_default_nothing_stands_in() -> None:
    with pytest.raises(FeaturesUnavailable):
        filled(plan_of({}), None, FeatureFailurePolicy.DEFAULTS)


def test_a_fetched_value_of_the_wrong_type_or_range_is_refused_by_name_and_source() -> None:
    plan = plan_of({"maximum": 5.0}, {})
    with pytest.raises(ServiceError) as caught:
        filled(plan, row_of((6.0, PRESENT, 0), ("x", PRESENT, 0)))
    assert [found.description for found in caught.value.violations] == [
        "want a number of at most 5, got 6.0 from view.f1",
        'want a number, got the text "x" from view.f2',
    ]
