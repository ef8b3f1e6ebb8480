"""What a parity check of the features service asks the monitor for."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from services.features.adapters.prediction_log import GrpcParitySources
from tests.fakes.monitor_registry import FakeRegistry, model_version
from tests.fakes.monitor_traffic import draw_traffic, requests
from tests.integration.monitor.asking import logged, record, text_id
from tests.integration.monitor.conftest import running_monitor

COUNT = 40


async def test_logged_vectors_come_with_their_keys_and_the_time_at_which_they_were_read(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    traffic = draw_traffic(7, [now.timestamp() - 600 + index for index in range(COUNT)])
    batch = next(iter(requests(traffic, rows=COUNT)))
    batch.batch.entity_keys.add(entity="customer", keys=[f"c-{number}" for number in range(COUNT)])
    batch.batch.feature_event_times.add(feature="amount", event_times_us=[1_700_000_000_000_000] * COUNT)
    batch.batch.feature_read_times_us.extend(1_700_000_001_000_000 + number for number in range(COUNT))
    batch.batch.redacted_features.extend(["country", "seats"])
    async with running_monitor(tmp_path, FakeRegistry([model_version()]), monitor_log_flush_interval_s=0.1) as monitor:
        await record(monitor, [batch])
        await logged(monitor, COUNT)
        port = monitor.serving.ports[0]
        sources = GrpcParitySources(f"127.0.0.1:{port}", f"127.0.0.1:{port}")
        path, start = tmp_path / "log.arrow", datetime.fromtimestamp(now.timestamp() - 3600, UTC)
        try:
            await sources.write_log(path, "models/fraud/versions/1", start, now, 10)
            some = pa.ipc.open_stream(path.read_bytes()).read_all()
            await sources.write_log(path, "models/fraud/versions/1", start, now, 1000)
        finally:
            await sources.close()
    assert len(some) == 10
    rows = {str(row["prediction_id"]): row for row in pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist()}
    assert len(rows) == COUNT
    for number, prediction_id in enumerate(traffic.ids):
        row = rows[text_id(prediction_id)]
        assert dict(row["entities"]) == {"customer": f"c-{number}"}
        assert row["features"]["amount"] == traffic.amount[number]
        assert row["feature_read_time"].replace(tzinfo=UTC).timestamp() * 1e6 == 1_700_000_001_000_000 + number
        assert [name for name, _ in row["feature_event_times"]] == ["amount"]
        assert row["redacted_features"] == ["country", "seats"]
