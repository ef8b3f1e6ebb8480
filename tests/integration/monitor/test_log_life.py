"""The log on the disk: merged, forgotten, torn, full; and labels that a kill must not lose."""

import asyncio
import errno
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import generate_latest
from sqlalchemy import select

from services.common.database import Database
from services.common.errors import Unavailable
from services.common.migration import open_database
from services.monitor.adapters import label_reader, label_store
from services.monitor.adapters.label_join import LabelJoin
from services.monitor.adapters.label_reader import LabelReader
from services.monitor.adapters.label_store import LabelStore
from services.monitor.adapters.log_compaction import LogCompaction
from services.monitor.adapters.log_files import LogFiles
from services.monitor.adapters.log_journal import LogJournal
from services.monitor.adapters.log_reader import LogReader
from services.monitor.adapters.log_writer import LogWriter
from services.monitor.adapters.migrations import MIGRATIONS
from services.monitor.adapters.table import LABEL
from services.monitor.convert.prediction_batch import batch_from_proto
from services.monitor.convert.version import version_from_proto
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.columns import LabelBatch, PredictionColumns
from services.monitor.domain.decode import columns_of
from services.monitor.domain.failure import LogNotWritten
from services.monitor.domain.feedback import Feedback, LabelState
from services.monitor.domain.log_question import EVER_US
from services.monitor.domain.ports import LogPolicy
from tests.fakes.failing_disk import failing_disk
from tests.fakes.monitor_registry import FakeRegistry, model_version
from tests.fakes.monitor_traffic import Traffic, draw_traffic, hour_times, requests
from tests.integration.monitor.asking import query, record, until
from tests.integration.monitor.conftest import running_monitor

INFO = version_from_proto(model_version())
HOUR_S = 3600.0


class Policies:
    policy = LogPolicy()

    def of_model(self, model: str) -> LogPolicy:
        return self.policy


class Versions:
    async def get(self, model: str, version: str) -> Any:
        return INFO


def columns(traffic: Traffic) -> PredictionColumns:
    (request,) = requests(traffic, rows=len(traffic))
    batch = batch_from_proto(request)
    assert batch is not None
    return columns_of(batch, INFO)


OpenLog = Callable[..., Awaitable[Any]]


@pytest.fixture
async def open_log() -> AsyncIterator[OpenLog]:
    """Opens the parts of the log in a folder, as a start does it; what was opened before stays as a crash would leave it."""
    opened: list[LogJournal] = []

    async def open_in(folder: Path, **changes: Any) -> Any:
        for journal in opened:
            await journal.close()
        opened[:] = [LogJournal(folder / "journal")]
        files, drops = LogFiles(f"file://{folder / 'log'}"), Drops()
        options = {"flush_rows": 1000, "flush_interval_s": 0.05, "clock_tolerance_s": 60, **changes}
        writer = LogWriter(files, opened[0], Policies(), drops, **options)
        await writer.open()
        return SimpleNamespace(files=files, drops=drops, writer=writer, reader=LogReader(files, writer))

    yield open_in
    for journal in opened:
        await journal.close()


def stored(folder: Path) -> list[str]:
    """Return the names of all files of a log, those that are not finished too."""
    return [path.name for path in folder.rglob("*.parquet")]


def count_of(log: Any) -> tuple[int, int]:
    """Return rows and different ids of everything in the log."""
    snapshot = log.reader.snapshot(None, 0, EVER_US)
    ids = log.reader.dataset(snapshot).to_table()["prediction_id"].to_pylist()
    return len(ids), len(set(ids))


async def test_closed_hours_are_merged_with_every_id_once_and_old_ones_forgotten(
    tmp_path: Path, open_log: OpenLog
) -> None:
    log = await open_log(tmp_path)
    traffic = draw_traffic(1, hour_times(500, 2))
    for _ in range(3):
        await log.writer.take(columns(traffic))
        await log.writer.flush()
    assert count_of(log) == (1500, 500)
    now_s = time.time()
    clock = SimpleNamespace(now_s=now_s)
    compaction = LogCompaction(log.files, Policies(), interval_s=60, clock=lambda: clock.now_s)
    await compaction.look()
    assert count_of(log) == (500, 500)
    assert {name.split("-")[0] for name in stored(tmp_path)} == {"part", "merged"}
    # A query that began before may still read the old files; later they go.
    await compaction.look()
    clock.now_s += 600
    await compaction.look()
    (left,) = stored(tmp_path)
    assert left.startswith("merged-")
    # One that comes late is merged too, and a merge that was cut off before the deletion changes nothing.
    late = draw_traffic(2, hour_times(3, 2))
    await log.writer.take(columns(late))
    await log.writer.flush()
    await compaction.look()
    assert count_of(log) == (503, 503)
    assert count_of(await open_log(tmp_path)) == (503, 503)
    clock.now_s += 31 * 24 * HOUR_S
    await compaction.look()
    assert not stored(tmp_path)


