"""What one request costs in our own Python: the door in Envoy without Envoy, the router without the hop, inference without
its model.

    python -m benchmarks.door_alone            prints CPU microseconds a request for each kind of request

An ASGI server that does as pyvoy does (a task for the application, futures for the body) calls the real door, chain,
servicers and domain of the router (`infer`, `predict`, `rest`, and `fetched`: `predict` with seven features of four views
besides) or of inference (`inference`); what is asked, inference, features or the model's process, answers what it holds as
one batch in the next turn of the loop. The least of many short rounds of processor time of the one thread: other work on
the machine changes it little.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import uuid_utils
import uvloop
from interlock.features.v1 import feature_service_pb2 as features_pb
from interlock.router.v1 import router_service_pb2 as router_pb
from interlock.types.v1.feature_value_pb2 import FeatureValue
from prometheus_client import CollectorRegistry

from benchmarks.door_stand import FLOATS, LABELS, NUMBERS, infer_bodies, named_rows, predict_bodies
from services.common.call import Binding, methods_of
from services.common.chain import Chain, Limits
from services.common.door_asgi import AsgiDoor
from services.common.door_turns import Turns
from services.common.grpc_wire import frame
from services.common.metrics import RequestMetrics
from services.common.server import settle_collections
from services.common.shared_regions import SharedRegions
from services.common.tracing import Tracing
from services.inference.adapters.monotonic_clock import MonotonicClock
from services.inference.adapters.telemetry import PrometheusObserver, SpanTracer
from services.inference.domain import tensor as inference_tensor
from services.inference.domain.admission import QueueLimits
from services.inference.domain.dispatch import Dispatcher
from services.inference.domain.frame import FrameTensor
from services.inference.domain.instance import HostParts
from services.inference.domain.item import BatchAnswer, OutputData
from services.inference.domain.model_host import ModelHost
from services.inference.domain.replica import Replica
from services.inference.domain.version import BatchingPolicy, LoadState, VersionKey, VersionSpec
from services.inference.servicer.oip import OipServicer as InferenceOip
from services.router.adapters.features_client.reader import FeatureReads
from services.router.adapters.metrics import FetchMetrics, PrometheusPredictions
from services.router.adapters.monitor_client.event_queue import EventQueue
from services.router.app import _bindings
from services.router.domain.admission import Admission
from services.router.domain.catalog import Catalog
from services.router.domain.prediction import Predictor, RoutingTable
from services.router.domain.routing import Configuration, Deployment, Route, Variant, build_configuration, new_version
from services.router.domain.signature import FeatureSpec, FeatureType, PredictionSpec, Signature, TensorSpec
from services.router.domain.tensor import Tensor
from tests.fakes.envoy_like import Sent

IN_FLIGHT, PER_ROUND = 64, 128
SOURCES = [f"{view}.f{number}" for view, count in (("a", 2), ("b", 2), ("c", 2), ("d", 1)) for number in range(count)]
GRPC_HEADERS = [
    (b":authority", b"x"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"grpc-timeout", b"5000m"),
    (b"x-forwarded-proto", b"http"),
    (b"x-interlock-protocol", b"HTTP/2"),
    (b"x-interlock-client-timeout", b"5S"),
]
PATHS = {
    "infer": "/inference.GRPCInferenceService/ModelInfer",
    "inference": "/inference.GRPCInferenceService/ModelInfer",
    "predict": "/interlock.router.v1.RouterService/Predict",
    "fetched": "/interlock.router.v1.RouterService/Predict",
    "rest": "/v1/predict",
}


class BatchFeatures:
    """Knows a value for every key."""

    def __init__(self) -> None:
        self._answers: dict[int, bytes] = {}

    async def ReadFeatures(self, request: Any, **_: Any) -> features_pb.ReadFeaturesResponse:  # noqa: N802 - the contract's name
        rows = len(features_pb.ReadFeaturesRequest.FromString(request.SerializeToString()).rows)
        if rows not in self._answers:
            self._answers[rows] = _answer_of(rows)
        await asyncio.sleep(0)
        return features_pb.ReadFeaturesResponse.FromString(self._answers[rows])


def _answer_of(rows: int) -> bytes:
    columns = [
        features_pb.FeatureColumn(
            feature=source,
            values=[FeatureValue(double_value=0.5 + row) for row in range(rows)],
            statuses=[features_pb.VALUE_STATUS_PRESENT] * rows,
            ages_ms=[1_000] * rows,
            event_times_us=[1_700_000_000_000_000] * rows,
        )
        for source in SOURCES
    ]
    return features_pb.ReadFeaturesResponse(columns=columns).SerializeToString()


class BatchInference:
    """Answers everything that came in one turn of the loop in the next one."""

    def __init__(self) -> None:
        self._waiting: list[Any] = []
        self._answer = (Tensor("probabilities", "FP32", (1, 2), struct.pack("<2f", 0.25, 0.75)),)

    def begin(self, target: Any, job: Any, call: Any, receiver: Any) -> "BatchInference":
        """As `infer`, for one who has no task."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._settle)
        self._waiting.append(receiver)
        return self

    def take_back(self) -> None:
        """Nobody takes anything back here."""

    async def infer(self, target: Any, job: Any, call: Any, hope_s: float | None = None) -> tuple[Tensor, ...]:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._settle)
        waiting = loop.create_future()
        self._waiting.append(waiting)
        outputs: tuple[Tensor, ...] = await waiting
        return outputs

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if isinstance(one, asyncio.Future):
                one.set_result(self._answer)
            else:
                one.take_outputs(self._answer)

    def is_ready(self, target: Any) -> bool:
        return True


