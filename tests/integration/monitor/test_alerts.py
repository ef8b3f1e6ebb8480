"""Alerts through the wire: real events to windows to drift to somebody who is told."""

import asyncio
import hashlib
import hmac
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interlock.monitor.v1 import alert_pb2 as alert_pb
from interlock.monitor.v1 import alert_service_pb2 as pb
from prometheus_client import generate_latest

from interlock_cli.commands.alerts import _apply as apply_rules
from interlock_cli.definitions.alert_rules import read_alert_rules
from interlock_cli.errors import CommandFailed
from interlock_sdk.client import connect
from tests.fakes.alert_receiver import receiving
from tests.fakes.monitor_registry import FakeRegistry, model_version
from tests.fakes.monitor_traffic import draw_traffic, hour_times, requests
from tests.fakes.ports import free_offset
from tests.integration.monitor.conftest import Monitor, running_monitor
from tests.integration.monitor.test_analysis import record, refused, trained_version

SERVICE = "interlock.monitor.v1.AlertService"
SECRET = "0123456789abcdef-secret"
ABOVE = alert_pb.ALERT_CONDITION_ABOVE
FIRING = alert_pb.ALERT_STATE_FIRING
RESOLVED = alert_pb.ALERT_STATE_RESOLVED
FAST: dict[str, Any] = {
    "monitor_window_interval_s": 0.05,
    "monitor_alert_interval_s": 0.1,
    "monitor_alert_timeout_s": 1,
}