async def files_written(folder: Path, count: int) -> bool:
    return len([name for name in stored(folder) if not name.startswith(".")]) == count


def damage(folder: Path) -> None:
    """Tear one file apart, flip a page of another, whose footer stays sound, and add some that are sound and not ours."""
    torn, flipped, good = sorted(folder.rglob("*.parquet"))
    table = pq.read_table(good)
    texts = pa.array(["x"] * table.num_rows)
    for name, foreign in {
        "other": pa.table({"a": [1]}),
        "id": table.set_column(0, "prediction_id", texts),
        "null": table.set_column(0, "prediction_id", pa.nulls(table.num_rows, pa.uuid())),
        "time": table.set_column(1, "prediction_time", texts),
        "feature": table.append_column("features.x", pa.array([{"a": 1}] * table.num_rows)),
        "version": table.replace_schema_metadata({"interlock.version": "../1"}),
        "nobody": table.replace_schema_metadata(None),
    }.items():
        pq.write_table(foreign, good.with_name(f"{name}.parquet"))
    torn.write_bytes(torn.read_bytes()[:1000])
    content = bytearray(flipped.read_bytes())
    content[40:60] = bytes(byte ^ 0xFF for byte in content[40:60])
    flipped.write_bytes(content)
    (folder / "fraud" / "nonsense").mkdir()


async def test_a_damaged_file_is_left_out_and_the_others_are_read(tmp_path: Path) -> None:
    async with running_monitor(tmp_path, FakeRegistry([model_version()]), monitor_log_flush_interval_s=0.05) as monitor:
        folder = tmp_path / "monitor" / "log"
        for seed in range(3):
            await record(monitor, requests(draw_traffic(seed, [time.time() - 5] * 200)))
            await until(partial(files_written, folder, seed + 1))
        damage(folder)
        rows = await query(
            monitor, "SELECT count(DISTINCT prediction_id) AS n, sum(features.amount) AS s FROM predictions"
        )
        assert rows[0]["n"] == 200
        metrics = generate_latest(monitor.serving.runtime.registry).decode()
        assert "interlock_monitor_log_files_damaged_total 9.0" in metrics


async def test_a_full_disk_costs_predictions_that_are_counted_and_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_log: OpenLog
) -> None:
    log = await open_log(tmp_path, flush_rows=100)
    real = LogFiles.write

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LogFiles, "write", full)
    now_s = time.time()
    for seed in range(6):
        await log.writer.take(columns(draw_traffic(seed, [now_s - 1] * 100)))
        assert not await log.writer.flush()
    assert log.writer.row_count == 400
    assert list(log.drops.counts()) == [("log", "disk_full", 200)]
    assert count_of(log) == (400, 400)
    monkeypatch.setattr(LogFiles, "write", real)
    assert await log.writer.flush()
    await log.writer.take(columns(draw_traffic(9, [now_s - 1] * 100)))
    assert log.writer.row_count == 100
    assert count_of(log) == (500, 500)
    assert not [name for name in stored(tmp_path) if name.startswith(".")]


async def test_a_disk_whose_syncs_fail_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_log: OpenLog
) -> None:
    now_s = time.time()
    with failing_disk(monkeypatch) as disk:
        log = await open_log(tmp_path)
        # Without its journal a log writes its files at once; without either it says that it has nothing safe.
        for seed, failing in enumerate([(), ("fdatasync",), ("fsync", "fdatasync"), (), ("fdatasync",)]):
            disk.failing = failing
            await log.writer.take(columns(draw_traffic(seed, [now_s - 1] * 10)))
            if "fsync" in failing:
                with pytest.raises(LogNotWritten):
                    await log.writer.safe()
            else:
                await log.writer.safe()
        assert count_of(log) == (50, 50)
        await open_log(tmp_path / "other")
        assert not disk.trusted_again
        disk.lose_power(tmp_path)
    assert count_of(await open_log(tmp_path)) == (50, 50)


