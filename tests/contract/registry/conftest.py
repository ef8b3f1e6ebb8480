"""The contract suite runs whole on each database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.registry_service import Registry, running_registry


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    async with running_registry(tmp_path, database_url) as running:
        yield running
