"""Single predictions of the log, by id and page by page."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.monitor.adapters.label_reader import LabelReader
from services.monitor.adapters.log_files import HOUR_US, Partition, hour_of
from services.monitor.adapters.log_reader import LogReader
from services.monitor.domain.log_question import EVER_US, LoggedPrediction, PageQuestion, PredictionFeedback
from services.monitor.domain.log_table import first_id, ids_of


class LogPages:
    """A `PredictionLog`."""

    def __init__(self, reader: LogReader, labels: LabelReader) -> None:
        self._reader = reader
        self._labels = labels

    async def get(self, prediction_id: bytes) -> LoggedPrediction | None:
        """Return one prediction, or None; raises LogUnavailable."""
        return next(iter(await self._load([prediction_id])), None)

    async def page(self, question: PageQuestion) -> list[LoggedPrediction]:
        """Return predictions, newest first; fewer than asked for are the last. Raises LogUnavailable."""
        if question.labelled_only:
            return await self._labelled(question)
        return await self._load(await self._reader.carefully(lambda: self._newest(question)))

    async def _load(self, ids: Sequence[bytes]) -> list[LoggedPrediction]:
        tables = await self._reader.rows(ids)
        feedback = await self._labels.of_predictions(ids)
        found = [
            LoggedPrediction(bytes(prediction_id), row, feedback.get(bytes(prediction_id), PredictionFeedback()))
            for table in tables
            for prediction_id, row in zip(ids_of(table["prediction_id"]), table.to_pylist(), strict=True)
        ]
        return sorted(found, key=lambda logged: logged.prediction_id, reverse=True)

    async def _labelled(self, question: PageQuestion) -> list[LoggedPrediction]:
        found: list[LoggedPrediction] = []
        before = min(question.before, first_id(question.end_us))
        while len(found) < question.size:
            ids = await self._labels.labelled(
                question.model,
                version=question.version,
                variant=question.variant,
                after=first_id(question.start_us),
                before=before,
                limit=question.size,
            )
            if not ids:
                break
            before = ids[-1]
            # A failed prediction has no label that could be joined with it.
            found += [] if question.errors_only else await self._load(ids)
        return found[: question.size]

    def _newest(self, question: PageQuestion) -> list[bytes]:
        """Return the ids of a page. Blocks."""
        last_us = min(question.end_us, int.from_bytes(question.before[:6], "big") * 1000 + 1000, EVER_US)
        hours = hour_of(question.start_us), hour_of(last_us - 1)
        in_memory = {part.partition.hour for part in self._reader.tail(question.model, *hours)}
        stored = {part.hour for part in self._reader.files.partitions([question.model], *hours)}
        found: list[bytes] = []
        for hour in sorted(in_memory | stored, reverse=True):
            found += self._newest_of_hour(question, Partition(question.model, hour), question.size - len(found))
            if len(found) >= question.size:
                break
        return found

    def _newest_of_hour(self, question: PageQuestion, partition: Partition, limit: int) -> list[bytes]:
        begin_us = partition.hour * HOUR_US
        snapshot = self._reader.snapshot([partition.model], begin_us, begin_us + HOUR_US)
        dataset = self._reader.dataset(snapshot)
        newest = np.empty(0, dtype="S16")
        for batch in dataset.to_batches(columns=["prediction_id"], filter=_filter(question)):
            ids = np.ascontiguousarray(ids_of(pa.chunked_array([batch["prediction_id"]]))).view("S16").ravel()
            newest = np.unique(np.concatenate([newest, ids[ids < np.bytes_(question.before)]]))[-limit:]
        # Zero bytes at the end of an item are lost on the way to Python.
        return [bytes(found).ljust(16, b"\0") for found in newest[::-1]]


def _filter(question: PageQuestion) -> pc.Expression:
    when = pc.field("prediction_time")
    limits = [pa.scalar(limit, pa.timestamp("us")) for limit in (question.start_us, question.end_us)]
    found = (when >= limits[0]) & (when < limits[1])
    for name, wanted in (("version", question.version), ("variant", question.variant)):
        if wanted:
            found &= pc.field(name) == wanted
    return found & (pc.field("status") != 0) if question.errors_only else found
