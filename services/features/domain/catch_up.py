"""Brings the online store up to date from the history's log, when it may have missed something.

That is after a start, after the store was away (it may have lost the last second), and after a push that the history
took and the store did not. Writing a row again changes nothing, so everything that the log still holds is written.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from services.features.domain.catalog import Catalog
from services.features.domain.failure import OnlineStoreUnavailable
from services.features.domain.ports import OnlineWriter, Row, ViewWriter
from services.features.domain.view_kind import make_writer

_PAUSE_S: Final = 0.5
_LOG: Final = structlog.get_logger(part="history")


class LoggedRows(Protocol):
    """Rows of one view that were appended together."""

    @property
    def view(self) -> str:
        """Id of the view."""

    @property
    def generation(self) -> int:
        """Which view of that id it was."""

    @property
    def rows(self) -> Sequence[Row]:
        """The rows."""


class NewestHistory(Protocol):
    """The part of the history that the online store may lack."""

    @property
    def behind(self) -> asyncio.Event:
        """Set while the online store may lack rows."""

    def newest(self) -> AsyncIterator[LoggedRows]:
        """Yield the rows, the oldest first."""


class CatchUp:
    """Writes what the online store may lack, whenever the history says so, and tries until the store answers."""

    def __init__(self, history: NewestHistory, online: OnlineWriter, catalog: Catalog) -> None:
        self._history = history
        self._online = online
        self._catalog = catalog

    async def run(self) -> None:
        """Catch up when it is needed, for as long as the service lives."""
        behind = self._history.behind
        while True:
            await behind.wait()
            behind.clear()
            try:
                count = await self._write_all()
            except OnlineStoreUnavailable:
                behind.set()
                await asyncio.sleep(_PAUSE_S)
                continue
            if count:
                _LOG.info("online_store_caught_up", rows=count)

    async def _write_all(self) -> int:
        count = 0
        async for logged in self._history.newest():
            view = self._catalog.current.views.get(logged.view)
            if view is None or view.generation != logged.generation:
                continue
            writer = make_writer(view)
            if writer is not None:
                rows = _still_known(writer, logged.rows)
                await self._online.write(writer, rows)
                count += len(rows)
        return count


def _still_known(writer: ViewWriter, rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows without the values of features that are gone."""
    known = {column.name for column in writer.inputs}
    if all(known.issuperset(row.values) for row in rows):
        return rows
    return [replace(row, values={name: row.values[name] for name in row.values if name in known}) for row in rows]
