"""The database of a service, when callers go away."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.common.database import Database

# Counts for longer than the test may take.
LONG = text("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100000000) SELECT max(x) FROM n")


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
