"""Windows in the database. What came in is merged into what is there, so several monitors can share one."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Select, Table, and_, delete, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.monitor.adapters.table import ANALYSIS_WINDOW, POSITION, QUALITY_WINDOW, WINDOW_VERDICT
from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.window import WindowKey, WindowSketch
from services.monitor.domain.window_ports import Selection, VerdictKey

_LOG: Final = structlog.get_logger(part="windows")
_WindowT = TypeVar("_WindowT", WindowSketch, QualityWindow)
_KEYS_PER_QUERY: Final = 500
_ATTEMPTS: Final = 3


class SqlWindowStore:
    """See `window_ports.WindowStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, windows: Mapping[WindowKey, WindowSketch], positions: Mapping[str, int]) -> None:
        """Add what was seen to what is kept, and set how far that is; all of it or nothing."""
        for attempt in range(_ATTEMPTS):
            try:
                async with self._database.write() as connection:
                    await self._merge(connection, ANALYSIS_WINDOW, windows, WindowSketch.from_bytes)
                    for name, value in positions.items():
                        await _set_position(connection, name, value)
            except IntegrityError:
                # Another monitor on the same database began the same window a moment before.
                if attempt + 1 == _ATTEMPTS:
                    raise
            else:
                return

    async def add_labelled(self, windows: Mapping[WindowKey, QualityWindow], position: tuple[str, int]) -> bool:
        """Do the same with labels, unless the position was reached before; returns whether it was done."""
        name, value = position
        async with self._database.write() as connection:
            if await _position(connection, name) >= value:
                return False
            await self._merge(connection, QUALITY_WINDOW, windows, QualityWindow.from_bytes)
            await _set_position(connection, name, value)
        return True

    async def position(self, name: str) -> int:
        """Return how far something has been taken; 0 at the beginning."""
        async with self._database.read() as connection:
            return await _position(connection, name)

    async def read(self, selection: Selection) -> Sequence[tuple[WindowKey, bytes]]:
        """Return encoded windows, by time."""
        return await self._read(ANALYSIS_WINDOW, selection)

    async def read_labelled(self, selection: Selection) -> Sequence[tuple[WindowKey, bytes]]:
        """Return encoded windows of labels, by time."""
        return await self._read(QUALITY_WINDOW, selection)

    async def newest_change(self, selection: Selection) -> int:
        """Return when anything that `read` or `read_labelled` give was last changed, microseconds; 0 for nothing."""
        async with self._database.read() as connection:
            stamps = [
                await connection.scalar(
                    _selected(table, selection).with_only_columns(func.max(table.c.update_us)).order_by(None)
                )
                for table in (ANALYSIS_WINDOW, QUALITY_WINDOW)
            ]
        return max(stamp or 0 for stamp in stamps)

    async def times(self, selection: Selection) -> Sequence[tuple[int, int]]:
        """Return begin and end of windows, by time, each once."""
        columns = ANALYSIS_WINDOW.c
        query = _selected(ANALYSIS_WINDOW, selection).with_only_columns(columns.start_us, columns.end_us).distinct()
        async with self._database.read() as connection:
            return [(row.start_us, row.end_us) for row in await connection.execute(query)]

    async def newest_start(self, model: str, environment: str) -> int | None:
        """Return when the newest window of a model begins; None without any."""
        columns = ANALYSIS_WINDOW.c
        query = (
            select(columns.start_us)
            .where(columns.model == model, columns.environment == environment)
            .order_by(columns.end_us.desc())
            .limit(1)
        )
        async with self._database.read() as connection:
            found: int | None = await connection.scalar(query)
            return found

    async def newest_complete(self, model: str, environment: str, until_us: int) -> tuple[int, int] | None:
        """Return begin and end of the newest window of a model that ends by a time; None without any."""
        columns = ANALYSIS_WINDOW.c
        query = (
            select(columns.start_us, columns.end_us)
            .where(columns.model == model, columns.environment == environment, columns.end_us <= until_us)
            .order_by(columns.end_us.desc())
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else (row.start_us, row.end_us)

    async def oldest_start(self, selection: Selection) -> int | None:
        """Return when the oldest window of a version begins, whatever the selection's time; None without any."""
        columns = ANALYSIS_WINDOW.c
        query = select(func.min(columns.start_us)).where(
            columns.model == selection.model,
            columns.version == selection.version,
            columns.environment == selection.environment,
        )
        async with self._database.read() as connection:
            found: int | None = await connection.scalar(query)
            return found

    async def keep_verdict(self, key: VerdictKey, drifted: Sequence[str]) -> None:
        """Keep what had drifted in a window. Two monitors may find it at the same time; the last one stays."""
        found = {"slice" if name == "slice_name" else name: value for name, value in asdict(key).items()}
        kept = self._database.insert(WINDOW_VERDICT).values(**found, drifted=json.dumps(list(drifted)))
        kept = kept.on_conflict_do_update(index_elements=list(found), set_={"drifted": kept.excluded.drifted})
        async with self._database.write() as connection:
            await connection.execute(kept)

    async def verdicts(self, selection: Selection) -> Mapping[tuple[int, int], Sequence[str]]:
        """Return what had drifted, by begin and end of the window; the selection's variant does not matter."""
        query = _selected(WINDOW_VERDICT, replace(selection, variant=None))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings()
            return {(row["start_us"], row["end_us"]): json.loads(row["drifted"]) for row in rows}

    async def active(self, since_us: int) -> Sequence[tuple[str, str, str]]:
        """Return model, version, environment of what has windows that end after a time."""
        columns = ANALYSIS_WINDOW.c
        query = select(columns.model, columns.version, columns.environment).where(columns.end_us > since_us).distinct()
        async with self._database.read() as connection:
            return [(row.model, row.version, row.environment) for row in await connection.execute(query)]

    async def clean(self, before_us: int) -> None:
        """Drop windows that ended before a time."""
        async with self._database.write() as connection:
            for table in (ANALYSIS_WINDOW, QUALITY_WINDOW, WINDOW_VERDICT):
                await connection.execute(delete(table).where(table.c.end_us < before_us))

    async def _merge(
        self,
        connection: AsyncConnection,
        table: Table,
        windows: Mapping[WindowKey, _WindowT],
        decode: Callable[[bytes], _WindowT],
    ) -> None:
        kept: dict[WindowKey, bytes] = {}
        for keys in _in_lots(windows):
            wanted = tuple_(*_key_columns(table)).in_([_values(key) for key in keys])
            query = select(table).where(wanted)
            if not self._database.is_sqlite:
                # Another monitor on the same database must not merge at the same time.
                query = query.with_for_update()
            kept.update({_key(row): row["body"] for row in (await connection.execute(query)).mappings()})
        now_us = await self._database.now_us(connection)
        # Decoding, merging and encoding are milliseconds a window: not on the event loop.
        bodies = await asyncio.to_thread(_merged, windows, kept, decode)
        rows = [
            {**key_values(key), "update_us": now_us, "body": body} for key, body in bodies.items() if key not in kept
        ]
        if rows:
            await connection.execute(insert(table), rows)
        for key in kept:
            change = update(table).where(_is(table, key)).values(update_us=now_us, body=bodies[key])
            await connection.execute(change)

    async def _read(self, table: Table, selection: Selection) -> Sequence[tuple[WindowKey, bytes]]:
        query = _selected(table, selection)
        async with self._database.read() as connection:
            return [(_key(row), row["body"]) for row in (await connection.execute(query)).mappings()]


def _in_lots(keys: Iterable[WindowKey]) -> Iterator[list[WindowKey]]:
    rest = iter(keys)
    while lot := list(islice(rest, _KEYS_PER_QUERY)):
        yield lot


def key_values(key: WindowKey) -> dict[str, Any]:
    """Return a key by column."""
    return dict(zip(_KEY_COLUMNS, _values(key), strict=True))


_KEY_COLUMNS: Final = ("model", "version", "environment", "slice", "variant", "start_us", "end_us")


def _values(key: WindowKey) -> tuple[Any, ...]:
    return (key.model, key.version, key.environment, key.slice_name, key.variant, key.start_us, key.end_us)


def _key(row: Any) -> WindowKey:
    return WindowKey(*(row[name] for name in _KEY_COLUMNS))


def _key_columns(table: Table) -> Iterable[Any]:
    return (table.c[name] for name in _KEY_COLUMNS)


def _is(table: Table, key: WindowKey) -> Any:
    return and_(*(column == value for column, value in zip(_key_columns(table), _values(key), strict=True)))


def _selected(table: Table, selection: Selection) -> Select[Any]:
    columns = table.c
    query = select(table).where(
        columns.model == selection.model,
        columns.environment == selection.environment,
        columns.slice == selection.slice_name,
        columns.start_us < selection.end_us,
        columns.end_us > selection.start_us,
    )
    if selection.version:
        query = query.where(columns.version == selection.version)
    if selection.variant is not None:
        query = query.where(columns.variant == selection.variant)
    if selection.starts_us:
        query = query.where(columns.start_us.in_(selection.starts_us))
    return query.order_by(columns.start_us)


def _merged(
    windows: Mapping[WindowKey, _WindowT], kept: Mapping[WindowKey, bytes], decode: Callable[[bytes], _WindowT]
) -> dict[WindowKey, bytes]:
    bodies = {}
    for key, window in windows.items():
        body = kept.get(key)
        bodies[key] = (window if body is None else _joined(key, body, window, decode)).to_bytes()
    return bodies


def _joined(key: WindowKey, body: bytes, window: _WindowT, decode: Callable[[bytes], _WindowT]) -> _WindowT:
    try:
        found = decode(body)
    except SketchUnreadable as error:
        _LOG.error("window_unreadable", window=repr(key), error=str(error))
        return window
    found.merge(window)
    return found


async def _position(connection: AsyncConnection, name: str) -> int:
    return await connection.scalar(select(POSITION.c.value).where(POSITION.c.name == name)) or 0


async def _set_position(connection: AsyncConnection, name: str, value: int) -> None:
    changed = await connection.execute(update(POSITION).where(POSITION.c.name == name).values(value=value))
    if not changed.rowcount:
        await connection.execute(insert(POSITION).values(name=name, value=value))
