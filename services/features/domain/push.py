"""Rows that clients push: what is wrong with one, and the order in which a good one becomes safe and visible."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from services.common.errors import InvalidArgument, Violation, echo
from services.common.refusals import InvalidRequest
from services.common.tasks import spawn
from services.features.domain.catalog import Catalog
from services.features.domain.failure import (
    INVALID_ENTITY_KEY,
    INVALID_EVENT_TIME,
    INVALID_VALUE,
    NotPushable,
    QueueFull,
)
from services.features.domain.ports import History, OnlineWriter, Outcome, Row, ViewWriter
from services.features.domain.value_check import WrongValue, canonical_key, checked
from services.features.domain.view_kind import make_writer

ROW_LIMIT: Final = 1_000
ROWS_AT_A_TIME: Final = 100
"""Rows that are worked on before other calls get their turn: about a millisecond."""
EVENT_ID_LIMIT_BYTES: Final = 128
_SECOND_US: Final = 1_000_000


def now_us() -> int:
    """Return this machine's time in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class GivenRow:
    """A row as a client sent it; a time is None when it was not given, or is no time."""

    keys: Mapping[str, str]
    values: Mapping[str, Any]
    event_time_us: int | None
    event_id: str
    known_at_us: int | None
    has_known_at: bool


class RowCheck:
    """Makes rows of what clients send. Stamps of rows that bring no known-at time rise from row to row."""

    def __init__(self, clock_tolerance_s: float, clock_us: Callable[[], int] = now_us) -> None:
        self._tolerance_us = round(clock_tolerance_s * _SECOND_US)
        self._clock_us = clock_us
        self._last_us = 0

    async def check(self, writer: ViewWriter, rows: Sequence[GivenRow]) -> list[Row | InvalidArgument]:
        """Return each row, or why it is refused, in the order given. Lets others run in between."""
        latest_us = self._clock_us() + self._tolerance_us
        checked_rows: list[Row | InvalidArgument] = []
        for index, row in enumerate(rows):
            checked_rows.append(self._check(writer, row, index, latest_us))
            if index % ROWS_AT_A_TIME == ROWS_AT_A_TIME - 1:
                await asyncio.sleep(0)
        return checked_rows

    def _check(self, writer: ViewWriter, row: GivenRow, index: int, latest_us: int) -> Row | InvalidArgument:
        at = f"rows[{index}]"
        wrong: list[tuple[str, Violation]] = []
        keys = _keys(writer, row, at, wrong)
        values = _values(writer, row, at, wrong)
        _check_event_id(writer, row, at, wrong)
        _check_time(row.event_time_us, f"{at}.event_time", latest_us, wrong)
        if row.has_known_at:
            _check_time(row.known_at_us, f"{at}.known_at", latest_us, wrong)
        if wrong:
            return InvalidRequest([violation for _, violation in wrong], wrong[0][0])
        assert row.event_time_us is not None, "checked above"
        known_at_us = row.known_at_us if row.known_at_us is not None else self._stamp_us()
        return Row(keys, values, row.event_time_us, known_at_us, row.event_id)

    def _stamp_us(self) -> int:
        # Two rows of one push for one entity and time: the later one is the correction.
        self._last_us = max(self._clock_us(), self._last_us + 1)
        return self._last_us


