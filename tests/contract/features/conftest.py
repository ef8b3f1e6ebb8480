"""The suite of definitions runs whole on each database, beside a real registry."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.features_service import Features, running_features
from tests.fakes.registry_service import Registry, running_registry, short_folder


@pytest.fixture
async def features_address() -> AsyncIterator[str]:
    with short_folder() as folder:
        yield f"unix:{folder / 'features.sock'}"


@pytest.fixture
async def registry(database_url: str, features_address: str, tmp_path: Path) -> AsyncIterator[Registry]:
    async with running_registry(tmp_path / "registry", database_url, features_address=features_address) as running:
        yield running


@pytest.fixture
async def features(
    database_url: str, features_address: str, registry: Registry, tmp_path: Path
) -> AsyncIterator[Features]:
    async with running_features(
        tmp_path / "features",
        address=features_address,
        features_database_url=database_url,
        registry_address=registry.address,
    ) as running:
        yield running
