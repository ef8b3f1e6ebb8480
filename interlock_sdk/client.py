"""The client of Interlock's public API: everything goes through the edge, one address.

    async with connect("localhost:8080") as client:
        await client.artifacts.upload(Path("model.onnx"))
        version = await client.models.register("fraud", version)
        answer = await client.predict("fraud", {"amount": 12.5, "country": "NO"}, user_id="u-42")
        async for number, result in client.predict_stream("fraud", rows_as_they_come()):
            ...  # a Prediction or a CallError, as soon as it is ready

Calls that change something carry an idempotency key, so the one retry that the channel makes when nothing answered cannot
happen twice. Every failure is a `CallError`.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.router.v1 import prediction_pb2, router_service_pb2_grpc
from interlock.router.v1 import router_service_pb2 as pb

from interlock_sdk.alerts import Alerts
from interlock_sdk.artifacts import Artifacts
from interlock_sdk.audit import Audit
from interlock_sdk.channel import Caller, open_caller
from interlock_sdk.deployments import Deployments, Routes
from interlock_sdk.errors import CallError, call_error_from_status
from interlock_sdk.feature_views import FeatureViews
from interlock_sdk.features import Features
from interlock_sdk.models import Models
from interlock_sdk.monitoring import Monitoring
from interlock_sdk.offline_features import OfflineFeatures
from interlock_sdk.reports import Reports
from interlock_sdk.values import Value, values_to_proto

DEFAULT_TARGET = "localhost:8080"
DEFAULT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one row is predicted from; the same `user_id` meets the same variant.

    `entities` are keys by entity, for features that are fetched. `as_of_time`, with its zone, is the time that the row is
    taken to be asked at, for replays of recorded traffic.
    """

    features: Mapping[str, Value]
    user_id: str = ""
    entities: Mapping[str, str] = field(default_factory=dict)
    as_of_time: datetime | None = None


