"""What every tier shares: the folder decides the marker, and which tests may run beside each other."""

from pathlib import Path

import pytest

TIERS = {"unit", "integration", "contract", "e2e"}
ROOT = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ROOT not in item.path.parents:
            continue
        tier = item.path.relative_to(ROOT).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
        # The tests of a file share what they started; those end to end share whole stacks.
        item.add_marker(pytest.mark.xdist_group(tier if tier == "e2e" else str(item.path)))
    # The longest group begins first: begun last, it would run alone while the other processes had nothing left.
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
