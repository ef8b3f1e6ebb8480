"""The history: what was acknowledged is there, once, whatever happens to the process, the disk or the store."""

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import fsspec
import grpc
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from prometheus_client import CollectorRegistry

from services.common.write_log import MAGIC, WriteLog
from services.features.adapters.history import FeatureHistory
from services.features.adapters.metrics import HistoryMetrics
from services.features.domain.catalog import CompiledView, compile_view
from services.features.domain.definitions import Entity, Feature, FeatureType, FeatureView, PushSource
from services.features.domain.failure import HistoryUnavailable
from services.features.domain.plain_view import PlainWriter
from services.features.domain.ports import Row
from tests.fakes.failing_disk import failing_disk
from tests.fakes.feature_values import Values, a_row, now_us, running_values
from tests.fakes.features_process import features_process
from tests.fakes.features_service import a_view, an_entity
from tests.fakes.redis_server import redis_server

DAY = 86_400_000_000


def make_view(*names: str, view: str = "v") -> CompiledView:
    features = tuple(Feature(name=name, type=FeatureType.DOUBLE, nullable=True) for name in names or ("number",))
    lists = Feature(name="texts", type=FeatureType.STRING, is_list=True)
    definition = FeatureView(id=view, entities=("e", "f"), features=(*features, lists), source=PushSource())
    return compile_view(definition, {name: Entity(id=name, key_type=FeatureType.STRING) for name in ("e", "f")})


WRITER = PlainWriter(make_view())


def a_history(folder: Path, uri: str = "", **settings: Any) -> FeatureHistory:
    limits = {"roll_bytes": 1 << 20, "roll_s": 3600, "backlog_bytes": 1 << 30, **settings}
    metrics = HistoryMetrics(CollectorRegistry())
    return FeatureHistory(uri or f"file://{folder}/parts", folder / "log", clock_us=now_us, metrics=metrics, **limits)


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[FeatureHistory]:
    history = a_history(folder, **settings)
    await history.open()
    try:
        yield history
    finally:
        await history.close()


def numbered(*numbers: int, day: int = 0) -> list[Row]:
    return [Row((f"k{n}", "x"), {"number": float(n)}, day * DAY + n + 1, n + 1, f"id{n}") for n in numbers]


async def numbers_in(history: FeatureHistory, view: str = "v", feature: str = "number") -> list[float]:
    """The values of all rows, parts and tail."""
    scan = await history.scan(view)
    tables = [] if scan.tail is None else [scan.tail]
    if scan.parts:
        tables.append(duckdb.read_parquet(list(scan.parts), union_by_name=True).to_arrow_table())
    return sorted(value for table in tables for value in table[feature].to_pylist())


async def test_a_row_keeps_its_keys_values_times_and_what_it_did_not_carry(tmp_path: Path) -> None:
    rows = [
        Row(("a", "b"), {"number": 0.1, "texts": ("x", "é\n")}, 1, 2, "id"),
        Row(("a", "c"), {"number": None}, DAY, 3),
    ]
    async with running(tmp_path) as history:
        await history.append(WRITER, rows)
        tail = (await history.scan("v")).tail
        assert tail is not None
        assert await history.roll()
        scan = await history.scan("v")
    assert scan.tail is None
    assert [Path(part).parent.relative_to(tmp_path / "parts") for part in scan.parts] == [
        Path("v/1970-01-01"),
        Path("v/1970-01-02"),
    ]
    table = pa.concat_tables([pa.parquet.read_table(part, partitioning=None) for part in scan.parts])
    utc = pa.timestamp("us", tz="UTC")
    assert table.schema.equals(tail.schema)
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {
        "entity__e": pa.string(),
        "entity__f": pa.string(),
        "number": pa.float64(),
        "texts": pa.list_(pa.string()),
        "event_time": utc,
        "known_at": utc,
        "event_id": pa.string(),
        "absent": pa.list_(pa.string()),
    }
    first, second = table.to_pylist()
    assert (first["entity__f"], first["number"], first["texts"], first["absent"]) == ("b", 0.1, ["x", "é\n"], [])
    assert (second["entity__f"], second["number"], second["texts"], second["absent"]) == ("c", None, None, ["texts"])
    assert table["known_at"].cast(pa.int64()).to_pylist() == [2, 3]
    assert table.to_pylist() == tail.to_pylist()


