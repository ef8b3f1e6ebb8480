"""Reads labels and rewards: of some predictions, of a time, or which predictions of a model have one."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from sqlalchemy import Select, select

from services.common.database import Database
from services.common.tasks import to_the_end
from services.monitor.adapters.table import LABEL
from services.monitor.domain.feedback import LABEL as LABEL_METRIC
from services.monitor.domain.feedback import LabelState
from services.monitor.domain.log_question import PredictionFeedback
from services.monitor.domain.log_table import uuids

_CHUNK_ROWS: Final = 20_000
_ONE_STATEMENT: Final = 500
_C: Final = LABEL.c
FEEDBACK_SCHEMA: Final = pa.schema(
    [
        pa.field("prediction_id", pa.uuid()),
        pa.field("metric", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("name", pa.string()),
        pa.field("event_time", pa.timestamp("us")),
    ]
)


class LabelReader:
    """Reads from the monitor's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_predictions(self, ids: Sequence[bytes]) -> dict[bytes, PredictionFeedback]:
        """Return what became of predictions, joined with them or not yet."""
        # Callers go at any moment, and a statement that is cut costs its connection.
        return await to_the_end(self._of_predictions(ids))

    async def _of_predictions(self, ids: Sequence[bytes]) -> dict[bytes, PredictionFeedback]:
        found: dict[bytes, PredictionFeedback] = {}
        columns = (_C.prediction_id, _C.metric, _C.number, _C.text, _C.event_us)
        async with self._database.read() as connection:
            for start in range(0, len(ids), _ONE_STATEMENT):
                query = select(*columns).where(_C.prediction_id.in_(ids[start : start + _ONE_STATEMENT]))
                for row in await connection.execute(query.where(_C.state != LabelState.UNUSABLE)):
                    _add(found.setdefault(bytes(row.prediction_id), PredictionFeedback()), row)
        return found

    async def labelled(
        self, model: str, *, version: str, variant: str, after: bytes, before: bytes, limit: int
    ) -> list[bytes]:
        """Return ids of a model's predictions that have a label, newest first, those in [after, before)."""
        query = (
            select(_C.prediction_id)
            .where(_C.model == model, _C.metric == LABEL_METRIC, _C.value.is_not(None))
            .where(_C.prediction_id >= after, _C.prediction_id < before)
            .order_by(_C.prediction_id.desc())
            .limit(limit)
        )
        if version:
            query = query.where(_C.version == version)
        if variant:
            query = query.where(_C.variant == variant)
        return [bytes(found) for found in await to_the_end(self._scalars(query))]

    async def of_time(self, first: bytes, end: bytes) -> AsyncIterator[pa.Table]:
        """Yield feedback of predictions with ids in [first, end), in chunks; labels once they are joined."""
        columns = (_C.prediction_id, _C.metric, _C.number, _C.value, _C.name, _C.event_us)
        usable = (_C.metric != LABEL_METRIC) | _C.value.is_not(None)
        rest = _C.prediction_id >= first
        while True:
            query = (
                select(*columns)
                .where(rest, _C.prediction_id < end, usable)
                .order_by(_C.prediction_id, _C.metric)
                .limit(_CHUNK_ROWS)
            )
            rows = await to_the_end(self._rows(query))
            if rows:
                yield _table(rows)
            if len(rows) < _CHUNK_ROWS:
                return
            last = bytes(rows[-1].prediction_id)
            rest = (_C.prediction_id > last) | ((_C.prediction_id == last) & (_C.metric > rows[-1].metric))

    async def _rows(self, query: Select[Any]) -> Sequence[Any]:
        async with self._database.read() as connection:
            found: Sequence[Any] = (await connection.execute(query)).all()
            return found

    async def _scalars(self, query: Select[Any]) -> Sequence[bytes]:
        async with self._database.read() as connection:
            return (await connection.scalars(query)).all()


def _add(found: PredictionFeedback, row: Any) -> None:
    if row.metric != LABEL_METRIC:
        found.rewards[row.metric] = row.number
        return
    found.number, found.text, found.event_us = row.number, row.text, row.event_us


def _table(rows: Sequence[Any]) -> pa.Table:
    ids = np.frombuffer(b"".join(row.prediction_id for row in rows), dtype=np.uint8).reshape(-1, 16)
    columns = [
        uuids(ids),
        pa.array([row.metric for row in rows], pa.string()),
        pa.array([row.value if row.metric == LABEL_METRIC else row.number for row in rows], pa.float64()),
        pa.array([row.name for row in rows], pa.string()),
        pa.array([row.event_us for row in rows], pa.timestamp("us")),
    ]
    return pa.table(columns, schema=FEEDBACK_SCHEMA)