class Client:
    """Predicts, and keeps models, deployments and routes. Made by `connect`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._router = router_service_pb2_grpc.RouterServiceStub(caller.channel)
        self.artifacts = Artifacts(caller)
        self.models = Models(caller)
        self.deployments = Deployments(caller)
        self.routes = Routes(caller)
        self.feature_views = FeatureViews(caller)
        self.offline_features = OfflineFeatures(caller)
        self.monitoring = Monitoring(caller)
        self.alerts = Alerts(caller)
        self.reports = Reports(caller)
        self.audit = Audit(caller)
        self.features = Features(caller)

    async def predict(
        self,
        model: str,
        features: Mapping[str, Value],
        *,
        user_id: str = "",
        entities: Mapping[str, str] | None = None,
        version: str = "",
        include_probabilities: bool = False,
        as_of_time: datetime | None = None,
    ) -> prediction_pb2.Prediction:
        """Predicts one row. `version` pins a deployed version; without it the route chooses. The rest is as in `Row`."""
        request = pb.PredictRequest(
            model=model,
            features=values_to_proto(features),
            entities=entities,
            user_id=user_id,
            version=version,
            include_probabilities=include_probabilities,
            as_of_time=_timestamp(as_of_time),
        )
        return (await self._caller.call(self._router.Predict, request)).prediction

    async def predict_rows(
        self, model: str, rows: Sequence[Row], *, version: str = "", include_probabilities: bool = False
    ) -> list[prediction_pb2.Prediction | CallError]:
        """Predicts 1 to 1,000 rows; each has a prediction or the error that is its own, in the order asked."""
        request = pb.PredictRowsRequest(
            model=model,
            rows=[_row_to_proto(row) for row in rows],
            version=version,
            include_probabilities=include_probabilities,
        )
        response = await self._caller.call(self._router.PredictRows, request)
        return [_result_from_proto(result) for result in response.results]

    async def predict_rows_stream(
        self, model: str, rows: Sequence[Row], *, version: str = "", include_probabilities: bool = False
    ) -> AsyncIterator[tuple[int, prediction_pb2.Prediction | CallError]]:
        """Predicts 1 to 100,000 rows; gives each answer as soon as it is ready, with the row's place, from 0.

        The call takes as long as its answers are read; one that takes none for 30 s while they pile up is ended
        (STREAM_STALLED). Raises CallError.
        """
        request = pb.PredictRowsStreamRequest(
            model=model,
            rows=[_row_to_proto(row) for row in rows],
            version=version,
            include_probabilities=include_probabilities,
        )
        async for response in self._caller.stream(self._router.PredictRowsStream(request)):
            for found in response.predictions:
                yield found.row_index, _result_from_proto(found.result)

    async def predict_stream(
        self,
        model: str,
        rows: AsyncIterable[Row],
        *,
        version: str = "",
        include_probabilities: bool = False,
        max_outstanding: int = 0,
        row_timeout_s: float = 0.0,
    ) -> AsyncIterator[tuple[int, prediction_pb2.Prediction | CallError]]:
        """Predicts rows for as long as they come; gives each answer as soon as it is ready, with the row's place, from 0.

        `max_outstanding` bounds the rows ahead of the answers that are read, `row_timeout_s` the time for each answer; 0 is
        the service's default. A caller that takes no answer for 30 s while they pile up is ended (STREAM_STALLED). Raises
        CallError, and what `rows` raises once the rows before it are answered.
        """
        opening = pb.PredictStreamOpen(
            model=model,
            version=version,
            include_probabilities=include_probabilities,
            max_outstanding_items=max_outstanding,
        )
        sending = _Sending(opening, rows, round(row_timeout_s * 1000))
        try:
            async for response in self._caller.stream(self._router.PredictStream(sending.messages())):
                sending.begin()
                if response.WhichOneof("message") == "result":
                    yield response.result.id, _result_from_proto(response.result.result)
        finally:
            sending.end()
        if sending.error is not None:
            raise sending.error


class _Sending:
    """What a stream sends: rows only once it is opened, since grpc.aio forgets why a stream ended that it still writes to.

    An error of the caller's rows is kept, and ends the sending; gRPC would cancel the call and keep it to itself.
    """

    def __init__(self, opening: pb.PredictStreamOpen, rows: AsyncIterable[Row], timeout_ms: int) -> None:
        self._opening = opening
        self._rows = rows
        self._timeout_ms = timeout_ms
        self._told = asyncio.Event()
        self._ended = False
        self.error: Exception | None = None

    def begin(self) -> None:
        """The service has opened the stream."""
        self._told.set()

    def end(self) -> None:
        """Nobody listens any more."""
        self._ended = True
        self._told.set()

    async def messages(self) -> AsyncIterator[pb.PredictStreamRequest]:
        """Gives what is sent, in order."""
        yield pb.PredictStreamRequest(open=self._opening)
        await self._told.wait()
        if self._ended:
            return
        number = 0
        try:
            async for row in self._rows:
                item = pb.PredictStreamItem(id=number, row=_row_to_proto(row), timeout_ms=self._timeout_ms)
                yield pb.PredictStreamRequest(item=item)
                number += 1
        except Exception as error:  # noqa: BLE001 - raised where the answers are read
            self.error = error


@asynccontextmanager
async def connect(
    target: str = DEFAULT_TARGET,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> AsyncIterator[Client]:
    """Opens a client for as long as the context lasts; no call is made yet.

    Args:
        target: host and port of the edge.
        credentials: for TLS; without them the connection is plain.
        timeout_s: limit of each call. Uploads have none.
    """
    async with open_caller(target, credentials, timeout_s) as caller:
        yield Client(caller)


def _row_to_proto(row: Row) -> pb.PredictRow:
    return pb.PredictRow(
        features=values_to_proto(row.features),
        entities=row.entities,
        user_id=row.user_id,
        as_of_time=_timestamp(row.as_of_time),
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise TypeError("as_of_time: want a time with its zone, got one without")
    found = Timestamp()
    found.FromDatetime(time)
    return found


def _result_from_proto(result: pb.PredictRowResult) -> prediction_pb2.Prediction | CallError:
    if result.WhichOneof("result") == "error":
        return call_error_from_status(result.error)
    return result.prediction