async def test_every_row_is_in_a_part_or_in_the_tail_at_every_moment(tmp_path: Path) -> None:
    async with running(tmp_path, roll_bytes=4096) as history:
        sent = 0

        async def push() -> None:
            nonlocal sent
            while sent < 600:
                numbers = range(sent, sent + 5)
                await history.append(WRITER, numbered(*numbers, day=sent % 3))
                sent += 5

        async def roll() -> None:
            while sent < 600:
                assert await history.roll()
                await asyncio.sleep(0)

        work = [asyncio.ensure_future(push()), asyncio.ensure_future(roll())]
        while sent < 600:
            before = sent
            found = await numbers_in(history)
            assert len(found) == len(set(found))
            assert set(found) >= set(map(float, range(before)))
        await asyncio.gather(*work)
        assert await numbers_in(history) == list(map(float, range(600)))
        assert await numbers_in(history, "other") == []


async def test_a_crash_between_parts_and_log_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as history:
        await history.append(WRITER, numbered(1, 2))
        await history.append(WRITER, numbered(3, day=5))
        with monkeypatch.context() as broken:
            broken.setattr(WriteLog, "finish", _raise(OSError(errno.EIO, "crashed here")))
            assert not await history.roll()
        assert len(list((tmp_path / "parts").rglob("*.parquet"))) == 2
        assert await numbers_in(history) == [1, 2, 3], "the parts are there, and the log still counts"
    async with running(tmp_path) as history:
        assert await numbers_in(history) == [1, 2, 3]
        await history.append(WRITER, numbered(4))
        assert await history.roll()
        assert await numbers_in(history) == [1, 2, 3, 4]
        newest = [row.values["number"] async for batch in history.newest() for row in batch.rows]
        assert newest == [1, 2, 3, 4], "the online store may have missed them all"


@pytest.mark.parametrize("torn", [b"\x01", b"\xff" * 8, b"\x10\x00\x00\x00\x00\x00\x00\x00short"])
async def test_a_torn_end_of_the_log_takes_nothing_along(tmp_path: Path, torn: bytes) -> None:
    async with running(tmp_path) as history:
        await history.append(WRITER, numbered(1, 2))
    (segment,) = (tmp_path / "log").glob("*.log")
    with segment.open("ab") as file:
        file.write(torn)
    (tmp_path / "log" / "00000000000000000001-empty.log").write_bytes(b"")
    (tmp_path / "log" / "00000000000000000002-cut.log").write_bytes(MAGIC[:3])
    (tmp_path / "log" / "notes.log").write_text("not ours")
    async with running(tmp_path) as history:
        assert await numbers_in(history) == [1, 2]
        await history.append(WRITER, numbered(3))
        assert await history.roll()
        assert await numbers_in(history) == [1, 2, 3]


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = _raise(OSError(errno.ENOSPC, "No space left on device"))
    async with running(tmp_path) as history:
        await history.append(WRITER, numbered(1))
        for function in ("write", "fdatasync"):
            with monkeypatch.context() as broken:
                broken.setattr(os, function, full)
                with pytest.raises(HistoryUnavailable, match="No space left"):
                    await history.append(WRITER, numbered(99))
                with pytest.raises(HistoryUnavailable):
                    await history.append(WRITER, numbered(98))
            await history.append(WRITER, numbered(2 if function == "write" else 3))
        assert await numbers_in(history) == [1, 2, 3]
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", full)
            assert not await history.roll()
        assert not list((tmp_path / "parts").rglob("*.tmp"))
        assert await numbers_in(history) == [1, 2, 3]
        assert await history.roll()
        assert await numbers_in(history) == [1, 2, 3]


