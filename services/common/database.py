"""The database behind a service: SQLite or Postgres, one writer at a time, failures in words for callers.

Time is the database's: the server's clock on Postgres, the host's on SQLite, which has none of its own.
"""

import asyncio
import sqlite3
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from importlib import import_module
from typing import Any, Final

import structlog
from sqlalchemy import Connection, String, Table, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.storage_failure import DatabaseUnavailable, StorageFull

# Names sort by bytes in every database, whatever its locale.
TEXT: Final = String().with_variant(String(collation="C"), "postgresql")
_LOG: Final = structlog.get_logger(part="database")
_READERS: Final = 8
_LAST_CLOSE_S: Final = 1.0
_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_FULL_TEXTS: Final = ("database or disk is full", "No space left on device")
_DISK_FULL_SQLSTATE: Final = "53100"


class Database:
    """Connections to one database: `read` for a consistent state, `write` for a transaction that nobody interferes with.

    `service` is whose database it is, for failures and for the server's list of sessions. Statements, locks and free
    connections are waited for `statement_timeout_s` seconds.
    """

    def __init__(self, url: str, *, service: str, statement_timeout_s: float = 5.0) -> None:
        self.url = async_url(url)
        self._service = service
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._writing = asyncio.Lock()
        timeout_ms = round(statement_timeout_s * 1000)
        self._drivers: weakref.WeakSet[Any] = weakref.WeakSet()
        if self.is_sqlite:
            self._readers = _sqlite_engine(self.url, "BEGIN", _READERS, timeout_ms, self._drivers)
            self._writer = _sqlite_engine(self.url, "BEGIN IMMEDIATE", 1, timeout_ms, self._drivers)
        else:
            self._readers = self._writer = _postgres_engine(self.url, timeout_ms, service)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a consistent state to read from."""
        async with _in_our_words(self._service), AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self._readers.connect())
            if not self.is_sqlite:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            await stack.enter_async_context(connection.begin())
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction; it commits when the block ends without an error. Writers of this process queue here."""
        async with _in_our_words(self._service), self._writing, self._writer.begin() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """Return an INSERT of this database's dialect, which can also say `on_conflict_do_update`."""
        # Its engine has imported it; the other one would be 40 ms of every start.
        return import_module(f"sqlalchemy.dialects.{self.url.get_backend_name()}").insert(table)

    async def now_us(self, connection: AsyncConnection) -> int:
        """Return the time in microseconds since 1970."""
        if self.is_sqlite:
            return time.time_ns() // 1000
        stamp = await connection.scalar(select(func.floor(func.extract("epoch", func.clock_timestamp()) * 1_000_000)))
        return int(stamp or 0)

    async def close(self) -> None:
        """Close all connections."""
        await self._readers.dispose()
        await self._writer.dispose()
        # A caller who went away in the middle of a statement has left a connection to be closed in the background. Its
        # statement is cut off first: the driver waits for ever when its end is awaited twice and the loop ends meanwhile.
        for driver in list(self._drivers):
            with suppress(TimeoutError, ValueError):  # ValueError: closed already
                await driver.interrupt()
                async with asyncio.timeout(_LAST_CLOSE_S):
                    await driver.close()


def async_url(text: str) -> URL:
    """Return a URL with the driver that this project uses for its kind of database."""
    url = make_url(text)
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def _postgres_engine(url: URL, timeout_ms: int, service: str) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=_READERS + 1,
        max_overflow=0,
        pool_timeout=timeout_ms / 1000,
        # A connection that a restart of the server cut is found before a caller is.
        pool_pre_ping=True,
        connect_args={
            "timeout": timeout_ms / 1000,
            "server_settings": {"statement_timeout": str(timeout_ms), "application_name": f"interlock-{service}"},
        },
    )


def _sqlite_engine(
    url: URL, begin: str, pool_size: int, timeout_ms: int, drivers: "weakref.WeakSet[Any]"
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_ms / 1000,
        connect_args={"factory": _SqliteConnection},
    )

    def prepare(connection: Any, _record: object) -> None:
        # The driver must not begin by itself: a transaction that reads first and then writes fails at once when
        # another process wrote in between, whatever the time-out.
        connection.isolation_level = None
        drivers.add(connection.driver_connection)
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={timeout_ms}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "begin", begin_transaction)
    return engine


class _SqliteConnection(sqlite3.Connection):
    def close(self) -> None:
        # SQLite ends a closed connection's transaction, and gives up its lock, only when the last cursor is gone; those
        # of a cancelled caller may hang in a stack trace until the garbage is collected. Twice: an interruption that was
        # meant for the statement before may cut off the first one.
        for _ in range(2):
            with suppress(sqlite3.OperationalError):
                self.rollback()
        super().close()


@asynccontextmanager
async def _in_our_words(service: str) -> AsyncIterator[None]:
    with _translated(service):
        yield


@contextmanager
def _translated(service: str) -> Iterator[None]:
    """Turn what the database cannot do into an error for the caller; what we did wrong stays what it is."""
    try:
        yield
    except (IntegrityError, ProgrammingError):
        raise
    except (SQLAlchemyError, OSError) as error:
        _LOG.error("database_failed", error=str(error))
        raise (StorageFull(service) if _is_full(error) else DatabaseUnavailable(service)) from error


def _is_full(error: Exception) -> bool:
    original = error.orig if isinstance(error, DBAPIError) else error
    full_code = getattr(original, "sqlstate", None) == _DISK_FULL_SQLSTATE
    return full_code or any(text in str(original) for text in _FULL_TEXTS)
