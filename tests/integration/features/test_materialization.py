"""Materialization that is cut off at any batch and gone on with: history and online store as if it had not been."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from services.features.adapters import offline_jobs
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.job_runner import RunningJob
from services.features.adapters.offline_jobs import OfflineJobs
from services.features.adapters.offline_process import OfflineProcesses
from services.features.domain.catalog import Catalog, compile_snapshot
from services.features.domain.definitions import (
    BatchSource,
    Entity,
    Feature,
    FeatureType,
    FeatureView,
    FileFormat,
    FileLocation,
)
from services.features.domain.file_roots import FileRoots
from services.features.domain.job import Job, JobStatus, MaterializationOutcome, MaterializationSpec
from services.features.domain.ports import HistoryScan, Outcome, Row, ViewWriter

COUNT = 50
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CutOff(Exception):
    """The process is gone."""


class Stores:
    """History and online store in memory; the process ends after so many writes to them."""

    def __init__(self) -> None:
        self.history: list[Row] = []
        self.online: dict[tuple[str, ...], Row] = {}
        self.left = 10**9

    def _write(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutOff

    async def append(self, writer: ViewWriter, rows: Sequence[Row]) -> None:
        self._write()
        self.history += rows

    async def scan(self, view: str) -> HistoryScan:
        rows = [
            {
                "entity__carrier": row.keys[0],
                "delay": row.values.get("delay"),
                "event_time": row.event_time_us,
                "known_at": row.known_at_us,
                "event_id": "",
                "absent": [name for name in ("delay",) if name not in row.values],
            }
            for row in self.history
        ]
        stamp = pa.timestamp("us", "UTC")
        fields = [("entity__carrier", pa.string()), ("delay", pa.float64()), ("event_time", stamp), ("known_at", stamp)]
        schema = pa.schema([*fields, ("event_id", pa.string()), ("absent", pa.list_(pa.string()))])
        return HistoryScan((), pa.Table.from_pylist(rows, schema))

    def check(self) -> None:
        """Is always there."""

    async def write(self, writer: ViewWriter, rows: Sequence[Row]) -> Sequence[Outcome]:
        self._write()
        return [self._put(row) for row in rows]

    def _put(self, row: Row) -> Outcome:
        held = self.online.get(row.keys)
        if held is not None and held.event_time_us >= row.event_time_us:
            return Outcome.DUPLICATE if held == row else Outcome.OLDER
        self.online[row.keys] = row
        return Outcome.WRITTEN


class Kept:
    """The job as the database has it."""

    def __init__(self, job: Job) -> None:
        self.job = job

    async def save(self, running: RunningJob) -> None:
        self.job = running.job

    async def last_end(self, view: str) -> datetime:
        return EPOCH


@pytest.fixture
async def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[OfflineJobs, Stores, Any]:
    monkeypatch.setattr(offline_jobs, "_ROWS_A_BATCH", 10)
    path = tmp_path / "delays.csv"
    lines = [f"c{number % 7},1970-01-01T00:{number:02}:00Z,{number}" for number in range(COUNT)]
    path.write_text("\n".join(["carrier,when,delay", *lines, lines[3]]))
    source = BatchSource(location=FileLocation(f"file://{path}", FileFormat.CSV), event_time_column="when")
    view = FeatureView(
        id="delays", entities=("carrier",), features=(Feature(name="delay", type=FeatureType.DOUBLE),), source=source
    )
    catalog, stores = Catalog(), Stores()
    catalog.replace(compile_snapshot(1, [Entity(id="carrier", key_type=FeatureType.STRING)], [view]))
    processes = OfflineProcesses(
        tmp_path / "offline", EngineLimits("", memory_mib=256), {}, FileRoots([f"file://{tmp_path}"]), parallelism=1
    )
    processes.clear()
    spec = MaterializationSpec(view="featureViews/delays", end=datetime(1971, 1, 1, tzinfo=UTC))
    status = JobStatus(create_time=datetime(1971, 1, 1, tzinfo=UTC))
    kept: Any = Kept(Job("materializationJobs/one", spec, MaterializationOutcome(), status))
    done: Any = stores
    return OfflineJobs(catalog, kept, processes, done, done, kept), stores, kept


async def test_it_goes_on_where_it_was_cut_off_and_twice_equals_once(jobs: Any) -> None:
    work, stores, kept = jobs
    for writes in (5, 3, 10**9):
        stores.left = writes
        running = RunningJob(kept.job, kept.save)
        if writes < COUNT:
            with pytest.raises(CutOff):
                await work.materialize(running)
            assert kept.job.checkpoint < COUNT
        else:
            await work.materialize(running)
    # One line stands there twice.
    assert kept.job.status.done_count == kept.job.status.total_count == COUNT
    assert len({(row.keys, row.event_time_us) for row in stores.history}) == len(stores.history) == COUNT
    assert [stores.online[f"c{number}",].values["delay"] for number in range(7)] == [49, 43, 44, 45, 46, 47, 48]
    before = list(stores.history), dict(stores.online)
    again = RunningJob(replace(kept.job, checkpoint=0, outcome=MaterializationOutcome()), kept.save)
    await work.materialize(again)
    assert (stores.history, stores.online) == before
    assert again.job.outcome == MaterializationOutcome(0, COUNT - 7)