def configuration() -> Configuration:
    probabilities = TensorSpec("probabilities", "FP32", (-1, 2))
    trees = Signature((TensorSpec("x", "FP32", (-1, 30)),), (probabilities,))
    words = [
        FeatureSpec(name=name, type=FeatureType.STRING, tensor="words", column=column)
        for column, name in enumerate(("carrier", "origin", "dest"))
    ]
    numbers = [
        FeatureSpec(
            name=name, type=FeatureType.INT64 if column < 4 else FeatureType.DOUBLE, tensor="numbers", column=column,
            minimum=-1000, maximum=10_000,
        )
        for column, name in enumerate(NUMBERS)
    ]  # fmt: skip
    flights = Signature(
        (TensorSpec("words", "BYTES", (-1, 3)), TensorSpec("numbers", "FP32", (-1, len(NUMBERS)))),
        (probabilities,), tuple(words + numbers), PredictionSpec("probabilities", LABELS),
    )  # fmt: skip
    fetched = [
        FeatureSpec(name=source, type=FeatureType.DOUBLE, tensor="fetched", column=column, source=source)
        for column, source in enumerate(SOURCES)
    ]
    enriched = replace(
        flights,
        inputs=(*flights.inputs, TensorSpec("fetched", "FP32", (-1, len(SOURCES)))),
        features=flights.features + tuple(fetched),
    )
    models = {"trees": trees, "flights": flights, "enriched": enriched}
    return build_configuration(
        1,
        versions=[new_version(model=name, version="1", signature=found) for name, found in models.items()],
        deployments=[Deployment(name=name, model=name, version="1", pool="default") for name in models],
        routes=[Route(name, "pepper", (Variant("champion", name, ((0, 9999),), 10_000),)) for name in models],
    )


class BatchModel:
    """A model's process that answers each batch in the next turn of the loop."""

    def __init__(self, dispatcher: Dispatcher, output: inference_tensor.TensorSpec) -> None:
        self._dispatcher = dispatcher
        self._output = output

    def run(self, ident: int, outputs: Sequence[int], tensors: Sequence[FrameTensor], traceparent: str) -> None:
        asyncio.get_running_loop().call_soon(self._answer, ident, tensors[0].shape[0])

    def _answer(self, ident: int, rows: int) -> None:
        output = OutputData(self._output, (rows, 2), bytes(8 * rows))
        self._dispatcher.take_result(ident, BatchAnswer(rows, [output], 1e-4))

    def interrupt(self, ident: int) -> None: ...

    def kill(self) -> None: ...


def open_inference() -> AsgiDoor:
    """The door of an inference that holds one version."""
    registry = CollectorRegistry()
    nothing: Any = None
    chain = Chain(limits=Limits(), metrics=RequestMetrics("inference", registry), tracing=Tracing("inference"))
    x, y = (
        inference_tensor.TensorSpec(name, "FP32", (-1, size)) for name, size in (("x", FLOATS), ("probabilities", 2))
    )
    spec = VersionSpec(VersionKey("trees", "1"), (), (x,), (y,))
    parts = HostParts(
        artifacts=nothing, launcher=nothing, clock=MonotonicClock(Turns()), observer=PrometheusObserver(registry),
        limits=QueueLimits(), loads=nothing, pauses=nothing, arriving=chain.arrivals.count,
    )  # fmt: skip
    replica = Replica("alone", "default", parts, lambda key, ready: None)
    host = replica.hosts[spec.key] = ModelHost(spec, BatchingPolicy(), parts, lambda host: None)
    host.state = LoadState.READY
    host.dispatcher.attach(BatchModel(host.dispatcher, y), [(1, 1e-4), (64, 3e-4)])
    tracer = SpanTracer(Tracing("inference"))
    servicer = InferenceOip(replica, tracer, nothing, "alone", SharedRegions(0, 0, chain.budget))
    binding = Binding("inference.GRPCInferenceService", servicer, hot=frozenset({"ModelInfer"}))
    return AsgiDoor(chain, methods_of([binding]))


