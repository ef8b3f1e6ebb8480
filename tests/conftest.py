"""What every tier shares: the folder decides the marker."""

from pathlib import Path

import pytest

TIERS = {"unit", "integration", "contract", "e2e"}
ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ROOT not in item.path.parents:
            continue
        tier = item.path.relative_to(ROOT).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
