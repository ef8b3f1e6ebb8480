"""What jobs do: joins of tables, materialization of batch sources, parity of online and offline values."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from services.common import names
from services.features.adapters.job_runner import RunningJob
from services.features.adapters.job_store import SqlJobStore
from services.features.adapters.join_sql import key_column, value_column
from services.features.adapters.offline_process import OfflineProcesses, history_files
from services.features.adapters.offline_task import (
    ROWS_FILE,
    STAGED_FILE,
    ParityTask,
    StageTask,
    TableJoinTask,
)
from services.features.adapters.parity_plan import plan_signature, plan_vectors
from services.features.adapters.prediction_log import ParitySources
from services.features.domain.catalog import Catalog, CompiledView
from services.features.domain.definitions import NEVER, BatchSource, Value
from services.features.domain.failure import NotMaterializable
from services.features.domain.job import (
    FeatureParity,
    Job,
    JoinOutcome,
    JoinSpec,
    MaterializationOutcome,
    MaterializationSpec,
    ParityOutcome,
    ParitySpec,
)
from services.features.domain.point_in_time import JoinPlan, ValueView, plan_views
from services.features.domain.ports import History, OnlineWriter, Outcome, Row, ViewWriter
from services.features.domain.view_kind import make_writer

_ROWS_A_BATCH: Final = 2_000
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True)
class OfflineJobs:
    """Does the work of jobs."""

    catalog: Catalog
    store: SqlJobStore
    processes: OfflineProcesses
    history: History
    online: OnlineWriter
    parity_sources: ParitySources

    def check(self, job: Job) -> None:
        """See `domain.job_store.JobCheck`."""
        spec, snapshot = job.spec, self.catalog.current
        if isinstance(spec, JoinSpec):
            plan_views(snapshot, spec.features, spec.rows.entity_columns)
        elif isinstance(spec, ParitySpec):
            if spec.vectors is not None:
                plan_vectors(snapshot, spec.vectors)
        elif isinstance(spec, MaterializationSpec):
            (view_id,) = names.FEATURE_VIEW.parse(spec.view)
            if not isinstance(snapshot.view(view_id).definition.source, BatchSource):
                raise NotMaterializable(spec.view)

    async def join(self, running: RunningJob) -> None:
        """Join features to the rows of a table; what an earlier attempt wrote is written anew."""
        spec = cast("JoinSpec", running.job.spec)
        views = plan_views(self.catalog.current, spec.features, spec.rows.entity_columns)
        plan = JoinPlan(
            spec.rows.event_time_column,
            views,
            time_zone=spec.rows.time_zone,
            clock=spec.clock,
            assumed_delay_us=spec.assumed_delay_us,
        )
        async with self.processes.folder() as folder:
            histories = await history_files(self.history, plan.history_views, folder)
            task = TableJoinTask(
                plan=plan, histories=histories, rows=spec.rows, output_uri=spec.output_uri, job_id=running.job.id
            )
            result = await self.processes.run(folder, task, lambda done, total: running.tell(done=done, total=total))
        references = {feature.output: f"{view.view}.{feature.name}" for view in views for feature in view.features}
        counts = {references[output]: count for output, count in result.present_counts.items()}
        running.tell(
            done=result.total_count,
            total=result.total_count,
            skipped=result.skipped_counts,
            outcome=JoinOutcome(counts),
        )

    async def materialize(self, running: RunningJob) -> None:
        """Bring a batch source into the history and the online store.

        The source is staged first, by event time, with what the history has already. Each batch is in both before the
        job says so: whoever goes on after a crash passes over what the history has, and writes the rest again, which
        changes nothing.
        """
        spec = await self._settle_span(running)
        (view_id,) = names.FEATURE_VIEW.parse(spec.view)
        view = self.catalog.current.view(view_id)
        source, writer = view.definition.source, make_writer(view)
        if not isinstance(source, BatchSource) or writer is None:
            raise NotMaterializable(spec.view)
        async with self.processes.folder() as folder:
            result = await self.processes.run(folder, await self._stage_task(running, view, source, folder))
            running.tell(total=result.total_count, skipped=result.skipped_counts)
            await self._write_staged(running, folder / STAGED_FILE, view, writer)

    async def check_parity(self, running: RunningJob) -> None:
        """Compare online vectors with what the offline side makes of them."""
        spec = cast("ParitySpec", running.job.spec)
        if spec.vectors is None:
            signature = await self.parity_sources.signature(spec.model_version)
            plan = plan_signature(self.catalog.current, signature)
        else:
            plan = plan_vectors(self.catalog.current, spec.vectors)
        async with self.processes.folder() as folder:
            if spec.vectors is None:
                await self.parity_sources.write_log(
                    folder / ROWS_FILE, spec.model_version, spec.start, spec.end, spec.max_row_count
                )
            task = ParityTask(
                plan=plan.join,
                histories=await history_files(self.history, plan.join.history_views, folder),
                features=plan.features,
                input_precisions=plan.input_precisions,
                relative_tolerance=spec.relative_tolerance,
                shifts_us=plan.shifts_us,
                vectors=spec.vectors,
                max_row_count=spec.max_row_count,
            )
            result = await self.processes.run(folder, task)
        running.tell(
            done=result.total_count,
            total=result.total_count,
            skipped=result.skipped_counts,
            outcome=ParityOutcome(tuple(FeatureParity(**each) for each in result.parities)),
        )

    async def _settle_span(self, running: RunningJob) -> MaterializationSpec:
        """Fix where the job begins, so that whoever goes on with it does the same."""
        spec = cast("MaterializationSpec", running.job.spec)
        if spec.start is None:
            spec = replace(spec, start=await self.store.last_end(spec.view))
            running.job = replace(running.job, spec=spec)
            await running.save()
        return spec

    async def _stage_task(
        self, running: RunningJob, view: CompiledView, source: BatchSource, folder: Path
    ) -> StageTask:
        spec = cast("MaterializationSpec", running.job.spec)
        (planned,) = plan_views(self.catalog.current, [f"{view.id}.*"], {})
        assert isinstance(planned, ValueView)
        created = running.job.status.create_time
        return StageTask(
            source=source,
            keys=planned.keys,
            features=planned.features,
            history=(await history_files(self.history, (view.id,), folder))[view.id],
            start_us=_microseconds(spec.start or NEVER),
            end_us=_microseconds(spec.end or created),
            known_us=_microseconds(created),
        )

    async def _write_staged(self, running: RunningJob, path: Path, view: CompiledView, writer: ViewWriter) -> None:
        outcome = cast("MaterializationOutcome", running.job.outcome)
        passed = running.job.checkpoint
        with pq.ParquetFile(path) as staged:
            batches = staged.iter_batches(batch_size=_ROWS_A_BATCH)
            done = 0
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                rows, fresh = await asyncio.to_thread(_rows_of, batch, view)
                # Rows that an earlier attempt has written to both are passed over.
                skip = max(0, min(len(rows), passed - done))
                todo = [row for index, row in enumerate(rows) if row.values and (index >= skip or fresh[index])]
                unknown = [row for row, new in zip(rows, fresh, strict=True) if new and row.values]
                if unknown:
                    await self.history.append(writer, unknown)
                outcomes = await self.online.write(writer, todo) if todo else ()
                done += len(rows)
                outcome = MaterializationOutcome(
                    outcome.written_count + sum(each is Outcome.WRITTEN for each in outcomes),
                    outcome.older_count + sum(each is Outcome.OLDER for each in outcomes),
                )
                running.tell(done=done, outcome=outcome, checkpoint=max(done, passed))
                if done > passed:
                    await running.save()


def _rows_of(batch: pa.RecordBatch, view: CompiledView) -> tuple[list[Row], list[bool]]:
    """Return staged rows as the stores take them, and which of them the history does not have."""
    keys = [map(str, batch.column(key_column(entity.id)).to_pylist()) for entity in view.entities]
    features = [feature.spec for feature in view.features.values()]
    columns = [batch.column(value_column(feature.name)).to_pylist() for feature in features]
    event_us, known_us = batch.column("event_us").to_pylist(), batch.column("known_us").to_pylist()
    rows = []
    for row_keys, row_values, event, known in zip(
        zip(*keys, strict=True), zip(*columns, strict=True), event_us, known_us, strict=True
    ):
        # Null where null is no legal value: the row does not carry the feature.
        values: dict[str, Value] = {
            feature.name: tuple(value) if isinstance(value, list) else value
            for feature, value in zip(features, row_values, strict=True)
            if value is not None or feature.nullable
        }
        rows.append(Row(row_keys, values, event, known))
    return rows, [not known for known in batch.column("in_history").to_pylist()]


def _microseconds(time: datetime) -> int:
    return (time - NEVER) // _MICROSECOND