def sinks(**urls: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, url in urls.items():
        made[name] = {"kind": "webhook", "url": url, "secret": SECRET}
        if name == "manager":
            made[name] = {"kind": "alertmanager", "url": url, "bearer_token": "opensesame"}
    return {"monitor_alert_sinks": made}


def psi_rule(**changes: Any) -> alert_pb.AlertRule:
    given: dict[str, Any] = {"metric": "drift/psi", "condition": ABOVE, "limit": 0.2, "features": ["amount"], **changes}
    return alert_pb.AlertRule(**given)


async def create(monitor: Monitor, rule_id: str, rule: alert_pb.AlertRule, **more: Any) -> alert_pb.AlertRule:
    request = pb.CreateAlertRuleRequest(alert_rule_id=rule_id, alert_rule=rule, **more)
    return (await monitor.alerts.CreateAlertRule(request)).alert_rule


async def alerts_when(monitor: Monitor, count: int, *states: Any, **more: Any) -> list[alert_pb.Alert]:
    while True:
        answer = await monitor.alerts.ListAlerts(pb.ListAlertsRequest(states=states, **more))
        if len(answer.alerts) >= count:
            return list(answer.alerts)
        await asyncio.sleep(0.05)


async def drifted(monitor: Monitor) -> None:
    await record(monitor, requests(draw_traffic(1, hour_times(1000, 0), shift=2000.0)))


def check_signature(post: Any) -> None:
    """As a receiver does it: the time is recent, the signature is ours."""
    timestamp = post.headers["interlock-timestamp"]
    assert abs(time.time() - int(timestamp)) < 30
    digest = hmac.new(SECRET.encode(), timestamp.encode() + b"." + post.body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(post.headers["interlock-signature"], f"v1={digest}")


@pytest.mark.rpc(f"{SERVICE}/ListAlerts", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetAlert", "happy")
async def test_drift_fires_and_webhook_alertmanager_and_log_are_told_until_it_is_over(tmp_path: Path) -> None:
    registry = FakeRegistry([trained_version()])
    async with (
        receiving() as pager,
        receiving() as manager,
        receiving(silent=True) as dead,
        running_monitor(
            tmp_path,
            registry,
            monitor_alert_resend_s=0.3,
            **FAST,
            **sinks(pager=f"{pager.url}/hook", manager=manager.url, dead=dead.url),
        ) as monitor,
    ):
        rule = psi_rule(sinks=["log", "dead", "pager", "manager"], severity=alert_pb.ALERT_SEVERITY_CRITICAL)
        rule.annotation = "look at the amounts"
        await create(monitor, "amounts", rule)
        await drifted(monitor)
        post = (await pager.until(1))[0]
        check_signature(post)
        told = post.content
        assert (post.path, told["event"], told["alert"]["feature"]) == ("/hook", "firing", "amount")
        assert told["alert"]["model_version"] == "models/fraud/versions/1"
        assert told["rule"]["annotation"] == "look at the amounts"
        assert told["alert"]["value"] > 0.2
        first = (await manager.until(2))[0]
        assert (first.path, first.headers["authorization"]) == ("/api/v2/alerts", "Bearer opensesame")
        (sent,) = first.content
        assert sent["labels"] == {
            "alertname": "amounts",
            "severity": "critical",
            "metric": "drift/psi",
            "model": "fraud",
            "version": "1",
            "environment": "production",
            "feature": "amount",
        }
        assert sent["startsAt"] < sent["endsAt"]
        # Evaluation went on beside a receiver that never answers, which is told on the alert.
        (alert,) = await alerts_when(monitor, 1, FIRING)
        while "dead" not in alert.delivery_errors or len(alert.delivery_times) < 3:
            await asyncio.sleep(0.05)
            alert = (await monitor.alerts.GetAlert(pb.GetAlertRequest(name=alert.name))).alert
        assert set(alert.delivery_times) == {"log", "pager", "manager"}
        assert "no answer" in alert.delivery_errors["dead"] or "Timeout" in alert.delivery_errors["dead"]
        metrics = generate_latest(monitor.serving.runtime.registry).decode()
        assert 'alert_rule_met{environment="production",feature="amount",metric="drift/psi"' in metrics
        # The limit is raised: evaluated anew, the alert is over.
        await monitor.alerts.UpdateAlertRule(
            pb.UpdateAlertRuleRequest(alert_rule=alert_pb.AlertRule(name="alertRules/amounts", limit=50.0))
        )
        (over,) = await alerts_when(monitor, 1, RESOLVED)
        assert over.name == alert.name
        assert over.HasField("resolve_time")
        assert [post.content["event"] for post in await pager.until(2)] == ["firing", "resolved"]
        while manager.posts[-1].content[0]["endsAt"] > time.strftime(
            "%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1)
        ):
            await asyncio.sleep(0.05)


async def test_a_rule_that_cannot_be_evaluated_says_so_and_others_go_on(tmp_path: Path) -> None:
    registry = FakeRegistry([model_version()])
    async with running_monitor(tmp_path, registry, **FAST) as monitor:
        await create(monitor, "a-drift", psi_rule())
        await create(monitor, "b-rate", alert_pb.AlertRule(metric="prediction_rate", condition=ABOVE, limit=0.001))
        await drifted(monitor)
        (alert,) = await alerts_when(monitor, 1, FIRING)
        assert alert.rule == "alertRules/b-rate"
        wanted = 'interlock_monitor_alert_rule_failures_total{reason="NO_BASELINE",rule="a-drift"}'
        assert wanted in generate_latest(monitor.serving.runtime.registry).decode()


async def test_a_receiver_that_was_down_is_told_after_a_restart_each_thing_once(tmp_path: Path) -> None:
    registry, port = FakeRegistry([trained_version()]), 9001 + free_offset()
    configured = {**FAST, **sinks(pager=f"http://127.0.0.1:{port}")}
    async with running_monitor(tmp_path, registry, **configured) as monitor:
        await create(monitor, "amounts", psi_rule(sinks=["pager"]))
        await drifted(monitor)
        (alert,) = await alerts_when(monitor, 1, FIRING)
        while not alert.delivery_errors:
            await asyncio.sleep(0.05)
            alert = (await monitor.alerts.GetAlert(pb.GetAlertRequest(name=alert.name))).alert
        assert set(alert.delivery_errors) == {"pager"}
    async with receiving(port) as pager, running_monitor(tmp_path, registry, **configured) as monitor:
        await pager.until(1)
        await monitor.alerts.DeleteAlertRule(pb.DeleteAlertRuleRequest(name="alertRules/amounts"))
        assert [post.content["event"] for post in await pager.until(2)] == ["firing", "resolved"]
        (over,) = await alerts_when(monitor, 1, RESOLVED)
        assert over.name == alert.name
    async with receiving(port) as pager, running_monitor(tmp_path, registry, **configured) as monitor:
        # The next one is told, and nothing of the last.
        await create(monitor, "again", psi_rule(sinks=["pager"]))
        (post,) = await pager.until(1)
        assert post.content["rule"]["name"] == "alertRules/again"


async def test_two_monitors_on_one_database_tell_once(tmp_path: Path, database_url: str) -> None:
    registry = FakeRegistry([trained_version()])
    async with receiving() as pager:
        configured = {**FAST, **sinks(pager=pager.url), "monitor_database_url": database_url}
        async with (
            running_monitor(tmp_path / "one", registry, **configured) as one,
            running_monitor(tmp_path / "two", registry, **configured) as two,
        ):
            features = ["amount", "probability/fraud", "probability/fine"]
            await create(one, "all", psi_rule(sinks=["pager"], features=features))
            await drifted(one)
            found = await alerts_when(two, 3, FIRING)
            await pager.until(3)
            await two.alerts.DeleteAlertRule(pb.DeleteAlertRuleRequest(name="alertRules/all"))
            await pager.until(6)
            assert len(await alerts_when(one, 3, RESOLVED)) == len(found) == 3
            # Both have looked at the queue again.
            await asyncio.sleep(0.3)
        told = sorted(post.headers["interlock-delivery"] for post in pager.posts)
        names = [alert.name.removeprefix("alerts/") for alert in found]
        assert told == sorted(f"{name}-{event}" for name in names for event in ("firing", "resolved"))


async def _ended(monitor: Monitor, silence: alert_pb.Silence) -> alert_pb.Silence:
    return (await monitor.alerts.EndSilence(pb.EndSilenceRequest(name=silence.name))).silence


def silence_for(seconds: float = 3600, **changes: Any) -> alert_pb.Silence:
    made = alert_pb.Silence(**{"rule": "alertRules/amounts", "reason": "planned", **changes})
    made.end_time.FromMicroseconds(int((time.time() + seconds) * 1e6))
    return made


@pytest.mark.rpc(f"{SERVICE}/CreateSilence", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetSilence", "happy")
@pytest.mark.rpc(f"{SERVICE}/ListSilences", "happy")
@pytest.mark.rpc(f"{SERVICE}/EndSilence", "happy")
async def test_a_silenced_alert_is_listed_and_told_when_the_silence_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.monitor.domain.alert_dispatch._HOLD_US", 100_000)
    registry = FakeRegistry([trained_version()])
    async with (
        receiving() as pager,
        running_monitor(tmp_path, registry, **FAST, **sinks(pager=pager.url)) as monitor,
    ):
        await create(monitor, "amounts", psi_rule(sinks=["pager"]))
        await create(monitor, "chances", psi_rule(sinks=["pager"], features=["probability/fraud"]))
        request = pb.CreateSilenceRequest(silence=silence_for(), request_id=str(uuid.uuid4()))
        silence = (await monitor.alerts.CreateSilence(request)).silence
        assert (await monitor.alerts.CreateSilence(request)).silence == silence
        assert silence.creator == "local"
        await drifted(monitor)
        found = {alert.rule: alert.silence for alert in await alerts_when(monitor, 2, FIRING)}
        assert found == {"alertRules/amounts": silence.name, "alertRules/chances": ""}
        (post,) = await pager.until(1)
        assert post.content["rule"]["name"] == "alertRules/chances"
        got = (await monitor.alerts.GetSilence(pb.GetSilenceRequest(name=silence.name))).silence
        assert got == silence
        listed = await monitor.alerts.ListSilences(pb.ListSilencesRequest(active_only=True))
        assert list(listed.silences) == [silence]
        assert len(pager.posts) == 1
        ended = await _ended(monitor, silence)
        assert await _ended(monitor, silence) == ended
        assert (await pager.until(2))[1].content["rule"]["name"] == "alertRules/amounts"
        assert not (await monitor.alerts.ListSilences(pb.ListSilencesRequest(active_only=True))).silences
        assert list((await monitor.alerts.ListSilences(pb.ListSilencesRequest())).silences) == [ended]


@pytest.mark.rpc(f"{SERVICE}/CreateAlertRule", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetAlertRule", "happy")
@pytest.mark.rpc(f"{SERVICE}/ListAlertRules", "happy")
@pytest.mark.rpc(f"{SERVICE}/UpdateAlertRule", "happy")
@pytest.mark.rpc(f"{SERVICE}/DeleteAlertRule", "happy")
async def test_rules_are_kept_with_their_defaults_changed_by_mask_and_deleted(tmp_path: Path) -> None:
    async with running_monitor(tmp_path, FakeRegistry([])) as monitor:
        request_id = str(uuid.uuid4())
        made = await create(monitor, "amounts", psi_rule(), request_id=request_id)
        assert await create(monitor, "amounts", psi_rule(), request_id=request_id) == made
        assert (made.environment, made.minimum_count, made.require_interval, made.enabled) == (
            "production",
            100,
            True,
            True,
        )
        assert (list(made.sinks), made.severity) == (["log"], alert_pb.ALERT_SEVERITY_WARNING)
        await create(
            monitor, "errors", alert_pb.AlertRule(model="fraud", metric="error_rate", condition=ABOVE, limit=0.1)
        )
    async with running_monitor(tmp_path, FakeRegistry([])) as monitor:
        first = await monitor.alerts.ListAlertRules(pb.ListAlertRulesRequest(page_size=1))
        assert list(first.alert_rules) == [made]
        rest = pb.ListAlertRulesRequest(page_size=1, page_token=first.next_page_token)
        second = await monitor.alerts.ListAlertRules(rest)
        assert ([rule.name for rule in second.alert_rules], second.next_page_token) == (["alertRules/errors"], "")
        of_model = await monitor.alerts.ListAlertRules(pb.ListAlertRulesRequest(model="fraud"))
        assert [rule.name for rule in of_model.alert_rules] == ["alertRules/errors"]
        wanted = alert_pb.AlertRule(name=made.name, etag=made.etag, limit=0.3, enabled=False)
        mask = FieldMask(paths=["limit", "enabled", "features", "create_time"])
        change = pb.UpdateAlertRuleRequest(alert_rule=wanted, update_mask=mask)
        changed = (await monitor.alerts.UpdateAlertRule(change)).alert_rule
        assert (changed.limit, changed.enabled, list(changed.features), changed.metric) == (0.3, False, [], "drift/psi")
        assert changed.etag != made.etag
        got = (await monitor.alerts.GetAlertRule(pb.GetAlertRuleRequest(name=made.name))).alert_rule
        assert got == changed
        await monitor.alerts.DeleteAlertRule(pb.DeleteAlertRuleRequest(name=made.name, etag=changed.etag))
        left = (await monitor.alerts.ListAlertRules(pb.ListAlertRulesRequest())).alert_rules
        assert [rule.name for rule in left] == ["alertRules/errors"]


async def failure(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refused(caught.value)


@pytest.mark.rpc(f"{SERVICE}/CreateAlertRule", "error")
async def test_every_wrong_field_of_a_rule_is_named(monitor: Monitor) -> None:
    wrong = alert_pb.AlertRule(
        model="..",
        metric="drift/vibes",
        limit=float("nan"),
        for_duration=Duration(seconds=-1),
        minimum_count=0,
        severity=alert_pb.AlertSeverity.ValueType(9),
        sinks=["log", "nobody", "log"],
        annotation="x" * 4001,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(monitor, "bad id", wrong)
    code, reason, fields = refused(caught.value)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_METRIC")
    assert set(fields) == {
        "alert_rule_id",
        *(f"alert_rule.{name}" for name in ("model", "metric", "limit", "for_duration", "minimum_count", "severity")),
        *(f"alert_rule.{name}" for name in ("condition", "sinks[1]", "sinks[2]", "annotation")),
    }
    known: dict[str, str] = {}
    for packed in rpc_status.from_call(caught.value).details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            known = dict(info.metadata)
    assert known["drift/"] == "psi, jensen_shannon, wasserstein, kolmogorov_smirnov, chi_square"
    assert known["without_group"] == "error_rate, latency_p99_ms, prediction_rate"
    below = alert_pb.AlertRule(metric="data_quality/nulls", condition=alert_pb.ALERT_CONDITION_BELOW)
    assert (await failure(create(monitor, "low", below)))[2] == ["alert_rule.condition"]
    rate = alert_pb.AlertRule(metric="error_rate", condition=ABOVE, features=["amount"])
    assert (await failure(create(monitor, "rate", rate)))[2] == ["alert_rule.features"]
    await create(monitor, "taken", psi_rule())
    assert (await failure(create(monitor, "TAKEN", psi_rule())))[:2] == (
        grpc.StatusCode.ALREADY_EXISTS,
        "RESOURCE_EXISTS",
    )


@pytest.mark.rpc(f"{SERVICE}/GetAlertRule", "error")
@pytest.mark.rpc(f"{SERVICE}/ListAlertRules", "error")
@pytest.mark.rpc(f"{SERVICE}/UpdateAlertRule", "error")
@pytest.mark.rpc(f"{SERVICE}/DeleteAlertRule", "error")
@pytest.mark.rpc(f"{SERVICE}/GetAlert", "error")
@pytest.mark.rpc(f"{SERVICE}/ListAlerts", "error")
@pytest.mark.rpc(f"{SERVICE}/CreateSilence", "error")
@pytest.mark.rpc(f"{SERVICE}/GetSilence", "error")
@pytest.mark.rpc(f"{SERVICE}/ListSilences", "error")
@pytest.mark.rpc(f"{SERVICE}/EndSilence", "error")
async def test_what_is_not_there_old_or_malformed_is_refused(monitor: Monitor) -> None:
    stub, missing = monitor.alerts, (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert (await failure(stub.GetAlertRule(pb.GetAlertRuleRequest(name="alertRules/none"))))[:2] == missing
    assert (await failure(stub.DeleteAlertRule(pb.DeleteAlertRuleRequest(name="alertRules/none"))))[:2] == missing
    assert (await failure(stub.GetAlert(pb.GetAlertRequest(name="alerts/none"))))[:2] == missing
    assert (await failure(stub.GetSilence(pb.GetSilenceRequest(name="silences/none"))))[:2] == missing
    assert (await failure(stub.EndSilence(pb.EndSilenceRequest(name="silences/none"))))[:2] == missing
    assert (await failure(stub.ListAlertRules(pb.ListAlertRulesRequest(page_size=-1))))[0] is invalid
    assert (await failure(stub.ListSilences(pb.ListSilencesRequest(page_size=-1))))[0] is invalid
    query = pb.ListAlertsRequest(states=[alert_pb.ALERT_STATE_UNSPECIFIED], rule="amounts")
    assert (await failure(stub.ListAlerts(query)))[2] == ["states[0]", "rule"]
    rule = await create(monitor, "amounts", psi_rule())
    old = alert_pb.AlertRule(name=rule.name, etag="1", limit=1)
    aborted = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert (await failure(stub.UpdateAlertRule(pb.UpdateAlertRuleRequest(alert_rule=old))))[:2] == aborted
    mask = FieldMask(paths=["colour"])
    change = pb.UpdateAlertRuleRequest(alert_rule=alert_pb.AlertRule(name=rule.name), update_mask=mask)
    assert (await failure(stub.UpdateAlertRule(change)))[2] == ["update_mask"]
    silence = pb.CreateSilenceRequest(silence=silence_for(-5, rule="", reason=""))
    assert set((await failure(stub.CreateSilence(silence)))[2]) == {
        "silence.rule",
        "silence.reason",
        "silence.end_time",
    }
    unknown = pb.CreateSilenceRequest(silence=silence_for(rule="alertRules/typo"))
    assert (await failure(stub.CreateSilence(unknown)))[2] == ["silence.rule"]
    long = pb.CreateSilenceRequest(silence=silence_for(91 * 86_400))
    assert (await failure(stub.CreateSilence(long)))[2] == ["silence.end_time"]
    malformed = pb.CreateSilenceRequest(silence=silence_for(), request_id="no uuid")
    assert (await failure(stub.CreateSilence(malformed)))[2] == ["request_id"]
    again = str(uuid.uuid4())
    await stub.CreateSilence(pb.CreateSilenceRequest(silence=silence_for(), request_id=again))
    other = pb.CreateSilenceRequest(silence=silence_for(model="fraud"), request_id=again)
    assert (await failure(stub.CreateSilence(other)))[2] == ["request_id"]


async def test_files_of_rules_are_applied_by_the_client(monitor: Monitor, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("alert_rule: slow\nmetric: latency_p99_ms\nabove: 100\n")
    async with connect(f"127.0.0.1:{monitor.serving.ports[0]}") as client:
        for limit, change in ((100, "created"), (100, "unchanged"), (200, "updated")):
            path.write_text(f"alert_rule: slow\nmetric: latency_p99_ms\nabove: {limit}\n")
            ((found, rule),) = await apply_rules(client, read_alert_rules([path]))
            assert (found, rule.limit) == (change, limit)
        path.write_text("alert_rule: slow\nmetric: latency\nabove: 1\nsinks: [log, nobody]\n")
        with pytest.raises(CommandFailed) as caught:
            await apply_rules(client, read_alert_rules([path]))
        assert [hint.partition(" ")[0] for hint in caught.value.hints] == [f"{path}:2:", f"{path}:4:"]
        silence = await client.alerts.silence(silence_for(rule="alertRules/slow"))
        assert [found.name async for found in client.alerts.silences()] == [silence.name]
        await client.alerts.end_silence(silence.name.removeprefix("silences/"))
        await client.alerts.delete_rule("slow")
        assert [rule async for rule in client.alerts.rules()] == []
        assert [alert async for alert in client.alerts.list(states=[RESOLVED])] == []
