"""Joins and jobs as people use them: a data frame in, a data frame out; `interlock features join`."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from interlock_cli.errors import CommandFailed
from interlock_cli.main import app
from interlock_sdk.client import connect
from tests.fakes.aggregate_world import redis_process
from tests.fakes.features_service import a_view, an_entity, running_features
from tests.fakes.offline_world import NOON, OfflineWorld, batch_view, csv_source, labels, row


async def test_frames_and_files_are_joined_and_sources_materialized(tmp_path: Path) -> None:
    path = tmp_path / "delays.csv"
    path.write_text("carrier,when,delay_mean\nAA,2025-06-01 10:00Z,1\nAA,2025-06-01 11:00Z,2\n")
    with redis_process() as redis, capture_logs():
        settings: dict[str, Any] = {"redis_url": f"unix://{redis.socket}", "job_poll_s": 0.05, "tcp": True}
        async with running_features(tmp_path / "state", **settings) as features:
            world = OfflineWorld(features, tmp_path)
            await features.apply(an_entity(), a_view(), batch_view(csv_source(path)))
            await world.push("carrier_delays", row("AA", 0, 0, {"delay_mean": 4}))
            frame = pd.DataFrame({"carrier": ["BB", "AA"], "at": [NOON, NOON + timedelta(hours=1)]}, index=[7, 5])
            async with connect(features.address) as client:
                joined = await client.offline_features.join(frame, ["carrier_delays.delay_mean"], time_column="at")
            assert joined["carrier_delays__delay_mean"].tolist()[1:] == [4.0]
            assert list(joined["carrier_delays__delay_mean"].isna()) == [True, False]

            async def run(*arguments: str) -> Result:
                command = ["features", *arguments, "--target", features.address]
                return await asyncio.to_thread(lambda: CliRunner().invoke(app, command))

            rows, output = tmp_path / "rows.parquet", tmp_path / "joined.parquet"
            pq.write_table(labels(("AA", 0), ("BB", 0)), rows)
            options = ("--time-column", "at", "--output", str(output))
            shown = await run("join", str(rows), "carrier_delays.delay_mean", *options)
            assert shown.output.split()[-3:] == ["carrier_delays__delay_mean", "1", "1"]
            assert pq.read_table(output).column("carrier_delays__delay_mean").to_pylist() == [4.0, None]
            done = await run("materialize", "batch")
            assert done.output.splitlines()[-1] == "2 rows, 2 written, 0 older than known"
            failed = await run("parity", "models/flights/versions/1")
            assert isinstance(failed.exception, CommandFailed)
            assert "the registry does not answer" in failed.exception.message
