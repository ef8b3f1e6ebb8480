"""The database adapter by itself: a full disk, a locked file, a server that is not there."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from services.common.database import Database
from services.common.migration import migrate
from services.common.storage_failure import DatabaseUnavailable, StorageFull
from services.registry.adapters.bell import Bell
from services.registry.adapters.migrations import MIGRATIONS
from services.registry.adapters.sql_store import SqlStore
from services.registry.domain.audit import Author
from services.registry.domain.catalog import create_model
from services.registry.domain.ports import Selection
from services.registry.domain.resource import Model

AUTHOR = Author("test", "CreateModel", "call-1")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = Database(f"sqlite:///{tmp_path / 'registry.db'}", service="registry", statement_timeout_s=0.2)
    await migrate(found, MIGRATIONS)
    yield found
    await found.close()


@pytest.fixture
async def store(database: Database) -> SqlStore:
    found = SqlStore(database, Bell())
    await found.begin()
    return found


async def add(store: SqlStore, name: str, description: str = "") -> None:
    async with store.change(AUTHOR) as change:
        await create_model(change, f"models/{name}", {"description": description})


async def names(store: SqlStore) -> list[str]:
    async with store.view() as view:
        return [model.name for model in await view.list(Model, Selection())]


async def limit_pages(database: Database, count: int) -> None:
    async with database.write() as connection:
        await connection.exec_driver_sql(f"PRAGMA max_page_count={count}")


async def test_a_full_disk_refuses_writes_keeps_reads_and_recovers(database: Database, store: SqlStore) -> None:
    await add(store, "first")
    await limit_pages(database, 1)
    with pytest.raises(StorageFull):
        await add(store, "second", "d" * 200_000)
    assert await names(store) == ["models/first"]
    await limit_pages(database, 100_000)
    await add(store, "second", "d" * 200_000)
    assert await names(store) == ["models/first", "models/second"]


async def test_a_file_that_another_process_holds_is_unavailable_and_not_locked(
    database: Database, store: SqlStore
) -> None:
    other = Database(str(database.url), service="registry")
    try:
        async with other.write():
            with pytest.raises(DatabaseUnavailable) as caught:
                await add(store, "fraud")
            assert "locked" not in caught.value.message
            assert await names(store) == [], "reading does not wait for a writer"
        await add(store, "fraud")
    finally:
        await other.close()


async def test_a_change_that_fails_leaves_nothing(store: SqlStore) -> None:
    async def change_and_fail() -> None:
        async with store.change(AUTHOR) as change:
            await create_model(change, "models/fraud", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await change_and_fail()
    assert await names(store) == []
    assert await store.audit_entries("", 0, 10) == []
    assert (await store.audit_head()).sequence == 0


async def test_a_change_that_is_cancelled_leaves_nothing(store: SqlStore) -> None:
    inside = asyncio.Event()

    async def change_slowly() -> None:
        async with store.change(AUTHOR) as change:
            await create_model(change, "models/fraud", {})
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(change_slowly())
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await names(store) == []
    await add(store, "fraud")


async def test_sqlite_is_opened_to_survive_a_crash(database: Database) -> None:
    async with database.write() as connection:
        assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert await connection.scalar(text("PRAGMA synchronous")) == 2


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"postgresql://postgres@/postgres?host={tmp_path}", service="registry", statement_timeout_s=1)
    try:
        with pytest.raises(DatabaseUnavailable):
            async with database.read():
                pass
    finally:
        await database.close()


async def test_time_never_falls_from_one_change_to_the_next(store: SqlStore) -> None:
    seen = []
    for number in range(20):
        async with store.change(AUTHOR) as change:
            await create_model(change, f"models/m{number}", {})
            seen.append(change.now)
    assert seen == sorted(set(seen))
