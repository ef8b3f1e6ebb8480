"""Brings a service's database to the tables of this release, once, whoever starts at the same time.

A service keeps its migrations in a folder with Alembic's `env.py`, which calls `run_migrations`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database

_LOG: Final = structlog.get_logger(part="migration")
_VERSION_TABLE: Final = "alembic_version"
# Any number that nothing else in the database uses.
_LOCK_KEY: Final = 0x696E7465


@asynccontextmanager
async def open_database(
    url: str, folder: Path, *, service: str, statement_timeout_s: float, version_table: str = _VERSION_TABLE
) -> AsyncIterator[Database]:
    """Open a service's database and bring it to the migrations in `folder`; closes it when the block ends.

    The folder of an SQLite file is made.
    """
    database = Database(url, service=service, statement_timeout_s=statement_timeout_s)
    if database.is_sqlite and database.url.database:
        Path(database.url.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        await migrate(database, folder, version_table=version_table)
        yield database
    finally:
        await database.close()


async def migrate(database: Database, folder: Path, *, version_table: str = _VERSION_TABLE) -> None:
    """Run the migrations of a folder that are missing, all in one transaction: a crash in it leaves nothing behind.

    Services that share a database keep their own `version_table`. On SQLite the transaction itself is the lock, on Postgres an advisory one. A database that a newer release has
    migrated already stays as it is: migrations only add.
    """
    async with database.write() as connection:
        if not database.is_sqlite:
            await _lock(connection)
        await connection.run_sync(_upgrade, folder, version_table)


async def _lock(connection: AsyncConnection) -> None:
    # Another process may take longer over its migrations than a statement may.
    await connection.execute(text("SET LOCAL statement_timeout = 0"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def run_migrations(metadata: MetaData) -> None:
    """Run, inside Alembic's `env.py`, what `migrate` asked for."""
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"], version_table=attributes["version_table"], target_metadata=metadata
    )
    with context.begin_transaction():
        context.run_migrations()


def _upgrade(connection: Connection, folder: Path, version_table: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=version_table)
    options = {"version_table": version_table}
    current = MigrationContext.configure(connection, opts=options).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        _LOG.warning("database_is_newer", revision=current)
        return
    command.upgrade(config, "head")
