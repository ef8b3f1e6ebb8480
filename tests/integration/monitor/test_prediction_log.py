"""The log of predictions through the wire: what comes in is found again, by id, page by page and by query."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from interlock.monitor.v1 import prediction_event_pb2 as event_pb
from interlock.monitor.v1 import prediction_log_service_pb2 as pb

from tests.fakes.monitor_registry import FakeRegistry, model_version
from tests.fakes.monitor_traffic import Traffic, draw_traffic, requests
from tests.integration.monitor.asking import label, log, logged, query, reason, record, record_of, send, text_id, until
from tests.integration.monitor.conftest import Monitor, running_monitor

GET = "interlock.monitor.v1.PredictionLogService/GetPredictionRecord"
LIST = "interlock.monitor.v1.PredictionLogService/ListPredictionRecords"
QUERY = "interlock.monitor.v1.PredictionLogService/QueryPredictionLog"
COUNT = 300


@pytest.fixture
def traffic() -> Traffic:
    now_s = time.time()
    return draw_traffic(7, [now_s - 7_000 + 20 * index for index in range(COUNT)])


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    quick = {"monitor_log_flush_interval_s": 0.1, "monitor_label_join_interval_s": 0.05}
    async with running_monitor(tmp_path, FakeRegistry([model_version()]), **quick) as running:
        yield running


@pytest.mark.rpc(GET, "happy")
async def test_a_prediction_is_found_with_what_it_was_made_from_and_what_became_of_it(
    monitor: Monitor, traffic: Traffic
) -> None:
    batch = next(iter(requests(traffic, rows=COUNT)))
    batch.batch.entity_keys.add(entity="customer", keys=["c-1"] * COUNT)
    batch.batch.feature_event_times.add(feature="amount", event_times_us=[0, *[1_700_000_000_000_000] * (COUNT - 1)])
    batch.batch.feature_read_times_us.extend([1_700_000_001_000_000] * COUNT)
    # The last one is of a release that knows more reasons.
    reasons = [0, 0, event_pb.MISSING_REASON_UNAVAILABLE, event_pb.MISSING_REASON_STALE, 99, *[0] * (COUNT - 5)]
    batch.batch.missing_features.add(feature="amount", reasons=reasons)
    await record(monitor, [batch])
    await logged(monitor, COUNT)
    assert await send(monitor, label(traffic.ids[1], "fraud")) == ["TAKEN"]
    found = await record_of(monitor, traffic.ids[1])
    assert found is not None
    assert (found.model_version, found.variant, found.principal) == ("models/fraud/versions/1", "main", "local")
    assert found.features["amount"].double_value == traffic.amount[1]
    assert found.features["items"].int64_value == traffic.items[1]
    assert found.features["member"].bool_value == bool(traffic.member[1])
    assert found.features["country"].string_value == traffic.country[1]
    assert dict(found.entities) == {"customer": "c-1"}
    assert found.feature_event_times["amount"].seconds == 1_700_000_000
    assert found.feature_read_time.seconds == 1_700_000_001
    assert found.prediction.prediction.int64_value == int(traffic.chance[1] >= 0.5)
    assert found.prediction.probabilities[1] == pytest.approx(traffic.chance[1])
    assert found.prediction_time.ToMilliseconds() == int.from_bytes(traffic.ids[1][:6], "big")
    assert found.label.string_value == "fraud"
    records = [await record_of(monitor, prediction_id) for prediction_id in traffic.ids[1:5]]
    assert [dict(one.missing_features) for one in records if one is not None] == [
        {},
        {"amount": event_pb.MISSING_REASON_UNAVAILABLE},
        {"amount": event_pb.MISSING_REASON_STALE},
        {},
    ]
    assert "amount" not in (await record_of(monitor, traffic.ids[0])).feature_event_times  # type: ignore[union-attr]


@pytest.mark.rpc(GET, "error")
async def test_an_unknown_prediction_is_not_found_and_a_wrong_id_refused(monitor: Monitor) -> None:
    for prediction_id, want in (
        ("01890000-0000-7000-8000-000000000000", ("NOT_FOUND", "RESOURCE_NOT_FOUND", [])),
        ("nonsense", ("INVALID_ARGUMENT", "INVALID_FIELD", ["prediction_id"])),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await log(monitor).GetPredictionRecord(pb.GetPredictionRecordRequest(prediction_id=prediction_id))
        assert reason(caught.value) == want


@pytest.mark.rpc(LIST, "happy")
async def test_pages_hold_every_prediction_once_newest_first(monitor: Monitor, traffic: Traffic) -> None:
    first, second = requests(traffic, rows=150)
    second.batch.statuses[:] = [14] * 150
    await record(monitor, [first, second])
    await logged(monitor, COUNT)
    asked = pb.ListPredictionRecordsRequest(model="fraud", page_size=70)
    asked.start_time.FromSeconds(int(time.time()) - 8_000)
    found: list[str] = []
    while True:
        answer = await log(monitor).ListPredictionRecords(asked)
        found += [one.prediction_id for one in answer.prediction_records]
        asked.page_token = answer.next_page_token
        if not asked.page_token:
            break
    assert found == [text_id(one) for one in reversed(traffic.ids)]
    failed = await log(monitor).ListPredictionRecords(
        pb.ListPredictionRecordsRequest(model="fraud", errors_only=True, page_size=1000, start_time=asked.start_time)
    )
    assert {one.error.code for one in failed.prediction_records} == {14}
    assert len(failed.prediction_records) == 150
    await send(monitor, label(traffic.ids[3], 1), label(traffic.ids[5], 0))
    labelled = pb.ListPredictionRecordsRequest(model="fraud", labelled_only=True, start_time=asked.start_time)

    async def both() -> bool:
        listed = (await log(monitor).ListPredictionRecords(labelled)).prediction_records
        return [one.prediction_id for one in listed] == [text_id(traffic.ids[5]), text_id(traffic.ids[3])]

    await until(both)


@pytest.mark.rpc(LIST, "error")
async def test_a_list_names_all_that_is_wrong(monitor: Monitor) -> None:
    asked = pb.ListPredictionRecordsRequest(model="../x", variant="?")
    asked.start_time.FromSeconds(10)
    asked.end_time.FromSeconds(5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await log(monitor).ListPredictionRecords(asked)
    assert reason(caught.value)[2] == ["model", "variant", "end_time"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await log(monitor).ListPredictionRecords(pb.ListPredictionRecordsRequest(model="fraud", page_token="x"))
    assert reason(caught.value)[1] == "INVALID_PAGE_TOKEN"


@pytest.mark.rpc(QUERY, "happy")
async def test_a_query_sees_features_labels_and_rewards(monitor: Monitor, traffic: Traffic) -> None:
    await record(monitor, requests(traffic, rows=100))
    await logged(monitor, COUNT)
    chosen = [one for one, country in zip(traffic.ids, traffic.country, strict=True) if country == "SE"]
    await send(monitor, *(label(one, 1) for one in chosen))
    reward = label(chosen[0], 0)
    reward.ClearField("label")
    reward.reward, reward.metric = 12.5, "revenue"
    await send(monitor, reward)

    sql = """SELECT features.country AS country, count(*) AS n, sum(features.amount) AS amount, count(label) AS labels,
                    max(label_name) AS name, max(rewards['revenue']) AS revenue, avg(prediction) AS predicted
             FROM predictions GROUP BY 1 ORDER BY 1"""

    async def joined() -> bool:
        found = {row["country"]: row for row in await query(monitor, sql, model="fraud")}
        return bool(found["SE"]["labels"] == len(chosen))

    await until(joined)
    found = {row["country"]: row for row in await query(monitor, sql, model="fraud")}
    assert sum(row["n"] for row in found.values()) == COUNT
    assert (found["SE"]["name"], found["SE"]["revenue"], found["NO"]["labels"]) == ("fraud", 12.5, 0)
    mask = [country == "SE" for country in traffic.country]
    assert found["SE"]["amount"] == pytest.approx(traffic.amount[mask].sum())
    assert found["SE"]["predicted"] == pytest.approx((traffic.chance[mask] >= 0.5).mean())
    assert await query(monitor, "SELECT count(*) AS n FROM predictions", model="other") == [{"n": 0}]


async def test_a_query_is_cut_at_its_rows_and_streams_in_parts(monitor: Monitor, traffic: Traffic) -> None:
    await record(monitor, requests(traffic))
    await logged(monitor, COUNT)
    asked = pb.QueryPredictionLogRequest(sql="SELECT range FROM range(2000000)", max_row_count=1_000_000)
    messages = [message async for message in log(monitor).QueryPredictionLog(asked)]
    assert len(messages) > 3
    assert [message.truncated for message in messages] == [*[False] * (len(messages) - 1), True]


WRONG = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_parquet('s3://bucket/x')",
    "COPY predictions TO '/tmp/il-stolen.csv'",
    "ATTACH '/tmp/il-other.db' AS other",
    "PRAGMA database_list",
    "SET memory_limit = '100GB'",
    "INSTALL httpfs",
    "SELECT 1; SELECT 2",
    "CREATE TABLE x (a INT)",
    "WITH gone AS (DELETE FROM feedback_rows RETURNING *) SELECT * FROM gone, predictions WHERE label = 1",
    "SELECT * FROM prediction_rows",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM duckdb_settings()",
    "WITH duckdb_columns AS (SELECT 1) SELECT * FROM duckdb_columns",
    "SELECT current_setting('temp_directory')",
    "SELECT * FROM query('SELECT 1')",
    "SELECT no_such_column FROM predictions",
    "SELECT features.no_such_feature FROM predictions",
    "SELEC 1",
    "",
]


@pytest.mark.rpc(QUERY, "error")
async def test_a_query_that_is_not_one_select_over_the_view_is_refused(monitor: Monitor, tmp_path: Path) -> None:
    for sql in WRONG:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await query(monitor, sql)
        code, why, fields = reason(caught.value)
        assert (code, fields) == ("INVALID_ARGUMENT", ["sql"]), sql
        assert why == ("INVALID_QUERY" if sql else "INVALID_FIELD"), sql
        assert str(tmp_path) not in (caught.value.details() or "")
        assert "\n" not in (caught.value.details() or ""), sql


async def test_a_query_that_asks_for_too_much_ends_and_one_without_a_caller_too(tmp_path: Path) -> None:
    endless = "SELECT count(*) FROM range(1000000000) a, range(1000000) b WHERE a.range % 7 = b.range"
    limits = {"monitor_query_limit": 1, "monitor_query_timeout_s": 30, "monitor_query_memory_bytes": 32_000_000}
    async with running_monitor(tmp_path, FakeRegistry([]), **limits) as monitor:
        left = log(monitor).QueryPredictionLog(pb.QueryPredictionLogRequest(sql=endless))
        reading = asyncio.ensure_future(left.read())
        folder = tmp_path / "monitor" / "queries"

        async def is_running() -> bool:
            return folder.exists() and any(folder.iterdir())

        await until(is_running)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await query(monitor, "SELECT 1")
        assert reason(caught.value)[:2] == ("RESOURCE_EXHAUSTED", "QUERY_TOO_LARGE")
        left.cancel()
        await asyncio.wait([reading])

        async def is_over() -> bool:
            return not any(folder.iterdir())

        await until(is_over)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await query(monitor, "SELECT list(range) FROM range(30000000)")
        assert reason(caught.value)[:2] == ("RESOURCE_EXHAUSTED", "QUERY_TOO_LARGE")
        await until(is_over)
