"""Prediction events: complete, columnar, bounded, and never in the way of a request."""

import asyncio
import struct
import time
import uuid

import grpc
from interlock.monitor.v1.prediction_event_pb2 import PredictionBatch
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.router.domain.assignment import Bucketing
from tests.fakes.router_inference import status_of
from tests.fakes.router_models import PAIR
from tests.fakes.router_monitor import FakeMonitor, serve_monitor
from tests.fakes.router_world import World, error_of, eventually


def ask(a: int, user_id: str = "") -> pb.PredictRequest:
    features = {"a": FeatureValue(int64_value=a), "b": FeatureValue(int64_value=2)}
    return pb.PredictRequest(model=PAIR, features=features, user_id=user_id)


async def predict_many(world: World, count: int) -> list[str]:
    answers = await asyncio.gather(*(world.router.Predict(ask(a), timeout=20) for a in range(count)))
    return [answer.prediction.prediction_id for answer in answers]


def ids_of(batch: PredictionBatch) -> list[str]:
    raw = batch.prediction_ids
    return [str(uuid.UUID(bytes=raw[start : start + 16])) for start in range(0, len(raw), 16)]


async def test_every_prediction_is_reported_once_with_its_row(world: World) -> None:
    sent = await predict_many(world, 100)
    await eventually(lambda: world.monitor.rows == 100)
    seen: dict[str, tuple[float, float]] = {}
    for batch in world.monitor.batches:
        ids = ids_of(batch)
        inputs = struct.unpack(f"<{2 * len(ids)}d", batch.inputs[0].data)
        outputs = struct.unpack(f"<{len(ids)}d", batch.outputs[0].data)
        assert batch.inputs[0].shape[0] == batch.outputs[0].shape[0] == len(ids)
        for position, found in enumerate(ids):
            seen[found] = (inputs[2 * position], outputs[position])
    assert seen == {found: (float(a), a * 1000.0 + 2) for a, found in enumerate(sent)}
    assert [request.sequence for request in world.monitor.requests] == list(range(1, len(world.monitor.requests) + 1))


async def test_the_columns_say_who_where_and_how(world: World) -> None:
    await world.router.Predict(ask(1, user_id="u-42"), timeout=5)
    await eventually(lambda: world.monitor.rows == 1)
    (batch,) = world.monitor.batches
    assert (batch.model, batch.version, batch.variant) == (PAIR, "1", "1")
    assert (batch.environment, batch.epoch) == ("production", 1)
    assert list(batch.buckets) == [Bucketing("pepper").bucket_of("u-42")]
    assert [batch.principal_names[index] for index in batch.principals] == ["local"]
    assert (list(batch.statuses), list(batch.has_tensors)) == ([0], [True])
    assert (list(batch.degraded), list(batch.cached), list(batch.sampling_weights)) == ([False], [False], [1.0])
    assert batch.latencies_us[0] > 0


async def test_rows_of_one_call_are_reported_each(world: World) -> None:
    rows = [pb.PredictRow(features=ask(a).features) for a in range(130)]
    rows.append(pb.PredictRow(features={"a": FeatureValue(string_value="x")}))
    answer = await world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=rows), timeout=5)
    await eventually(lambda: world.monitor.rows == 131)
    assert world.monitor.statuses == {0: 130, 3: 1}
    wanted = {result.prediction.prediction_id for result in answer.results if result.HasField("prediction")}
    assert wanted <= {found for batch in world.monitor.batches for found in ids_of(batch)}


async def test_failures_are_reported_without_rows(world: World) -> None:
    world.replica.refuse = lambda _: status_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    await error_of(world.router.Predict(ask(1), timeout=5))
    await eventually(lambda: world.monitor.rows == 1)
    (batch,) = world.monitor.batches
    assert (list(batch.statuses), list(batch.has_tensors)) == ([8], [False])
    assert (len(batch.inputs), len(batch.outputs)) == (0, 0)


async def test_a_monitor_that_is_down_costs_nothing_and_gets_what_was_kept(world: World) -> None:
    assert world.monitor_server is not None
    await predict_many(world, 5)
    await eventually(lambda: world.monitor.rows == 5)
    await world.monitor_server.stop(0)
    started = time.monotonic()
    await predict_many(world, 200)
    assert time.monotonic() - started < 10
    successor = FakeMonitor()
    server, _ = await serve_monitor(successor, world.monitor_address)
    await eventually(lambda: successor.rows + successor.dropped == 200)
    await server.stop(0)


async def test_a_monitor_that_never_reads_slows_nobody_and_the_queue_stays_bounded(idle_world: World) -> None:
    idle_world.overrides |= {"event_queue_limit": 50}
    idle_world.monitor.stuck = True
    await idle_world.start_router()
    rows = [pb.PredictRow(features=ask(a).features) for a in range(1000)]
    for _ in range(20):
        await idle_world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=rows), timeout=5)
    dropped = idle_world.metric("interlock_router_events_dropped_total")
    assert dropped > 15_000
    idle_world.monitor.stuck = False
    await eventually(lambda: idle_world.monitor.rows + idle_world.monitor.dropped >= 20_000 - 50)
    await idle_world.router.Predict(ask(1), timeout=5)
    await eventually(lambda: idle_world.monitor.rows + idle_world.monitor.dropped == 20_001)


async def test_a_full_batch_does_not_wait_for_the_interval(idle_world: World) -> None:
    idle_world.overrides["event_interval_s"] = 60.0
    await idle_world.start_router()
    rows = [pb.PredictRow(features=ask(a).features) for a in range(1000)]
    for _ in range(3):
        await idle_world.router.PredictRows(pb.PredictRowsRequest(model=PAIR, rows=rows), timeout=10)
    await eventually(lambda: idle_world.monitor.rows == 3000)


async def test_what_waits_is_sent_before_the_process_ends(idle_world: World) -> None:
    idle_world.overrides["event_interval_s"] = 60.0
    await idle_world.start_router()
    await predict_many(idle_world, 20)
    await idle_world.stop_router()
    assert idle_world.monitor.rows == 20
    assert idle_world.monitor.ended_streams == 1
