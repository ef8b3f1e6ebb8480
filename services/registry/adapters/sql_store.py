"""The registry's database: consistent reads, one change at a time, and the log of changes."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Select, delete, func, insert, select, update

from services.common.database import Database
from services.registry.adapters.bell import Bell
from services.registry.adapters.row import ROUTE_KIND, audit_entry_of, typed
from services.registry.adapters.sql_change import ANSWER_WINDOW, SqlChange
from services.registry.adapters.sql_view import SqlView, read_head
from services.registry.adapters.table import ANSWER, AUDIT, CHANGE, HEAD, REPORT
from services.registry.domain.audit import FIRST_PREVIOUS_HASH, AuditEntry, Author, ChainHead, microseconds
from services.registry.domain.resource import Route

_MICROSECOND: Final = timedelta(microseconds=1)


class SqlStore:
    """See `ports.Store`; `bell` rings after each change."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell

    async def begin(self) -> None:
        """Give a database its identity, unless it has one."""
        async with self._database.write() as connection:
            if not self._database.is_sqlite:
                # The row that writers lock is not there yet.
                await connection.exec_driver_sql("LOCK TABLE head IN EXCLUSIVE MODE")
            if await connection.scalar(select(HEAD.c.id)) is not None:
                return
            values = {
                "id": 1,
                "registry_id": uuid.uuid4().hex,
                "epoch": 0,
                "time_us": 0,
                "kept_after": 0,
                "audit_sequence": 0,
                "audit_hash": FIRST_PREVIOUS_HASH,
            }
            await connection.execute(insert(HEAD).values(values))

    @asynccontextmanager
    async def view(self) -> AsyncIterator[SqlView]:
        """Open a consistent read."""
        async with self._database.read() as connection:
            head = await read_head(connection)
            yield SqlView(connection, await self._database.now_us(connection), head.epoch)

    @asynccontextmanager
    async def change(self, author: Author) -> AsyncIterator[SqlChange]:
        """Open a transaction, one at a time; it commits when the block ends without an error."""
        async with self._database.write() as connection:
            # SQLite has locked the whole database by now; there FOR UPDATE is left out.
            row = (await connection.execute(select(HEAD).with_for_update())).mappings().one()
            # Time never falls from one change to the next, and no two changes share it.
            now_us = max(await self._database.now_us(connection), row["time_us"] + 1)
            chain = ChainHead(row["audit_sequence"], row["audit_hash"])
            change = SqlChange(connection, now_us, row["epoch"], author=author, chain=chain)
            yield change
            await change.finish()
        self._bell.ring(change.new_epoch)

    async def route_at(self, name: str, time: datetime) -> Route | None:
        """Return the route as it was, None when there was none."""
        query = (
            select(CHANGE.c.body)
            .where(CHANGE.c.name == name, CHANGE.c.time_us <= microseconds(time))
            .order_by(CHANGE.c.epoch.desc(), CHANGE.c.ordinal.desc())
            .limit(1)
        )
        async with self._database.read() as connection:
            body = await connection.scalar(query)
        return None if body is None else typed(Route, body)

    async def audit_entries(self, resource: str, after: int, limit: int) -> list[AuditEntry]:
        """Return entries of the log after a sequence, oldest first; `resource` is a name, empty for all."""
        query = select(AUDIT).where(AUDIT.c.sequence > after)
        if resource:
            query = query.where(AUDIT.c.resource == resource)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(AUDIT.c.sequence).limit(limit))).mappings().all()
        return [audit_entry_of(row) for row in rows]

    async def audit_head(self) -> ChainHead:
        """Return where the log ends, as it is written beside the log."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(HEAD))).mappings().one()
        return ChainHead(row["audit_sequence"], row["audit_hash"])

    async def clean(self, change_retention: timedelta) -> None:
        """Drop what nobody may ask for any more: old answers, leases that ran out, changes too old to resume from.

        Changes of routes stay, for a route can be read as it was at any time.
        """
        async with self._database.write() as connection:
            head = (await connection.execute(select(HEAD).with_for_update())).mappings().one()
            now_us = await self._database.now_us(connection)
            await connection.execute(delete(ANSWER).where(ANSWER.c.time_us <= now_us - ANSWER_WINDOW // _MICROSECOND))
            await connection.execute(delete(REPORT).where(REPORT.c.expire_us <= now_us))
            kept_after = await connection.scalar(_newest_before(now_us - change_retention // _MICROSECOND)) or 0
            if kept_after > head["kept_after"]:
                old = CHANGE.c.epoch <= kept_after
                await connection.execute(delete(CHANGE).where(old, CHANGE.c.kind != ROUTE_KIND))
                await connection.execute(update(HEAD).values(kept_after=kept_after))


def _newest_before(time_us: int) -> Select[tuple[int]]:
    return select(func.max(CHANGE.c.epoch)).where(CHANGE.c.time_us < time_us)
