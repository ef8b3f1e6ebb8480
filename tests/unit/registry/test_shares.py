"""Shares of the traffic: nobody gains when a newcomer gets something."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.domain.bucket import BUCKET_COUNT
from services.registry.domain.resource import Deployment, DeviceClass, Variant
from services.registry.domain.route_check import VARIANT_LIMIT
from services.registry.domain.traffic import give_weight, place, room_for, shrink, variant_name
from tests.unit.registry.builders import NOW


def deployment(name: str, version: int = 3) -> Deployment:
    return Deployment(
        name=f"deployments/{name}",
        model_version=f"models/m/versions/{version}",
        environment="production",
        pool="default",
        replicas=1,
        device_class=DeviceClass.CPU,
        batching=None,
        pending_weight=None,
        creator="local",
        create_time=NOW,
        update_time=NOW,
        etag="1",
    )


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=3), st.integers(0, BUCKET_COUNT), min_size=1, max_size=6), st.data())
def test_shrinking_is_exact_and_nobody_grows(weights: dict[str, int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(weights.values())))
    found = shrink(weights, total)
    assert sum(found.values()) == total
    assert list(found) == list(weights)
    for name, weight in weights.items():
        assert 0 <= found[name] <= weight
        assert abs(found[name] * sum(weights.values()) - weight * total) < max(1, sum(weights.values()))


def test_shrinking_to_more_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="0 to 10, got 11"):
        shrink({"a": 10}, 11)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, BUCKET_COUNT), min_size=1, max_size=10))
def test_newcomers_get_what_they_were_promised(shares: list[int]) -> None:
    variants: tuple[Variant, ...] = ()
    for number, share in enumerate(shares):
        alone = not any(variant.weight for variant in variants)
        variants = give_weight(variants, Variant(f"v{number}", f"deployments/d{number}", share))
        assert sum(variant.weight for variant in variants) == BUCKET_COUNT
        assert variants[-1].weight == (BUCKET_COUNT if alone else share)


def test_a_variant_that_is_there_keeps_its_name_and_deployment() -> None:
    held = place((), (Variant("arm", "deployments/a", 10_000), Variant("spare", "deployments/b", 0)))
    found = give_weight(held, Variant("spare", "deployments/b", 2_500))
    assert [(each.name, each.deployment, each.weight) for each in found] == [
        ("arm", "deployments/a", 7_500),
        ("spare", "deployments/b", 2_500),
    ]


def test_a_variant_is_called_by_its_version_unless_that_is_taken() -> None:
    assert variant_name(deployment("d"), []) == "3"
    assert variant_name(deployment("d"), ["3"]) == "d"
    assert variant_name(deployment("d"), ["3", "D"]) == "3-2"
    assert variant_name(deployment("d"), ["3", "d", "3-2"]) == "3-3"


def test_a_full_route_makes_room_by_dropping_what_has_no_weight() -> None:
    full = tuple(Variant(f"v{number}", f"deployments/d{number}", 1) for number in range(VARIANT_LIMIT))
    assert room_for(deployment("new"), full) is None
    assert room_for(deployment("d3"), full) == full
    spare = (*full[1:], Variant("spare", "deployments/spare", 0))
    assert room_for(deployment("new"), spare) == full[1:]
