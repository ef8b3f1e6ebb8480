"""Joins labels with their predictions, in the background, and hands them over.

Every value of a label is handed over once. A batch is written down before it is handed over: after a crash it comes
again with the same number and the same content, and who takes it knows the number of the last one it took.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from sqlalchemy import SmallInteger, bindparam, case, delete, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.common.errors import ServiceError
from services.common.tasks import to_the_end
from services.monitor.adapters.log_reader import LogReader
from services.monitor.adapters.table import FEEDBACK_ANSWER, LABEL, POSITION
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.columns import LabelBatch, LabelledColumns
from services.monitor.domain.feedback import LABEL as LABEL_METRIC
from services.monitor.domain.feedback import LabelState, Meaning, meaning
from services.monitor.domain.log_table import columns_of_table, first_id, ids_of
from services.monitor.domain.ports import LabelSink, LogPolicies, Versions

_LOG: Final = structlog.get_logger(part="labels")
PART: Final = "labels"
_C: Final = LABEL.c
_BATCH_LABELS: Final = 5_000
_NUMBER: Final = "label_batch"
_SECOND_US: Final = 1_000_000
_LATEST_US: Final = 600 * _SECOND_US
_DAY_US: Final = 24 * 3600 * _SECOND_US
_CLEAN_EVERY_S: Final = 600.0
_GROUP: Final = ("environment", "variant")
_MINE: Final = (_C.prediction_id == bindparam("id")) & (_C.metric == LABEL_METRIC) & (_C.revision == bindparam("then"))


class _Overtaken(Exception):
    """Another monitor wrote a batch down meanwhile; they are taken one after the other."""


@dataclass(slots=True)
class _Findings:
    """What looking for predictions came to: rows to change, as parameters of statements."""

    joined: list[dict[str, Any]] = field(default_factory=list)
    unusable: list[dict[str, Any]] = field(default_factory=list)
    later: list[dict[str, Any]] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)


class LabelJoin:
    """Works through the labels that wait."""

    def __init__(
        self,
        database: Database,
        reader: LogReader,
        versions: Versions,
        *,
        policies: LogPolicies,
        sinks: Sequence[LabelSink],
        drops: Drops,
        interval_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._reader = reader
        self._versions = versions
        self._policies = policies
        self._sinks = sinks
        self._drops = drops
        self._interval_s = interval_s
        self._clock = clock

    async def run(self) -> None:
        """Join what is due, for good."""
        clean_at = 0.0
        while True:
            try:
                if self._clock() >= clean_at:
                    clean_at = self._clock() + _CLEAN_EVERY_S
                    await to_the_end(self._clean())
                # A statement that is cut in the middle may keep its lock.
                busy = await to_the_end(self.step())
            except ServiceError as error:
                _LOG.warning("labels_not_joined", reason=error.reason)
                busy = False
            except Exception as error:  # noqa: BLE001 - other labels wait behind this batch, and it is tried again
                _LOG.error("labels_not_joined", exc_info=error)
                busy = False
            if not busy:
                await asyncio.sleep(self._interval_s)

    async def step(self) -> bool:
        """Join some labels and hand them over; returns whether there were any that could be."""
        number = await self._pending()
        tables: Sequence[pa.Table] = ()
        if number is None:
            try:
                number, tables = await self._claim()
            except _Overtaken:
                return True
            if number is None:
                return False
        batch = LabelBatch(number, tuple(await self._parts(number, tables)))
        for sink in self._sinks:
            await sink.take_labels(batch)
        await self._settle(number)
        return True

    async def _pending(self) -> int | None:
        """Return the number of a batch that was not taken to its end."""
        async with self._database.read() as connection:
            return await connection.scalar(select(_C.batch).where(_C.batch.is_not(None)).order_by(_C.batch).limit(1))

    async def _claim(self) -> tuple[int | None, Sequence[pa.Table]]:
        """Write a batch down; returns its number, None without any label for it, and the predictions found."""
        now_us = int(self._clock() * 1e6)
        # None waits for longer than that: what seems to has been written before the clock was set back.
        is_due = (_C.due_us <= now_us) | (_C.due_us > now_us + _LATEST_US)
        query = (
            select(LABEL)
            .where(_C.state == LabelState.OPEN, is_due, _C.metric == LABEL_METRIC, _C.batch.is_(None))
            .order_by(_C.due_us)
            .limit(_BATCH_LABELS)
        )
        async with self._database.read() as connection:
            labels = {bytes(row.prediction_id): row for row in await connection.execute(query)}
        if not labels:
            return None, ()
        found = await self._find(labels, now_us)
        number = None
        async with self._database.write() as connection:
            if found.joined:
                number = await self._next_number(connection)
                if await connection.scalar(select(_C.batch).where(_C.batch.is_not(None)).limit(1)):
                    raise _Overtaken
                names = ("model", "version", "variant", "value", "name", "batch_value", "batch_event_us")
                values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
                await connection.execute(
                    update(LABEL).where(_MINE).values(batch=number, batch_revision=_C.revision, **values), found.joined
                )
            if found.unusable:
                await connection.execute(
                    update(LABEL).where(_MINE).values(state=LabelState.UNUSABLE, due_us=now_us), found.unusable
                )
            if found.later:
                await connection.execute(update(LABEL).where(_MINE).values(due_us=bindparam("new_due_us")), found.later)
        return number, found.tables

    async def _find(self, labels: dict[bytes, Any], now_us: int) -> _Findings:
        found = _Findings(tables=await self._reader.rows(list(labels)))
        left = dict(labels)
        for table in found.tables:
            await self._judge_table(table, left, found)
        for row in left.values():
            # As often as it is young: a label may overtake its prediction, and may be years early.
            wait_us = min(max((now_us - row.receive_us) // 4, _SECOND_US // 2), _LATEST_US)
            found.later.append({**_mine(row), "new_due_us": now_us + wait_us})
        return found

    async def _judge_table(self, table: pa.Table, left: dict[bytes, Any], found: _Findings) -> None:
        """Judge the labels of a table's predictions, which are of one version; those stay left that cannot be yet."""
        model, version = table["model"][0].as_py(), table["version"][0].as_py()
        info = await self._versions.get(model, version)
        if info is None:
            return
        longest_us = int(self._policies.of_model(model).label_retention_s * 1e6)
        was_run = _was_run(table).to_pylist()
        variants = table["variant"].to_pylist()
        for prediction_id, ran, variant in zip(ids_of(table["prediction_id"]), was_run, variants, strict=True):
            row = left.pop(bytes(prediction_id))
            made_us = int.from_bytes(row.prediction_id[:6], "big") * 1000
            said = meaning(row.number, row.text, info)
            wrong = _wrong(said, ran=ran, late=row.event_us - made_us > longest_us)
            if wrong or isinstance(said, str):
                self._drops.add(PART, wrong, 1)
                found.unusable.append(_mine(row))
                continue
            values = {"model": model, "version": version, "variant": variant, "value": said.value, "name": said.name}
            values |= {"batch_value": said.value, "batch_event_us": row.event_us}
            found.joined.append(_mine(row) | {f"new_{name}": value for name, value in values.items()})

    async def _next_number(self, connection: AsyncConnection) -> int:
        """Return the number of a new batch; until the transaction ends, nobody else gets one."""
        first = self._database.insert(POSITION).values(name=_NUMBER, value=1)
        following = first.on_conflict_do_update(index_elements=["name"], set_={"value": POSITION.c.value + 1})
        await connection.execute(following)
        number = await connection.scalar(select(POSITION.c.value).where(POSITION.c.name == _NUMBER))
        return int(number or 0)

    async def _parts(self, number: int, tables: Sequence[pa.Table]) -> list[LabelledColumns]:
        """Return the content of a batch as it was written down."""
        columns = (_C.prediction_id, _C.batch_value, _C.batch_event_us, _C.joined_value)
        async with self._database.read() as connection:
            rows = {bytes(row[0]): row for row in await connection.execute(select(*columns).where(_C.batch == number))}
        if not tables:
            tables = await self._reader.rows(list(rows))
        parts = []
        for table in tables:
            info = await self._versions.get(table["model"][0].as_py(), table["version"][0].as_py())
            for part in _groups(table.filter(_was_run(table))):
                mine = [rows.get(bytes(prediction_id)) for prediction_id in ids_of(part["prediction_id"])]
                there = pa.array([row is not None for row in mine])
                kept = [row for row in mine if row is not None]
                if kept:
                    predictions = columns_of_table(part.filter(there), info)
                    parts.append(
                        LabelledColumns(
                            predictions=predictions,
                            labels=np.array([row.batch_value for row in kept], dtype=np.float64),
                            label_delays_us=np.array([row.batch_event_us for row in kept], dtype=np.int64)
                            - predictions.prediction_time_us,
                            previous_labels=np.array([_or_nan(row.joined_value) for row in kept], dtype=np.float64),
                        )
                    )
        return parts

    async def _settle(self, number: int) -> None:
        """Write down that a batch was taken; what changed since it was written down waits again."""
        done, again = (literal(state, SmallInteger) for state in (LabelState.JOINED, LabelState.OPEN))
        state = case((_C.revision == _C.batch_revision, done), else_=again)
        async with self._database.write() as connection:
            await connection.execute(
                update(LABEL).where(_C.batch == number).values(joined_value=_C.batch_value, batch=None, state=state)
            )

    async def _clean(self) -> None:
        """Remove labels of predictions that no policy keeps, and answers that nobody may ask for again."""
        now_us = int(self._clock() * 1e6)
        async with self._database.read() as connection:
            models = list(await connection.scalars(select(_C.model).distinct()))
        for model in models:
            policy = self._policies.of_model(model)
            kept_us = int(max(policy.log_retention_s, policy.label_retention_s) * 1e6) + _DAY_US
            old = (_C.model == model) & (_C.prediction_id < first_id(now_us - kept_us)) & _C.batch.is_(None)
            async with self._database.write() as connection:
                gone = await connection.execute(delete(LABEL).where(old))
            self._drops.add(PART, "prediction_never_seen", gone.rowcount if not model else 0)
        async with self._database.write() as connection:
            await connection.execute(delete(FEEDBACK_ANSWER).where(FEEDBACK_ANSWER.c.create_us < now_us - _DAY_US))


def _mine(row: Any) -> dict[str, Any]:
    return {"id": bytes(row.prediction_id), "then": row.revision}


def _was_run(table: pa.Table) -> pa.ChunkedArray:
    if "prediction" in table.column_names:
        return table["prediction"].is_valid()
    return pa.chunked_array([pa.repeat(pa.scalar(value=False), table.num_rows)])


def _wrong(said: Meaning | str, *, ran: bool, late: bool) -> str:
    """Return why a label cannot be used, empty when it can."""
    if not ran:
        return "no_prediction"
    if late:
        return "too_late"
    return "does_not_fit" if isinstance(said, str) else ""


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _groups(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of each environment and variant."""
    columns = [table[name].cast(pa.string()) for name in _GROUP]
    pairs: Iterable[tuple[Any, ...]] = sorted(set(zip(*(column.to_pylist() for column in columns), strict=True)))
    for pair in pairs:
        same = [pc.equal(column, value) for column, value in zip(columns, pair, strict=True)]
        yield table.filter(pc.and_(*same))