def open_router(queue: EventQueue) -> AsgiDoor:
    registry = CollectorRegistry()
    table = RoutingTable()
    table.apply(configuration())
    inference = BatchInference()
    nothing: Any = None
    stub: Any = BatchFeatures()
    chain = Chain(limits=Limits(), metrics=RequestMetrics("router", registry), tracing=Tracing("router"))
    features = FeatureReads(
        stub,
        timeout_s=1.0,
        gather_s=0.002,
        arriving=chain.arrivals.count,
        turns=chain.turns,
        tracing=Tracing("router"),
        metrics=FetchMetrics(registry),
    )
    predictor = Predictor(
        table=table,
        inference=inference,
        features=features,
        events=queue,
        metrics=PrometheusPredictions(registry),
        admission=Admission(4096),
        new_id=uuid_utils.uuid7,
        clock_tolerance_s=60.0,
    )

    class _Settings:
        bytes_in_flight_limit = message_limit_bytes = 1 << 28

    class _Runtime:
        health = streams = nothing
        settings = _Settings

    runtime: Any = _Runtime()
    regions = SharedRegions(0, 0, chain.budget)
    methods = methods_of(_bindings(predictor, Catalog(table, inference), regions, runtime))
    return AsgiDoor(chain, methods)


class Server:
    """Calls the application as pyvoy does and notices when an answer is whole."""

    def __init__(self, app: Callable[..., Coroutine[Any, Any, None]], shape: str, bodies: Sequence[bytes]) -> None:
        self._app = app
        self._shape = shape
        self._bodies = bodies
        self._loop = asyncio.get_running_loop()
        self._left = 0
        self._sent = 0
        self._done = self._loop.create_future()

    async def round(self, count: int, in_flight: int) -> None:
        self._left, self._sent = count, 0
        self._done = self._loop.create_future()
        for _ in range(in_flight):
            self._loop.call_soon(self._start)
        await self._done

    def _start(self) -> None:
        if self._sent == PER_ROUND:
            return
        body = self._bodies[self._sent % len(self._bodies)]
        self._sent += 1
        rest = self._shape == "rest"
        headers = [(b"content-type", b"application/json")] if rest else list(GRPC_HEADERS)
        headers.append((b"x-correlation-id", b"9ac7e0b7-2ba4-4b0a-a6a4-%012d" % self._sent))
        path = PATHS[self._shape]
        scope = {
            "type": "http", "asgi": {}, "extensions": {}, "http_version": "2", "method": "POST", "scheme": "http",
            "query_string": b"", "path": path, "raw_path": path.encode(), "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip

        def receive() -> asyncio.Future[dict[str, Any]]:
            future = self._loop.create_future()
            self._loop.call_soon(future.set_result, {"type": "http.request", "body": body, "more_body": False})
            return future

        def send(event: dict[str, Any]) -> Awaitable[None]:
            if event["type"] == "http.response.start" and event["trailers"] is rest:
                self._done.set_exception(AssertionError(f"refused: {event}"))
            if event["type"] == ("http.response.body" if rest else "http.response.trailers"):
                self._finish()
            return Sent()

        coroutine = self._app(scope, receive, send)
        if coroutine is not None:
            self._loop.create_task(coroutine)

    def _finish(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.set_result(None)
        else:
            self._loop.call_soon(self._start)


def bodies_of(shape: str, count: int) -> list[bytes]:
    if shape == "fetched":
        bodies = []
        for body in predict_bodies(count):
            message = router_pb.PredictRequest.FromString(body)
            message.model = "enriched"
            message.entities.update(carrier="AA", origin="JFK", destination="LAX", aircraft="N1")
            bodies.append(frame(message.SerializeToString()))
        return bodies
    if shape != "rest":
        return [frame(body) for body in (predict_bodies if shape == "predict" else infer_bodies)(count)]
    return [json.dumps(row | {"include_probabilities": True}).encode() for row in named_rows(count)]


async def measure(shape: str, rounds: int, in_flight: int, profile: str) -> float:
    queue = EventQueue(10_000, 64 << 20, lambda _: None)
    door = open_inference() if shape == "inference" else open_router(queue)
    server = Server(door.begin, shape, bodies_of(shape, PER_ROUND))
    settle_collections()
    best = float("inf")
    await server.round(PER_ROUND, in_flight)
    profiler = cProfile.Profile(time.thread_time)
    for _ in range(rounds):
        while len(queue):
            queue.take()
        if profile:
            profiler.enable()
        begun = time.thread_time()
        await server.round(PER_ROUND, in_flight)
        best = min(best, (time.thread_time() - begun) / PER_ROUND * 1e6)
        profiler.disable()
    if profile:
        pstats.Stats(profiler).sort_stats(profile).print_stats(45)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--in-flight", nargs="+", type=int, default=[64])
    parser.add_argument("--profile", default="")
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        for in_flight in arguments.in_flight:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                least = runner.run(measure(shape, arguments.rounds, in_flight, arguments.profile))
            print(f"{shape:9} {in_flight:3} in flight: {least:6.1f} us a request")


if __name__ == "__main__":
    main()
