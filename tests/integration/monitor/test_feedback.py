"""Labels and rewards through the wire: what was answered is kept, joined once, and told exactly."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.api.httpbody_pb2 import HttpBody
from interlock.monitor.v1 import analysis_pb2
from interlock.monitor.v1 import analysis_service_pb2 as analysis_pb
from interlock.monitor.v1 import analysis_service_pb2_grpc as analysis_rpc
from interlock.monitor.v1 import feedback_service_pb2 as pb
from interlock.monitor.v1 import feedback_service_pb2_grpc as rpc
from interlock.monitor.v1 import http_service_pb2 as http_pb
from interlock.monitor.v1 import http_service_pb2_grpc as http_rpc
from prometheus_client import generate_latest

from tests.fakes.monitor_registry import FakeRegistry, model_version
from tests.fakes.monitor_traffic import Traffic, draw_traffic, requests
from tests.integration.monitor.asking import label, logged, query, reason, record, record_of, send, text_id, until
from tests.integration.monitor.conftest import Monitor, running_monitor

SEND = "interlock.monitor.v1.FeedbackService/SendFeedback"
STREAM = "interlock.monitor.v1.FeedbackService/SendFeedbackStream"
HTTP = "interlock.monitor.v1.MonitorHttpService/SendFeedback"
COUNT = 100
QUICK: dict[str, Any] = {"monitor_log_flush_interval_s": 0.1, "monitor_label_join_interval_s": 0.05}


@pytest.fixture
def traffic() -> Traffic:
    now_s = time.time()
    return draw_traffic(11, [now_s - 600 + index for index in range(COUNT)])


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    async with running_monitor(tmp_path, FakeRegistry([model_version()]), **QUICK) as running:
        yield running


def _at(feedback: pb.Feedback, seconds: float) -> pb.Feedback:
    feedback.event_time.FromMicroseconds(int(seconds * 1e6))
    return feedback


async def _joined(monitor: Monitor, count: int) -> list[dict[str, Any]]:
    sql = "SELECT prediction_id, label, label_name, label_delay_s FROM predictions WHERE label IS NOT NULL ORDER BY 1"

    async def enough() -> list[dict[str, Any]]:
        rows = await query(monitor, sql)
        return rows if len(rows) >= count else []

    return await until(enough)


@pytest.mark.rpc(SEND, "happy")
async def test_of_several_labels_the_newest_event_holds_and_each_answer_says_what_became_of_it(
    monitor: Monitor, traffic: Traffic
) -> None:
    await record(monitor, requests(traffic))
    await logged(monitor, COUNT)
    one, now_s = traffic.ids[0], time.time()
    first = _at(label(one, "fine"), now_s - 60)
    assert await send(monitor, first, first) == ["TAKEN", "DUPLICATE"]
    assert await send(monitor, first) == ["DUPLICATE"]
    assert await send(monitor, label(one, "fine")) == ["DUPLICATE"]
    assert await send(monitor, _at(label(one, 1), now_s - 30)) == ["REPLACED"]
    assert await send(monitor, _at(label(one, 0), now_s - 90)) == ["OLDER"]
    ten = [_at(label(traffic.ids[1], index % 2), now_s - 20 + index) for index in range(10)]
    assert await send(monitor, *ten) == ["TAKEN", *["REPLACED"] * 9]
    unknown = uuid.UUID(bytes=traffic.ids[0][:6] + bytes([0x70, 1, 0x80, *[7] * 7]))
    assert await send(monitor, label(unknown.bytes, 1)) == ["WAITING"]
    made_s = int.from_bytes(one[:6], "big") / 1000

    async def last_one_holds() -> bool:
        rows = await _joined(monitor, 2)
        delay = pytest.approx(now_s - 30 - made_s, abs=0.01)
        return [(row["label"], row["label_name"]) for row in rows] == [(1.0, "fraud")] * 2 and (
            rows[0]["label_delay_s"] == delay
        )

    await until(last_one_holds)


@pytest.mark.rpc(SEND, "error")
async def test_what_is_wrong_with_each_feedback_is_said_and_the_others_are_taken(
    monitor: Monitor, traffic: Traffic
) -> None:
    await record(monitor, requests(traffic))
    await logged(monitor, COUNT)
    stub, now_s = rpc.FeedbackServiceStub(monitor.channel), time.time()
    both_times = label(traffic.ids[2], 1, metric="x")
    wrong = {
        "prediction_id": pb.Feedback(prediction_id="7", reward=1),
        "label": label(traffic.ids[0], "no-such-class"),
        "label ": label(traffic.ids[0], 7),
        "label  ": pb.Feedback(prediction_id=text_id(traffic.ids[0])),
        "metric": both_times,
        "reward": pb.Feedback(prediction_id=text_id(traffic.ids[0]), reward=float("nan")),
        "event_time": _at(label(traffic.ids[0], 1), now_s + 3600),
        "event_time ": _at(label(traffic.ids[0], 1), now_s - 3600),
        "source": label(traffic.ids[0], 1, source="x" * 201),
    }
    answer = await stub.SendFeedback(pb.SendFeedbackRequest(feedback=[*wrong.values(), label(traffic.ids[3], 1)]))
    for field, result in zip(wrong, answer.results, strict=False):
        assert result.outcome == pb.FEEDBACK_OUTCOME_REFUSED, field
        assert result.error.message.startswith(f"{field.strip()}:"), (field, result.error.message)
        assert ", got" in result.error.message
    assert answer.results[-1].outcome == pb.FEEDBACK_OUTCOME_TAKEN
    for asked, field in (
        (pb.SendFeedbackRequest(), "feedback"),
        (pb.SendFeedbackRequest(feedback=[label(traffic.ids[0], 1)] * 1001), "feedback"),
        (pb.SendFeedbackRequest(feedback=[label(traffic.ids[0], 1)], request_id="seven"), "request_id"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SendFeedback(asked)
        assert reason(caught.value) == ("INVALID_ARGUMENT", "INVALID_FIELD", [field])


async def test_the_same_request_id_gets_the_same_answer_and_another_content_none(
    monitor: Monitor, traffic: Traffic
) -> None:
    key = str(uuid.uuid4())
    for _ in range(2):
        assert await send(monitor, label(traffic.ids[0], 1), request_id=key) == ["WAITING"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(monitor, label(traffic.ids[0], 0), request_id=key)
    assert reason(caught.value) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["request_id"])


@pytest.mark.rpc(STREAM, "happy")
async def test_a_stream_acknowledges_each_batch_once_it_is_safe_and_early_labels_find_their_prediction(
    tmp_path: Path, traffic: Traffic
) -> None:
    async with running_monitor(tmp_path, FakeRegistry([model_version()]), **QUICK) as monitor:

        async def messages() -> AsyncIterator[pb.SendFeedbackStreamRequest]:
            yield pb.SendFeedbackStreamRequest(open=pb.FeedbackOpen(client_id="labels", max_outstanding_batches=500))
            for sequence in range(1, 5):
                batch = pb.FeedbackBatch(sequence=sequence)
                batch.feedback.extend(label(one, 1) for one in traffic.ids[25 * (sequence - 1) : 25 * sequence])
                yield pb.SendFeedbackStreamRequest(batch=batch)
            batch.feedback[0].prediction_id = "?"
            batch.sequence = 5
            yield pb.SendFeedbackStreamRequest(batch=batch)

        found = [answer async for answer in rpc.FeedbackServiceStub(monitor.channel).SendFeedbackStream(messages())]
        assert [answer.acknowledged_sequence for answer in found] == [0, 1, 2, 3, 4, 5]
        assert {answer.max_outstanding_batches for answer in found} == {64}
        assert not any(answer.refusals for answer in found[:5])
        kinds = [(one.feedback_index, one.result.outcome) for one in found[5].refusals]
        assert kinds[0] == (0, pb.FEEDBACK_OUTCOME_REFUSED)
        assert {kind for _, kind in kinds[1:]} == {pb.FEEDBACK_OUTCOME_DUPLICATE}
    # They wait over a restart, and longer than their predictions take to come.
    async with running_monitor(tmp_path, FakeRegistry([model_version()]), **QUICK) as monitor:
        await record(monitor, requests(traffic))
        assert len(await _joined(monitor, COUNT)) == COUNT


@pytest.mark.rpc(STREAM, "error")
async def test_a_stream_that_does_not_begin_with_open_or_skips_a_number_ends(
    monitor: Monitor, traffic: Traffic
) -> None:
    opened = pb.SendFeedbackStreamRequest(open=pb.FeedbackOpen())
    batch = pb.SendFeedbackStreamRequest(batch=pb.FeedbackBatch(sequence=2, feedback=[label(traffic.ids[0], 1)]))
    for messages, field in (([batch], "open"), ([opened, batch], "batch.sequence"), ([opened, opened], "batch")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in rpc.FeedbackServiceStub(monitor.channel).SendFeedbackStream(iter(messages)):
                pass
        assert reason(caught.value) == ("INVALID_ARGUMENT", "INVALID_FIELD", [field])


async def _post(monitor: Monitor, body: str) -> tuple[str, str]:
    call = http_rpc.MonitorHttpServiceStub(monitor.channel).SendFeedback(
        http_pb.SendFeedbackHttpRequest(body=HttpBody(data=body.encode()))
    )
    answer = await call
    status = dict(await call.initial_metadata()).get("x-interlock-http-status", "200")
    return str(status), answer.data.decode()


@pytest.mark.rpc(HTTP, "happy")
async def test_feedback_as_plain_json(monitor: Monitor, traffic: Traffic) -> None:
    await record(monitor, requests(traffic))
    await logged(monitor, COUNT)
    first, second = (text_id(one) for one in traffic.ids[:2])
    status, body = await _post(
        monitor,
        f'{{"feedback": [{{"prediction_id": "{first}", "label": "fraud"}}, {{"prediction_id": "{second}", "reward": 2}}]}}',
    )
    assert status == "200"
    assert body == '{"results": [{"outcome": "FEEDBACK_OUTCOME_TAKEN"}, {"outcome": "FEEDBACK_OUTCOME_TAKEN"}]}'
    found = await record_of(monitor, traffic.ids[1])
    assert found is not None
    assert dict(found.rewards) == {"reward": 2}


@pytest.mark.rpc(HTTP, "error")
async def test_json_that_the_contract_does_not_have_is_refused_with_its_place(monitor: Monitor) -> None:
    for body, place in (
        ('{"feedbak": []}', "feedbak"),
        ('{"feedback": [{"prediction_id": "x", "lable": 1}]}', "feedback[0].lable"),
        ('{"feedback": [{"prediction_id": 7, "label": 1}]}', "feedback[0].prediction_id"),
        ('{"feedback": [{"label": [1]}]}', "feedback[0].label"),
        ('{"feedback": [{"label": 1, "reward": 1}]}', "feedback[0].reward"),
        ('{"feedback": [{"label": 1, "event_time": "tomorrow"}]}', "feedback[0].event_time"),
        ('{"feedback": [7]}', "feedback[0]"),
        ('{"feedback": [', "malformed"),
        ("[]", "want a JSON object"),
    ):
        status, answer = await _post(monitor, body)
        assert status == "400", body
        assert "INVALID_JSON" in answer, body
        assert place in answer, body


async def test_many_senders_at_once_are_all_answered_right(monitor: Monitor, traffic: Traffic) -> None:
    """They share transactions; each gets its own outcomes."""
    answers = await asyncio.gather(*(send(monitor, label(one, 1), label(one, 1)) for one in traffic.ids))
    assert answers == [["WAITING", "DUPLICATE"]] * COUNT


async def test_an_output_that_is_no_number_costs_only_itself(tmp_path: Path, traffic: Traffic) -> None:
    (request,) = requests(traffic)
    chances = np.frombuffer(request.batch.outputs[0].data, dtype="<f4").copy()
    chances[:2] = np.nan
    request.batch.outputs[0].data = chances.tobytes()
    async with running_monitor(tmp_path, FakeRegistry([model_version()]), **QUICK) as monitor:
        await record(monitor, [request])
        assert await send(monitor, *(label(one, 1) for one in traffic.ids)) == ["TAKEN"] * COUNT
        assert len(await _joined(monitor, COUNT - 1)) == COUNT - 1
        assert len(await query(monitor, "SELECT 1 FROM predictions WHERE prediction IS NULL")) == 1
        scope = analysis_pb2.AnalysisScope(model_version="models/fraud/versions/1")
        scope.start_time.FromSeconds(int(time.time()) - 7200)
        scope.end_time.FromSeconds(int(time.time()) + 3600)
        asked = analysis_pb.GetDataQualityReportRequest(scope=scope)

        async def in_windows() -> bool:
            answer = await analysis_rpc.AnalysisServiceStub(monitor.channel).GetDataQualityReport(asked)
            return answer.data_quality_report.prediction_count == COUNT

        await until(in_windows)
        metrics = generate_latest(monitor.serving.runtime.registry).decode()
    dropped = [line for line in metrics.splitlines() if line.startswith("interlock_monitor_predictions_not_taken")]
    assert dropped == ['interlock_monitor_predictions_not_taken_total{part="labels",reason="no_prediction"} 1.0']
