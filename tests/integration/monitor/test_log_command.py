"""`interlock log query` against a real monitor."""

import asyncio
import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from interlock_cli.errors import CommandFailed
from interlock_cli.main import app
from tests.fakes.monitor_traffic import draw_traffic, requests
from tests.integration.monitor.asking import logged, record
from tests.integration.monitor.conftest import Monitor


async def test_a_query_is_printed_in_every_form(monitor: Monitor, tmp_path: Path) -> None:
    now_s = time.time()
    await record(monitor, requests(draw_traffic(3, [now_s - 100 + index for index in range(50)])))
    await logged(monitor, 50)
    file = tmp_path / "rows"

    async def run(*options: str) -> str:
        sql = "SELECT features.country AS country, features.amount AS amount, probabilities FROM predictions ORDER BY 2"
        target = f"127.0.0.1:{monitor.serving.ports[0]}"
        arguments = ["log", "query", sql, "--model", "fraud", "--since", "1h", "--target", target, *options]
        answer = await asyncio.to_thread(CliRunner().invoke, app, arguments, catch_exceptions=False)
        return answer.stdout

    async def written(form: str) -> str:
        await run("--format", form, "--output", str(file))
        return await asyncio.to_thread(file.read_text)

    assert "COUNTRY  AMOUNT   PROBABILITIES" in await run("--limit", "2")
    assert len(json.loads(await written("json"))) == 50
    csv = (await written("csv")).splitlines()
    assert (csv[0], len(csv)) == ('"country","amount","probabilities"', 51)
    await run("--format", "parquet", "--output", str(file))
    assert pq.read_table(file).column_names == ["country", "amount", "probabilities"]
    with pytest.raises(CommandFailed, match="--since: want a duration"):
        await run("--since", "yesterday")
