"""What tests ask a running monitor, and how they wait for it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

import grpc
import pyarrow as pa
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interlock.monitor.v1 import feedback_service_pb2 as feedback_pb
from interlock.monitor.v1 import feedback_service_pb2_grpc as feedback_rpc
from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1 import prediction_log_service_pb2 as log_pb
from interlock.monitor.v1 import prediction_log_service_pb2_grpc as log_rpc
from interlock.types.v1.feature_value_pb2 import FeatureValue

from tests.integration.monitor.conftest import Monitor

T = TypeVar("T")


async def until(probe: Callable[[], Awaitable[T]]) -> T:
    """Return what `probe` gives once it is true; the test's time-out is the limit."""
    while True:
        if found := await probe():
            return found
        await asyncio.sleep(0.02)


async def record(monitor: Monitor, requests: Iterable[pb.RecordPredictionsRequest]) -> int:
    async def stream() -> AsyncIterator[pb.RecordPredictionsRequest]:
        for request in requests:
            yield request

    return (await monitor.stub.RecordPredictions(stream())).prediction_count


def log(monitor: Monitor) -> "log_rpc.PredictionLogServiceAsyncStub":
    return log_rpc.PredictionLogServiceStub(monitor.channel)


def text_id(prediction_id: bytes) -> str:
    return str(uuid.UUID(bytes=prediction_id))


def label(prediction_id: bytes, value: float | str, **changes: Any) -> feedback_pb.Feedback:
    match value:
        case str():
            said = FeatureValue(string_value=value)
        case int():
            said = FeatureValue(int64_value=value)
        case _:
            said = FeatureValue(double_value=value)
    return feedback_pb.Feedback(prediction_id=text_id(prediction_id), label=said, **changes)


async def send(monitor: Monitor, *feedback: feedback_pb.Feedback, request_id: str = "") -> list[str]:
    """Send feedback; returns what became of each, in short."""
    stub = feedback_rpc.FeedbackServiceStub(monitor.channel)
    answer = await stub.SendFeedback(feedback_pb.SendFeedbackRequest(feedback=feedback, request_id=request_id))
    return [
        feedback_pb.FeedbackOutcome.Name(found.outcome).removeprefix("FEEDBACK_OUTCOME_") for found in answer.results
    ]


async def record_of(monitor: Monitor, prediction_id: bytes) -> log_pb.PredictionRecord | None:
    """Return a logged prediction, or None."""
    try:
        asked = log_pb.GetPredictionRecordRequest(prediction_id=text_id(prediction_id))
        return (await log(monitor).GetPredictionRecord(asked)).prediction_record
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        return None


async def query(monitor: Monitor, sql: str, **changes: Any) -> list[dict[str, Any]]:
    """Return the rows of a query."""
    answer = log(monitor).QueryPredictionLog(log_pb.QueryPredictionLogRequest(sql=sql, **changes))
    content = b"".join([message.arrow_stream async for message in answer])
    rows: list[dict[str, Any]] = pa.ipc.open_stream(content).read_all().to_pylist()
    return rows


async def logged(monitor: Monitor, count: int) -> None:
    """Return once so many predictions are in the log."""

    async def all_there() -> bool:
        return bool((await query(monitor, "SELECT count(*) AS n FROM predictions"))[0]["n"] >= count)

    await until(all_there)


def reason(error: grpc.aio.AioRpcError) -> tuple[str, str, list[str]]:
    """Return code, reason and the fields that are wrong."""
    found, fields = "", []
    for packed in rpc_status.from_call(error).details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            found = error_details_pb2.ErrorInfo.FromString(packed.value).reason
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            fields = [v.field for v in error_details_pb2.BadRequest.FromString(packed.value).field_violations]
    return error.code().name, found, fields