class Writers:
    """Writers of views by the view's id; they hold for one snapshot of the definitions."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._snapshot = catalog.current
        self._writers: dict[str, ViewWriter] = {}

    def pushable(self, view_id: str) -> ViewWriter:
        """Return the writer of a view that clients push into; raises ResourceNotFound or NotPushable."""
        snapshot = self._catalog.current
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._writers.clear()
        writer = self._writers.get(view_id)
        if writer is None:
            view = snapshot.view(view_id)
            made = make_writer(view) if view.definition.pushable else None
            if made is None:
                raise NotPushable(view_id)
            writer = self._writers[view_id] = made
        return writer


class Pusher:
    """Takes rows: checks each, makes the good ones safe in the history first and visible in the online store then.

    A push goes to its end even if its caller leaves. If the store fails after the history took the rows, the caller is
    told so and `behind` is called: somebody brings the store up to date from the history.
    """

    def __init__(
        self,
        check: RowCheck,
        history: History,
        online: OnlineWriter,
        behind: Callable[[], None],
        *,
        waiting_rows_limit: int,
    ) -> None:
        self._row_check = check
        self._history = history
        self._online = online
        self._behind = behind
        self._limit = waiting_rows_limit
        self._waiting_rows = 0

    async def push(
        self, writer: ViewWriter, given: Sequence[Sequence[GivenRow]]
    ) -> list[list[Outcome | InvalidArgument]]:
        """Return what became of each row of some batches, or why it is refused, once all are safe and visible.

        Raises OnlineStoreUnavailable, HistoryUnavailable, QueueFull.
        """
        checked = [await self._row_check.check(writer, batch) for batch in given]
        outcomes = iter(await self._push([row for batch in checked for row in batch if isinstance(row, Row)], writer))
        return [[next(outcomes) if isinstance(row, Row) else row for row in batch] for batch in checked]

    async def _push(self, rows: Sequence[Row], writer: ViewWriter) -> Sequence[Outcome]:
        if not rows:
            return []
        self._online.check()
        if self._waiting_rows and self._waiting_rows + len(rows) > self._limit:
            raise QueueFull("rows", self._waiting_rows, self._limit)
        result = await asyncio.shield(spawn(self._take(writer, rows), "push"))
        if isinstance(result, Exception):
            raise result
        return result

    async def _take(self, writer: ViewWriter, rows: Sequence[Row]) -> Sequence[Outcome] | Exception:
        self._waiting_rows += len(rows)
        try:
            await self._history.append(writer, rows)
            try:
                return await self._online.write(writer, rows)
            except Exception:
                self._behind()
                raise
        except Exception as error:  # noqa: BLE001 - the caller gets it; a task that nobody waits for has nobody to tell
            return error
        finally:
            self._waiting_rows -= len(rows)


def _keys(writer: ViewWriter, row: GivenRow, at: str, wrong: list[tuple[str, Violation]]) -> tuple[str, ...]:
    keys = []
    for entity in writer.view.entities:
        key = row.keys.get(entity.id)
        field = f"{at}.entities.{entity.id}"
        if key is None:
            wrong.append((INVALID_ENTITY_KEY, Violation(field, "want the key of this entity, got none")))
            continue
        try:
            keys.append(canonical_key(key, entity))
        except WrongValue as error:
            wrong.append((INVALID_ENTITY_KEY, Violation(field, str(error))))
    if len(row.keys) > len(writer.view.entities):
        known = [entity.id for entity in writer.view.entities]
        unknown = [key for key in row.keys if key not in known]
        text = f"want keys of {', '.join(known)} only, got {echo(unknown[0])}"
        wrong.append((INVALID_ENTITY_KEY, Violation(f"{at}.entities", text)))
    return tuple(keys)


def _values(writer: ViewWriter, row: GivenRow, at: str, wrong: list[tuple[str, Violation]]) -> dict[str, Any]:
    values = {}
    carried = 0
    for column in writer.inputs:
        field = f"{at}.values.{column.name}"
        if column.name not in row.values:
            if column.required:
                wrong.append((INVALID_VALUE, Violation(field, "want a value, got none")))
            continue
        carried += 1
        try:
            values[column.name] = checked(row.values[column.name], column.type)
        except WrongValue as error:
            wrong.append((INVALID_VALUE, Violation(field, str(error))))
    if carried < len(row.values):
        known = {column.name for column in writer.inputs}
        unknown = next(name for name in row.values if name not in known)
        text = f"want names that featureViews/{writer.view.id} has, got {echo(unknown)}"
        wrong.append((INVALID_VALUE, Violation(f"{at}.values", text)))
    if not row.values and not writer.needs_event_id:
        wrong.append((INVALID_VALUE, Violation(f"{at}.values", "want at least one value, got none")))
    return values


def _check_event_id(writer: ViewWriter, row: GivenRow, at: str, wrong: list[tuple[str, Violation]]) -> None:
    size_bytes = len(row.event_id.encode())
    if size_bytes > EVENT_ID_LIMIT_BYTES:
        text = f"want at most {EVENT_ID_LIMIT_BYTES} bytes, got {size_bytes}"
        wrong.append((INVALID_VALUE, Violation(f"{at}.event_id", text)))
    elif writer.needs_event_id and not row.event_id:
        text = "want an id, so that the event counts once; got none"
        wrong.append((INVALID_VALUE, Violation(f"{at}.event_id", text)))


def _check_time(time_us: int | None, field: str, latest_us: int, wrong: list[tuple[str, Violation]]) -> None:
    if time_us is None:
        wrong.append((INVALID_EVENT_TIME, Violation(field, "want a time, got none")))
    elif time_us < 0:
        text = f"want a time that is not before 1970-01-01 UTC, got {time_us // _SECOND_US} s before it"
        wrong.append((INVALID_EVENT_TIME, Violation(field, text.replace("got -", "got "))))
    elif time_us > latest_us:
        text = f"want a time until {_text(latest_us)}, which this service's clock allows, got {_text(time_us)}"
        wrong.append((INVALID_EVENT_TIME, Violation(field, text)))


def _text(time_us: int) -> str:
    try:
        return datetime.fromtimestamp(time_us // _SECOND_US, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return "one beyond the year 9999"