async def test_what_is_logged_before_its_version_is_known_is_written_and_one_part_that_cannot_be_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_log: OpenLog
) -> None:
    log = await open_log(tmp_path)
    real = LogFiles.write

    def refuse(files: LogFiles, partition: Any, table: pa.Table, *, name: str, version: str) -> None:
        if "features.amount" not in table.column_names:
            raise OSError(errno.EIO, "Input/output error")
        real(files, partition, table, name=name, version=version)

    monkeypatch.setattr(LogFiles, "write", refuse)
    now_s = time.time()
    (unnamed,) = requests(draw_traffic(99, [now_s - 1] * 10))
    await log.writer.take(columns_of(batch_from_proto(unnamed), None))  # type: ignore[arg-type]
    for seed in range(30):
        await log.writer.take(columns(draw_traffic(seed, [now_s - 1] * 10)))
        await log.writer.safe()
        assert not await log.writer.flush()
    assert log.writer.row_count == 10
    # The journal holds what is in no file, not all that came since.
    assert len(list((tmp_path / "journal").glob("*.log"))) < 25
    monkeypatch.setattr(LogFiles, "write", real)
    # As after a kill.
    log = await open_log(tmp_path)
    assert count_of(log) == (310, 310)
    assert len(stored(tmp_path)) == 31
    assert not list((tmp_path / "journal").glob("*.log"))


async def test_times_outside_of_the_log_and_the_unsampled_are_left_out(tmp_path: Path, open_log: OpenLog) -> None:
    log = await open_log(tmp_path)
    now_s = time.time()
    strange = [now_s + 3600, now_s - 366 * 24 * HOUR_S, 0.0]
    await log.writer.take(columns(draw_traffic(1, [*strange, *[now_s - 1] * 97])))
    assert list(log.drops.counts()) == [("log", "out_of_range", 3)]
    assert count_of(log) == (97, 97)
    Policies.policy = LogPolicy(log_basis_points=1000)
    try:
        traffic = draw_traffic(2, [now_s - 2] * 5000)
        await log.writer.take(columns(traffic))
        await log.writer.take(columns(traffic))
    finally:
        Policies.policy = LogPolicy()
    table = pa.concat_tables([table for part in log.writer._parts for table in part.tables]).slice(97)
    ids = [bytes(one.as_py().bytes) for one in table["prediction_id"]]
    assert Counter(Counter(ids).values()).keys() == {2}
    assert 400 < len(ids) / 2 < 600
    assert set(table["sampling_weight"].to_pylist()) == {10.0}


class Accumulator:
    """A label sink that counts as windows do: a label in, the one it replaces out, a batch once."""

    def __init__(self) -> None:
        self.last = 0
        self.labels: Counter[float] = Counter()
        self.batches: list[tuple[int, int]] = []
        self.fails_after = False

    async def take_labels(self, batch: LabelBatch) -> None:
        self.batches.append((batch.number, sum(part.predictions.count for part in batch.parts)))
        if batch.number > self.last:
            for part in batch.parts:
                assert part.predictions.probabilities is not None
                self.labels.update(part.labels.tolist())
                self.labels.subtract(part.previous_labels[~np.isnan(part.previous_labels)].tolist())
            self.last = batch.number
        if self.fails_after:
            raise Unavailable("killed here", reason="TEST")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, MIGRATIONS, service="monitor", statement_timeout_s=5) as opened:
        yield opened


@pytest.fixture
async def store(database: Database) -> AsyncIterator[LabelStore]:
    found = LabelStore(database, queue_limit=1000)
    writing = asyncio.ensure_future(found.run())
    yield found
    writing.cancel()
    await asyncio.wait([writing])


async def test_a_batch_of_labels_comes_again_after_a_crash_and_counts_once(
    database: Database, store: LabelStore, tmp_path: Path, open_log: OpenLog
) -> None:
    log = await open_log(tmp_path / "log")
    traffic = draw_traffic(5, [time.time() - 10] * 50)
    await log.writer.take(columns(traffic))
    sink = Accumulator()
    join = LabelJoin(database, log.reader, Versions(), policies=Policies(), sinks=[sink], drops=log.drops, interval_s=1)
    now_us = int(time.time() * 1e6)

    async def send(value: float, *, later_us: int) -> None:
        await store.take([Feedback(one, "", value, None, now_us + later_us, event_given=True) for one in traffic.ids])

    await send(1.0, later_us=0)
    sink.fails_after = True
    with pytest.raises(Unavailable):
        await join.step()
    # While the batch is on its way again, the labels change.
    await send(0.0, later_us=1)
    sink.fails_after = False
    assert await join.step()
    assert sink.batches == [(1, 50), (1, 50)]
    assert +sink.labels == Counter({1.0: 50})
    assert await join.step()
    assert +sink.labels == Counter({0.0: 50})
    assert not await join.step()
    await store.take([Feedback(traffic.ids[0], "", None, "no such class", now_us + 2, event_given=True)])
    assert not await join.step()
    assert ("labels", "does_not_fit", 1) in list(log.drops.counts())
    async with database.read() as connection:
        states = Counter(await connection.scalars(select(LABEL.c.state)))
    assert states == {LabelState.JOINED: 49, LabelState.UNUSABLE: 1}


