"""What every tier shares: the folder decides the marker, and which tests may run beside each other; one Postgres."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.inference.worker.limits import usual_scheduling
from tests.fakes.registry_postgres import Postgres, postgres_server

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


@pytest.fixture(autouse=True, scope="module")
def leaves_the_usual_class() -> Iterator[None]:
    """Leave the class in which `door_turns` may have left this process: what other tests start would inherit it."""
    yield
    usual_scheduling()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all whose databases may live beside others'."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A fresh database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'database.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex}"
    yield await server.create_database(name)
    await server.drop_database(name)