async def test_a_disk_whose_syncs_fail_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_disk(monkeypatch) as disk:
        async with running(tmp_path) as history:
            await history.append(WRITER, numbered(1))
            disk.failing = ["fdatasync"]
            with pytest.raises(HistoryUnavailable, match="Input/output error"):
                await history.append(WRITER, numbered(99))
            disk.failing = ()
            await history.append(WRITER, numbered(2))
            disk.failing = ["fsync", "fdatasync"]
            assert not await history.roll()
            with pytest.raises(HistoryUnavailable, match="Input/output error"):
                await history.append(WRITER, numbered(99))
            disk.failing = ()
            assert await history.roll()
            await history.append(WRITER, numbered(3))
            disk.failing = ["fsync"]
            assert not await history.roll()
        assert not disk.trusted_again
        disk.lose_power(tmp_path)
    async with running(tmp_path) as history:
        assert await numbers_in(history) == [1, 2, 3]


async def test_a_log_that_cannot_become_parquet_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pa.parquet, "write_table", _raise(OSError(errno.EIO, "no store")))
    async with running(tmp_path, backlog_bytes=2000) as history:
        # A segment of one row has some 200 bytes.
        for number in range(20):
            with contextlib.suppress(HistoryUnavailable):
                await history.append(WRITER, numbered(number))
            assert not await history.roll()
        with pytest.raises(HistoryUnavailable, match="log is full"):
            await history.append(WRITER, numbered(21))
        kept = await numbers_in(history)
        assert kept == list(map(float, range(len(kept))))
        assert 5 < len(kept) < 15


class SlowStore(MemoryFileSystem):  # type: ignore[misc]
    """An object store that takes what it is given only once a test lets it, or is cut off in the middle."""

    protocol = "ilslow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked, answer = threading.Event(), threading.Event()
    cut = True

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self.asked.set()
        self.answer.wait()
        super().pipe_file(path, value[:100] if self.cut else value, **options)
        if self.cut:
            raise ConnectionResetError("cut off")


async def test_a_store_that_is_slow_or_cut_off_costs_no_row_and_no_time(tmp_path: Path) -> None:
    fsspec.register_implementation(SlowStore.protocol, SlowStore, clobber=True)
    history = a_history(tmp_path, uri="ilslow://history")
    await history.open()
    await history.append(WRITER, numbered(1))
    rolling = asyncio.ensure_future(history.roll())
    await asyncio.to_thread(SlowStore.asked.wait)
    # While the store hangs, rows are taken and read.
    await history.append(WRITER, numbered(2))
    scan = await history.scan("v")
    assert (scan.parts, scan.tail is not None and sorted(scan.tail["number"].to_pylist())) == ([], [1, 2])
    SlowStore.answer.set()
    assert not await rolling
    scan = await history.scan("v")
    assert (scan.parts, scan.tail is not None and sorted(scan.tail["number"].to_pylist())) == ([], [1, 2])
    SlowStore.cut = False
    assert await history.roll()
    scan = await history.scan("v")
    assert scan.tail is None
    tables = [pa.parquet.read_table(BytesIO(fsspec.filesystem("ilslow").cat_file(part))) for part in scan.parts]
    assert sorted(number for table in tables for number in table["number"].to_pylist()) == [1, 2]
    await history.close()


async def test_what_is_appended_at_the_same_moment_is_synced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    async with running(tmp_path) as history:
        bad = [Row(("k", "x"), {"number": float("nan")}, 1, 1)]
        found = await asyncio.gather(
            *[history.append(WRITER, numbered(number)) for number in range(100)],
            history.append(WRITER, bad),
            return_exceptions=True,
        )
        assert [type(each) for each in found[100:]] == [ValueError], "what cannot be kept harms nobody else"
        assert found[:100] == [None] * 100
        assert len(syncs) <= 3
        assert await numbers_in(history) == list(map(float, range(100)))


