"""Brings the database to the tables of this release, once, whoever starts at the same time."""

from pathlib import Path
from typing import Final

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.adapters.database import Database

_LOG: Final = structlog.get_logger(part="migration")
_FOLDER: Final = Path(__file__).parent / "migrations"
# Any number that nothing else in the database uses.
_LOCK_KEY: Final = 0x696E7465


async def migrate(database: Database) -> None:
    """Run the migrations that are missing, all in one transaction: a crash in the middle leaves nothing behind.

    On SQLite the transaction itself is the lock, on Postgres an advisory one. A database that a newer release has
    migrated already stays as it is: migrations only add.
    """
    async with database.write() as connection:
        if not database.is_sqlite:
            await _lock(connection)
        await connection.run_sync(_upgrade)


async def _lock(connection: AsyncConnection) -> None:
    # Another process may take longer over its migrations than a statement may.
    await connection.execute(text("SET LOCAL statement_timeout = 0"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        _LOG.warning("database_is_newer", revision=current)
        return
    command.upgrade(config, "head")
