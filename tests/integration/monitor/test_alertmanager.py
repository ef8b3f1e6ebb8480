"""Beside a real Alertmanager: what it lists, holds back and passes on is what the monitor said, once."""

import asyncio
import json
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from interlock.monitor.v1 import alert_pb2 as alert_pb
from interlock.monitor.v1 import alert_service_pb2 as pb

from tests.fakes.alert_receiver import Receiver, receiving
from tests.fakes.monitor_registry import FakeRegistry
from tests.fakes.ports import free_offset
from tests.integration.monitor.asking import until
from tests.integration.monitor.conftest import running_monitor
from tests.integration.monitor.test_alerts import FAST, FIRING, alerts_when, create, drifted, psi_rule, silence_for
from tests.integration.monitor.test_analysis import trained_version

BINARY = "prometheus-alertmanager"
# One notification for each alert and change, passed on at once.
CONFIG = """
route: {receiver: pager, group_by: ["..."], group_wait: 10ms, group_interval: 50ms, repeat_interval: 1h}
receivers: [{name: pager, webhook_configs: [{url: "%s", send_resolved: true}]}]
"""


@asynccontextmanager
async def alertmanager(folder: Path, pager: Receiver) -> AsyncIterator[Callable[[bool], Awaitable[str]]]:
    """Gives what starts or stops an Alertmanager, which keeps its state and its port, and returns its address."""
    if shutil.which(BINARY) is None:
        pytest.fail(f"{BINARY} is missing: install the Debian package {BINARY} (.ci/run does)", pytrace=False)
    config, port = folder / "alertmanager.yml", 9001 + free_offset()
    config.write_text(CONFIG % pager.url)
    running: list[asyncio.subprocess.Process] = []

    async def run(up: bool) -> str:
        url = f"http://127.0.0.1:{port}"
        while running:
            running[-1].terminate()
            await running[-1].wait()
            running.pop()
        if up:
            options = {
                "config.file": config,
                "storage.path": folder / "data",
                "web.listen-address": f"127.0.0.1:{port}",
            }
            arguments = [f"--{name}={value}" for name, value in options.items()]
            running.append(
                await asyncio.create_subprocess_exec(
                    BINARY, *arguments, "--cluster.listen-address=", "--log.level=error"
                )
            )
            async with httpx.AsyncClient(trust_env=False) as client:
                await until(lambda: is_ready(client, url, running[-1]))
        return url

    try:
        yield run
    finally:
        await run(False)


async def is_ready(client: httpx.AsyncClient, url: str, process: asyncio.subprocess.Process) -> bool:
    assert process.returncode is None, "Alertmanager has ended"
    try:
        return (await client.get(f"{url}/-/ready")).is_success
    except httpx.TransportError:
        return False


async def listed(client: httpx.AsyncClient) -> dict[str, str]:
    """Return what Alertmanager lists: the state of each alert."""
    found: list[dict[str, Any]] = (await client.get("/api/v2/alerts")).json()
    return {one["labels"]["alertname"]: one["status"]["state"] for one in found}


def told(pager: Receiver) -> Counter[tuple[str, str]]:
    """Count what Alertmanager has passed on: the name of each alert, and what of it."""
    alerts = [alert for post in pager.posts for alert in json.loads(post.body)["alerts"]]
    return Counter((alert["labels"]["alertname"], alert["status"]) for alert in alerts)


async def silence_in_alertmanager(client: httpx.AsyncClient, rule: str) -> None:
    matcher = {"name": "alertname", "value": rule, "isRegex": False, "isEqual": True}
    times = {"startsAt": "2020-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z"}
    answer = await client.post(
        "/api/v2/silences", json={"matchers": [matcher], "createdBy": "test", "comment": "planned", **times}
    )
    assert answer.is_success, answer.text


async def test_alerts_appear_go_are_silenced_and_come_once_after_it_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.monitor.domain.alert_delivery._FIRST_WAIT_US", 50_000)
    async with receiving() as pager, alertmanager(tmp_path, pager) as run:
        url = await run(True)
        configured = {"manager": {"kind": "alertmanager", "url": url}}
        async with (
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
            running_monitor(
                tmp_path,
                FakeRegistry([trained_version()]),
                monitor_alert_resend_s=3,
                monitor_alert_sinks=configured,
                **FAST,
            ) as monitor,
        ):

            async def lists(**wanted: str) -> None:
                await until(lambda: _equals(client, wanted))

            async def fires(rule_id: str) -> None:
                await create(monitor, rule_id, psi_rule(sinks=["manager"]))

            await silence_in_alertmanager(client, "silent-there")
            for rule_id in ("amounts", "silent-there", "silent-here"):
                await fires(rule_id)
            ours = silence_for(rule="alertRules/silent-here")
            await monitor.alerts.CreateSilence(pb.CreateSilenceRequest(silence=ours))
            await drifted(monitor)
            await lists(**{"amounts": "active", "silent-there": "suppressed"})
            assert len(await alerts_when(monitor, 3, FIRING)) == 3
            await until(lambda: _has_passed_on(client))
            await run(False)
            await fires("late")
            while not any("late" in alert.rule and alert.delivery_errors for alert in await alerts_when(monitor, 4)):
                await asyncio.sleep(0.05)
            await run(True)
            await lists(**{"amounts": "active", "silent-there": "suppressed", "late": "active"})
            await monitor.alerts.UpdateAlertRule(
                pb.UpdateAlertRuleRequest(alert_rule=alert_pb.AlertRule(name="alertRules/amounts", limit=50.0))
            )
            await lists(**{"silent-there": "suppressed", "late": "active"})
            await until(lambda: _has(pager, ("amounts", "resolved"), ("late", "firing")))
        assert told(pager) == {("amounts", "firing"): 1, ("late", "firing"): 1, ("amounts", "resolved"): 1}


async def _equals(client: httpx.AsyncClient, wanted: dict[str, str]) -> bool:
    return await listed(client) == wanted


async def _has_passed_on(client: httpx.AsyncClient) -> bool:
    """Return whether Alertmanager has got an answer from the pager, and so remembers that it told it."""
    metrics = (await client.get("/metrics")).text
    found = re.search(
        r'^alertmanager_notification_latency_seconds_count\{integration="webhook"\} (\d+)', metrics, re.MULTILINE
    )
    return found is not None and int(found[1]) >= 1


async def _has(pager: Receiver, *wanted: tuple[str, str]) -> bool:
    return set(wanted) <= told(pager).keys()
