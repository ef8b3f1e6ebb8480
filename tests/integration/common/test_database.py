"""The database of a service, when callers go away."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.common.database import Database

# Counts for longer than the test may take.
COUNT = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {}) SELECT max(x) FROM n"
LONG = text(COUNT.format(100_000_000))
SHORT = text(COUNT.format(300_000))


async def test_what_a_cancelled_statement_leaves_behind_is_closed_with_the_database(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}", service="test")
    begun = asyncio.Event()
    drivers: list[Any] = []

    async def ask() -> None:
        async with database.read() as connection:
            drivers.append((await connection.get_raw_connection()).driver_connection)
            begun.set()
            await connection.execute(LONG)

    asked = asyncio.ensure_future(ask())
    await begun.wait()
    for _ in range(2):
        await asyncio.sleep(0.01)
        asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await database.close()
    (driver,) = drivers
    with pytest.raises(ValueError, match="no active connection"):
        await driver.execute("SELECT 1")


async def test_a_writer_that_is_cancelled_in_a_statement_gives_up_its_lock_while_its_cursor_lives(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}", service="test", statement_timeout_s=3)
    begun = asyncio.Event()
    held: list[Any] = []

    async def write() -> None:
        async with database.write() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            held.append(await driver.execute("SELECT 1 UNION SELECT 2"))
            begun.set()
            await connection.execute(SHORT)

    written = asyncio.ensure_future(write())
    await begun.wait()
    await asyncio.sleep(0)
    written.cancel()
    with pytest.raises(asyncio.CancelledError):
        await written
    async with database.write() as connection:
        await connection.exec_driver_sql("CREATE TABLE t (a INTEGER)")
    await database.close()
