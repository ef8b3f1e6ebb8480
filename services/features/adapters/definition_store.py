"""The database of definitions; see `domain.definition_store`."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.common.storage_failure import DatabaseUnavailable, StorageFull
from services.features.adapters.answer import AnswerKey, recall, remember
from services.features.adapters.table import APPLIED, DEFINITION, HEAD
from services.features.convert.definition import definition_from_bytes, definition_to_bytes
from services.features.domain.catalog import Catalog
from services.features.domain.definition_diff import Change, ChangeKind
from services.features.domain.definition_store import Definitions
from services.features.domain.definitions import NEVER, Definition

_LOG: Final = structlog.get_logger(part="definitions")
_MICROSECOND: Final = timedelta(microseconds=1)


class SqlDefinitionTransaction:
    """See `definition_store.DefinitionTransaction`."""

    def __init__(self, connection: AsyncConnection, definitions: Definitions, now_us: int, principal: str) -> None:
        self._connection = connection
        self._definitions = definitions
        self._now_us = now_us
        self._principal = principal

    @property
    def definitions(self) -> Definitions:
        """The definitions before the transaction."""
        return self._definitions

    @property
    def now(self) -> datetime:
        """The database's time."""
        return NEVER + self._now_us * _MICROSECOND

    async def store(
        self, put: Collection[Definition], delete: Collection[str], changes: Sequence[Change], source_revision: str
    ) -> Definitions:
        """Store definitions, remove others by name, and record what has changed; returns what there is then."""
        by_name = dict(self._definitions.by_name)
        await self._remove([*delete, *(each.name for each in put)])
        for name in delete:
            del by_name[name]
        for definition in put:
            by_name[definition.name] = definition
            row = {
                "name": definition.name,
                "folded_name": definition.name.lower(),
                "kind": definition.name.partition("/")[0],
                "body": definition_to_bytes(definition),
            }
            await self._connection.execute(insert(DEFINITION).values(row))
        version = self._definitions.version + 1
        await self._connection.execute(update(HEAD).values(version=version, time_us=self._now_us))
        await self._record(version, changes, source_revision)
        return Definitions(version, by_name)

    async def recall(self, request_id: str, fingerprint: str) -> bytes | None:
        """Return the answer that was given to this request within the last day; RequestIdReused for another one."""
        return await recall(self._connection, AnswerKey(self._principal, request_id, fingerprint), self._now_us)

    async def remember(self, request_id: str, fingerprint: str, answer: bytes) -> None:
        """Keep the answer to a request."""
        await remember(self._connection, AnswerKey(self._principal, request_id, fingerprint), answer, self._now_us)

    async def _remove(self, names: Sequence[str]) -> None:
        await self._connection.execute(delete(DEFINITION).where(DEFINITION.c.name.in_(names)))

    async def _record(self, version: int, changes: Sequence[Change], source_revision: str) -> None:
        values: dict[str, Any] = {
            "version": version,
            "time_us": self._now_us,
            "principal": self._principal,
            "source_revision": source_revision,
            "changes": json.dumps(
                {each.resource: each.kind.value for each in changes if each.kind is not ChangeKind.UNCHANGED}
            ).encode(),
        }
        await self._connection.execute(insert(APPLIED).values(values))


class SqlDefinitionStore:
    """See `definition_store.DefinitionStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def version(self) -> int:
        """Return the version; it rises whenever a definition changes."""
        async with self._database.read() as connection:
            return await connection.scalar(select(HEAD.c.version)) or 0

    async def load(self) -> Definitions:
        """Return all definitions."""
        async with self._database.read() as connection:
            version = await connection.scalar(select(HEAD.c.version)) or 0
            return await _load(connection, version)

    @asynccontextmanager
    async def change(self, principal: str) -> AsyncIterator[SqlDefinitionTransaction]:
        """Open a transaction, one at a time among all processes; it commits when the block ends without an error."""
        async with self._database.write() as connection:
            # SQLite has locked the whole database by now; there FOR UPDATE is left out.
            head = (await connection.execute(select(HEAD).with_for_update())).mappings().one()
            # Time rises from one change to the next: it tells a view from an earlier one of the same name.
            now_us = max(await self._database.now_us(connection), head["time_us"] + 1)
            definitions = await _load(connection, head["version"])
            yield SqlDefinitionTransaction(connection, definitions, now_us, principal)


async def _load(connection: AsyncConnection, version: int) -> Definitions:
    rows = (await connection.execute(select(DEFINITION.c.name, DEFINITION.c.body))).all()
    return Definitions(version, {name: definition_from_bytes(name, body) for name, body in rows})


async def follow(store: SqlDefinitionStore, catalog: Catalog, interval_s: float) -> None:
    """Take into the catalog what other processes apply, for ever; while the database is away it stays as it is."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            if await store.version() != catalog.current.version:
                catalog.replace((await store.load()).compiled())
        except (DatabaseUnavailable, StorageFull) as error:
            _LOG.warning("follow_failed", reason=error.reason)