async def test_labels_do_not_wait_for_a_clock_that_was_set_back(
    database: Database, store: LabelStore, tmp_path: Path, open_log: OpenLog
) -> None:
    log = await open_log(tmp_path / "log")
    traffic = draw_traffic(5, [time.time() - 10] * 5)
    await log.writer.take(columns(traffic))
    now_us = int(time.time() * 1e6)
    await store.take([Feedback(one, "", 1.0, None, now_us, event_given=True) for one in traffic.ids])
    sink = Accumulator()
    options: dict[str, Any] = {"policies": Policies(), "sinks": [sink], "drops": log.drops, "interval_s": 1}
    join = LabelJoin(database, log.reader, Versions(), clock=lambda: time.time() - 24 * HOUR_S, **options)
    assert await join.step()
    assert +sink.labels == Counter({1.0: 5})


async def test_a_label_that_cannot_be_written_is_told_to_its_sender_and_to_nobody_else(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = label_store._row

    def broken(new: Feedback, *more: Any) -> Any:
        if new.source == "poison":
            raise RuntimeError("cannot be written")
        return real(new, *more)

    monkeypatch.setattr(label_store, "_row", broken)
    now_us = int(time.time() * 1e6)
    ids = draw_traffic(4, [time.time() - 1] * 5).ids
    sent = [Feedback(one, "", 1.0, None, now_us, event_given=True) for one in ids]
    sent[2] = replace(sent[2], source="poison")
    for _ in range(2):
        answers = await asyncio.gather(*(store.take([one]) for one in sent), return_exceptions=True)
        assert [isinstance(answer, RuntimeError) for answer in answers] == [False, False, True, False, False]


async def test_two_monitors_on_one_database_join_every_label_once(
    database: Database, store: LabelStore, tmp_path: Path, open_log: OpenLog
) -> None:
    log = await open_log(tmp_path / "log")
    traffic = draw_traffic(6, [time.time() - 10] * 300)
    await log.writer.take(columns(traffic))
    sink = Accumulator()
    options: dict[str, Any] = {"policies": Policies(), "sinks": [sink], "drops": log.drops, "interval_s": 1}
    joins = [LabelJoin(database, log.reader, Versions(), **options) for _ in range(2)]
    for start in range(0, 300, 50):
        made_us = int(time.time() * 1e6)
        some = traffic.ids[start : start + 50]
        await store.take([Feedback(one, "", 1.0, None, made_us, event_given=True) for one in some])
        while any(await asyncio.gather(*(join.step() for join in joins))):
            pass
    assert +sink.labels == Counter({1.0: 300})


async def test_labels_and_rewards_are_read_in_parts_each_once(
    database: Database, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_reader, "_CHUNK_ROWS", 4)
    ids = sorted(draw_traffic(3, [time.time() - 5 + index for index in range(5)]).ids)
    now_us = int(time.time() * 1e6)
    await store.take([
        Feedback(one, metric, 1.0, None, now_us, event_given=True) for one in ids for metric in ("", "a", "b")
    ])  # fmt: skip
    reader = LabelReader(database)
    tables = [table async for table in reader.of_time(ids[1], ids[4])]
    found = pa.concat_tables(tables)
    pairs = list(
        zip([one.bytes for one in found["prediction_id"].to_pylist()], found["metric"].to_pylist(), strict=True)
    )
    # Labels are among them once they are joined.
    assert pairs == [(one, metric) for one in ids[1:4] for metric in ("a", "b")]
    assert len(tables) == 2
    feedback = await reader.of_predictions(ids)
    assert {(one.number, tuple(one.rewards)) for one in feedback.values()} == {(1.0, ("a", "b"))}