async def test_a_view_whose_features_changed_keeps_its_history(tmp_path: Path) -> None:
    async with running(tmp_path) as history:
        await history.append(WRITER, numbered(1))
        await history.append(PlainWriter(make_view("number", "more")), [Row(("k", "x"), {"more": 1.0}, 5, 5)])
        tail = (await history.scan("v")).tail
        assert tail is not None
        assert tail["more"].to_pylist() == [None, 1.0]
        assert await history.roll()
        scan = await history.scan("v")
        found = duckdb.read_parquet(list(scan.parts), union_by_name=True).project("more").fetchall()
        assert sorted(found, key=str) == [(1.0,), (None,)]


def test_a_log_says_nothing_of_what_was_not_safe(tmp_path: Path) -> None:
    log = WriteLog(tmp_path, now_us)
    log.adopt()
    log.append([b"one", b""])
    (snapshot,) = log.unfinished()
    log.append([b"two"])
    assert list(snapshot.records()) == [b"one", b""]
    other = WriteLog(tmp_path, now_us)
    other.adopt()
    assert other.sealed == [], "it is somebody else's"
    (seen,) = other.unfinished()
    assert list(seen.records()) == [b"one", b"", b"two"]
    log.close()
    other.adopt()
    assert [list(segment.records()) for segment in other.sealed] == [[b"one", b"", b"two"]]
    other.close()


async def test_a_process_that_takes_over_sees_the_rows_of_its_predecessor_once(tmp_path: Path) -> None:
    async with running(tmp_path) as old:
        await old.append(WRITER, numbered(1))
        async with running(tmp_path) as new:
            await new.append(WRITER, numbered(2))
            assert await new.roll()
            await old.append(WRITER, numbered(3))
            for each in (old, new):
                assert await numbers_in(each) == [1, 2, 3]
            assert await old.roll()
            for each in (old, new):
                assert await numbers_in(each) == [1, 2, 3]


async def test_what_was_acknowledged_survives_a_kill_in_both_stores(tmp_path: Path) -> None:
    """Pushes go on while the process is killed; every row that got an answer is online and in the history."""
    state = tmp_path
    async with redis_server() as redis:
        acknowledged: list[int] = []
        async with features_process(state, redis_url=redis.url) as process:
            await process.values.features.apply(an_entity(), a_view())

            async def push(first: int) -> None:
                number = first
                while True:
                    try:
                        outcomes = await process.values.push(a_row(f"c{number}", now_us(), delay_mean=float(number)))
                    except (grpc.aio.AioRpcError, asyncio.CancelledError):
                        return
                    assert outcomes == ["WRITTEN"]
                    acknowledged.append(number)
                    number += 4

            pushes = [asyncio.ensure_future(push(first)) for first in range(4)]
            while len(acknowledged) < 60:
                await asyncio.sleep(0.01)
            await process.kill()
            await asyncio.gather(*pushes)
        async with redis.client() as client:
            # Worse than a kill of features alone: the store has nothing, and the log has everything.
            await client.flushall()
        async with running_values(state, redis.url) as values:
            await _all_online(values, acknowledged)
        async with running(state / "features", roll_s=3600) as history:
            assert set(await numbers_in(history, "carrier_delays", "delay_mean")) >= set(map(float, acknowledged))


async def test_a_full_disk_is_said_to_who_pushes_and_disturbs_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with redis_server() as redis, running_values(tmp_path, redis.url) as values:
        await values.features.apply(an_entity(), a_view())
        await values.push(a_row("B6", now_us(), delay_mean=1.0))
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", _raise(OSError(errno.ENOSPC, "No space left on device")))
            with pytest.raises(grpc.aio.AioRpcError, match="No space left on device") as caught:
                await values.push(a_row("B6", now_us(), delay_mean=2.0))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await values.read("B6") == [(1.0, "PRESENT")]
        assert await values.push(a_row("B6", now_us(), delay_mean=3.0)) == ["WRITTEN"]
        assert await values.read("B6") == [(3.0, "PRESENT")]


async def _all_online(values: Values, numbers: Sequence[int]) -> None:
    wanted: Mapping[str, Any] = {f"c{number}": (float(number), "PRESENT") for number in numbers}
    while True:
        if dict(zip(wanted, await values.read(*wanted), strict=True)) == wanted:
            return
        await asyncio.sleep(0.05)


def _raise(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail
