"""Silences in the database."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from sqlalchemy import insert, select, update

from services.common.database import Database
from services.common.refusals import ResourceNotFound
from services.monitor.adapters.alert_store import new_id
from services.monitor.adapters.change_answer import recall, remember
from services.monitor.adapters.table import SILENCE
from services.monitor.domain.alert import Silence
from services.monitor.domain.alert_ports import RequestKey

_C: Final = SILENCE.c


class SqlSilences:
    """See `alert_ports.Silences`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, silence: Silence, key: RequestKey) -> Silence:
        """Keep a new silence under an id of ours."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            known = await recall(connection, key, now_us)
            if known is not None:
                return Silence(**json.loads(known))
            made = replace(silence, name=new_id(now_us))
            await connection.execute(insert(SILENCE).values(asdict(made)))
            await remember(connection, key, json.dumps(asdict(made)), now_us)
        return made

    async def get(self, name: str) -> Silence:
        """Return a silence; raises ResourceNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(SILENCE).where(_C.name == name))).mappings().first()
        return _found(row, name)

    async def end(self, name: str, key: RequestKey) -> Silence:
        """End a silence now; raises ResourceNotFound."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            known = await recall(connection, key, now_us)
            if known is not None:
                return Silence(**json.loads(known))
            row = (await connection.execute(select(SILENCE).where(_C.name == name))).mappings().first()
            silence = _found(row, name)
            if silence.end_us > now_us:
                # One that has not begun never does.
                silence = replace(silence, start_us=min(silence.start_us, now_us), end_us=now_us)
                change = update(SILENCE).where(_C.name == name)
                await connection.execute(change.values(start_us=silence.start_us, end_us=now_us))
            await remember(connection, key, json.dumps(asdict(silence)), now_us)
        return silence

    async def page(self, after: str, size: int, active_at_us: int | None) -> list[Silence]:
        """Return silences, the newest first, after one; those only that hold at a time."""
        query = select(SILENCE).order_by(_C.name.desc()).limit(size)
        query = query.where(_C.name < after) if after else query
        if active_at_us is not None:
            query = query.where(_C.start_us <= active_at_us, _C.end_us > active_at_us)
        async with self._database.read() as connection:
            return [_silence(row) for row in (await connection.execute(query)).mappings()]

    async def active(self) -> list[Silence]:
        """Return the silences that hold now."""
        async with self._database.read() as connection:
            now_us = await self._database.now_us(connection)
            query = select(SILENCE).where(_C.start_us <= now_us, _C.end_us > now_us)
            return [_silence(row) for row in (await connection.execute(query)).mappings()]


def _found(row: Mapping[Any, Any] | None, name: str) -> Silence:
    if row is None:
        raise ResourceNotFound(f"silences/{name}")
    return _silence(row)


def _silence(row: Mapping[Any, Any]) -> Silence:
    return Silence(**{name: row[name] for name in Silence.__slots__})
