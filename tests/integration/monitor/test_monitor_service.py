"""The monitor through the wire: events in, counts out."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1alpha1 import verdict_service_pb2, verdict_service_pb2_grpc
from prometheus_client import generate_latest

from tests.fakes.prediction_events import events
from tests.integration.monitor.conftest import Monitor

RECORD = "interlock.monitor.v1.MonitorService/RecordPredictions"
COUNTS = "interlock.monitor.v1.MonitorService/GetPredictionCounts"


async def _stream(requests: Iterable[pb.RecordPredictionsRequest]) -> AsyncIterator[pb.RecordPredictionsRequest]:
    for request in requests:
        yield request


async def _record(monitor: Monitor, *requests: pb.RecordPredictionsRequest) -> int:
    return (await monitor.stub.RecordPredictions(_stream(requests))).prediction_count


def _details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for packed in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind.FromString(packed.value)
    return found


@pytest.mark.rpc(RECORD, "happy")
@pytest.mark.rpc(COUNTS, "happy")
async def test_predictions_are_counted_by_model_version_and_variant(monitor: Monitor) -> None:
    first = events(statuses=[0, 0, 3], sequence=1)
    second = events(statuses=[0], sequence=2, model="churn", dropped_count=5)
    assert await _record(monitor, first, second) == 4
    answer = await monitor.stub.GetPredictionCounts(pb.GetPredictionCountsRequest())
    assert [(c.model, c.version, c.variant, c.ok_count, c.error_count) for c in answer.counts] == [
        ("churn", "1", "main", 1, 0),
        ("fraud", "1", "main", 2, 1),
    ]
    assert answer.dropped_count == 5
    only = await monitor.stub.GetPredictionCounts(pb.GetPredictionCountsRequest(model="fraud"))
    assert [count.model for count in only.counts] == ["fraud"]


@pytest.mark.rpc(RECORD, "error")
async def test_columns_that_disagree_end_the_stream_and_count_nothing(monitor: Monitor) -> None:
    broken = events(statuses=[0, 0])
    broken.batch.cached.append(True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _record(monitor, broken)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = _details(caught.value)
    assert details["ErrorInfo"].reason == "INVALID_BATCH"
    assert [violation.field for violation in details["BadRequest"].field_violations] == ["batch.cached"]
    answer = await monitor.stub.GetPredictionCounts(pb.GetPredictionCountsRequest())
    assert list(answer.counts) == []


async def test_a_repeated_batch_is_refused(monitor: Monitor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _record(monitor, events(statuses=[0], sequence=1), events(statuses=[0], sequence=1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _details(caught.value)["BadRequest"].field_violations[0].description == "want more than 1, got 1"


@pytest.mark.rpc(COUNTS, "error")
async def test_a_filter_that_is_no_id_is_refused(monitor: Monitor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await monitor.stub.GetPredictionCounts(pb.GetPredictionCountsRequest(model="../x"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _details(caught.value)["ErrorInfo"].reason == "INVALID_FIELD"


async def test_more_variants_than_the_limit_share_one_count(monitor: Monitor) -> None:
    requests = [events(statuses=[0], model=f"m{number}", sequence=number) for number in range(1, 101)]
    assert await _record(monitor, *requests) == 100
    answer = await monitor.stub.GetPredictionCounts(pb.GetPredictionCountsRequest())
    counts = {count.model: count.ok_count for count in answer.counts}
    assert len(counts) == 50
    assert counts["_other"] == 51


async def test_metrics_show_counts_gaps_and_drops(monitor: Monitor) -> None:
    await _record(monitor, events(statuses=[0, 13], sequence=4, dropped_count=2))
    text = generate_latest(monitor.serving.runtime.registry).decode()
    for line in (
        'interlock_monitor_predictions_total{model="fraud",outcome="ok",variant="main",version="1"} 1.0',
        'interlock_monitor_predictions_total{model="fraud",outcome="error",variant="main",version="1"} 1.0',
        "interlock_monitor_event_batches_missing_total 3.0",
        "interlock_monitor_predictions_dropped_total 2.0",
        "interlock_monitor_event_streams_open 0.0",
    ):
        assert line in text.splitlines()


async def test_a_drain_ends_an_open_stream_at_once_and_keeps_what_came(monitor: Monitor) -> None:
    call = monitor.stub.RecordPredictions()
    await call.write(events(statuses=[0]))
    counted = monitor.stub.GetPredictionCounts
    while not (await counted(pb.GetPredictionCountsRequest())).counts:
        await asyncio.sleep(0.01)
    await monitor.serving.runtime.drain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 2)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert _details(caught.value)["ErrorInfo"].reason == "DRAINING"
    assert [count.ok_count for count in (await counted(pb.GetPredictionCountsRequest())).counts] == [1]


async def test_what_is_not_in_this_release_says_so(monitor: Monitor) -> None:
    stub = verdict_service_pb2_grpc.VerdictServiceStub(monitor.channel)
    method = verdict_service_pb2.DESCRIPTOR.services_by_name["VerdictService"].methods[0]
    request = getattr(verdict_service_pb2, method.input_type.name)()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method.name)(request)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    info = _details(caught.value)["ErrorInfo"]
    assert (info.reason, info.metadata["method"]) == (
        "NOT_IMPLEMENTED",
        f"{method.containing_service.full_name}/{method.name}",
    )
