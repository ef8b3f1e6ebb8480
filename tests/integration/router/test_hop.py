"""The hop to inference: gathering, cancels, deadlines, faults, replacement. Named for the failure they rule out."""

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest
from inference import grpc_service_pb2 as oip_pb
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.common.call import Call
from services.common.channels import open_stream_channel
from services.common.tasks import spawn
from services.router.adapters.inference_client.failure import HopFailed
from services.router.adapters.inference_client.replica import Replica
from services.router.adapters.inference_client.stream import InferStream, StreamOptions
from services.router.domain.ports import Job
from services.router.domain.tensor import Tensor
from tests.fakes.router_inference import FakeReplica, serve_replica, status_of
from tests.fakes.router_models import FLIGHT, PAIR
from tests.fakes.router_world import STANDARD_READY, World, error_of, eventually, reason_of, reasons
from tests.integration.router.test_oip_grpc import mirror_infer


@pytest.fixture(params=["frames", "grpc"])
async def hop_world(request: pytest.FixtureRequest, idle_world: World) -> World:
    """The world, with each form of the hop."""
    idle_world.overrides["hop"] = request.param
    await idle_world.start_router()
    return idle_world


@asynccontextmanager
async def several(replicas: int, **overrides: object) -> AsyncIterator[World]:
    """Give a world with several replicas, whose router knows how long an answer usually takes."""
    async with World(replicas=replicas) as world:
        world.overrides |= overrides
        await world.start_router()
        await eventually(lambda: all(replica.streams == len(STANDARD_READY) for replica in world.replicas))
        for a in range(10):
            await answer_of(world, a)
        yield world


def ask(a: int, b: float = 0.5) -> pb.PredictRequest:
    return pb.PredictRequest(
        model=PAIR, features={"a": FeatureValue(int64_value=a), "b": FeatureValue(double_value=b)}, user_id=f"u-{a}"
    )


async def answer_of(world: World, a: int, timeout_s: float = 20.0) -> float:
    return (await world.router.Predict(ask(a), timeout=timeout_s)).prediction.prediction.double_value


async def all_right(world: World, count: int) -> None:
    answers = await asyncio.gather(*(answer_of(world, a) for a in range(count)))
    assert answers == [a * 1000 + 0.5 for a in range(count)]


async def test_a_lone_call_does_not_wait_for_others(world: World) -> None:
    await answer_of(world, 1)
    assert world.replica.messages == [1]


async def test_calls_that_wait_at_the_same_moment_leave_in_one_message(idle_world: World) -> None:
    idle_world.overrides["gather_s"] = 0.1
    await idle_world.start_router()
    idle_world.replica.hold = asyncio.Event()
    answering = asyncio.ensure_future(all_right(idle_world, 200))
    await eventually(lambda: len(idle_world.replica.items) == 200)
    idle_world.replica.hold.set()
    await answering
    assert len(idle_world.replica.messages) < 100
    assert sum(idle_world.replica.messages) == 200


async def test_items_carry_deadline_trace_and_ids(world: World) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = (("traceparent", parent), ("x-correlation-id", "order-7"))
    await world.router.Predict(ask(1), timeout=3, metadata=metadata)
    (item,) = world.replica.items
    assert item.request_id == "order-7"
    assert item.traceparent.split("-")[1] == parent.split("-")[1]
    # grpc rounds the time that it sends up.
    assert 2_000_000 < item.timeout_us <= 3_100_000
    assert (item.attempt, item.rows, item.tenant) == (1, 1, "local")


async def test_a_caller_says_how_critical_a_call_is_only_where_a_setting_names_the_key(idle_world: World) -> None:
    async def levels() -> list[int]:
        idle_world.replica.items.clear()
        for word in ("critical", "Sheddable", "default", "mighty", ""):
            metadata = (("x-criticality", word), ("x-interlock-criticality", "critical"))
            await idle_world.router.Predict(ask(1), timeout=5, metadata=metadata)
        return [item.criticality for item in idle_world.replica.items]

    await idle_world.start_router()
    assert await levels() == [2, 2, 2, 2, 2], "nobody guards it, so nobody may use it"
    await idle_world.stop_router()
    idle_world.overrides["criticality_header"] = "x-criticality"
    await idle_world.start_router()
    assert await levels() == [1, 3, 2, 2, 2]


async def test_thousands_of_calls_with_cancels_never_mix_answers_up(hop_world: World) -> None:
    """Rows of different sizes, half of them cancelled at random moments: every answer is its own."""
    world = hop_world
    world.replica.delay_s = 0.002
    chance = random.Random(7)
    # A server takes 256 streams of a connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(world.address, options=options) for _ in range(10)]
    clients = [GRPCInferenceServiceStub(channel) for channel in channels]

    async def one(index: int) -> str:
        await asyncio.sleep(chance.random() * 0.5)
        rows = 1 + index % 3
        request = oip_pb.ModelInferRequest(model_name=PAIR)
        request.inputs.add(name="x", datatype="FP64", shape=[rows, 2])
        request.raw_input_contents.append(struct.pack(f"<{2 * rows}d", *([float(index), 1.0] * rows)))
        call = clients[index % len(clients)].ModelInfer(request, timeout=20)
        if index % 2:
            asyncio.get_running_loop().call_later(chance.random() * 0.01, call.cancel)
        try:
            answer = await call
        except asyncio.CancelledError:
            return "cancelled"
        assert struct.unpack(f"<{rows}d", answer.raw_output_contents[0]) == (index * 1000.0 + 1,) * rows
        return "answered"

    outcomes = await asyncio.gather(*(one(index) for index in range(1000)))
    assert outcomes.count("answered") >= 500
    assert outcomes.count("cancelled") > 25
    await asyncio.gather(*(channel.close() for channel in channels))
    await all_right(world, 10)


async def test_a_cancelled_call_is_taken_back_and_disturbs_nobody(hop_world: World) -> None:
    world = hop_world
    world.replica.hold = asyncio.Event()
    calls = [world.router.Predict(ask(a), timeout=10) for a in range(4)]
    waiting = [asyncio.ensure_future(call.code()) for call in calls]
    await eventually(lambda: len(world.replica.items) == 4)
    calls[1].cancel()
    await eventually(lambda: len(world.replica.cancelled) == 1)
    world.replica.hold.set()
    await asyncio.wait(waiting)
    for a in (0, 2, 3):
        assert (await calls[a]).prediction.prediction.double_value == a * 1000 + 0.5


async def test_the_deadline_ends_a_call_and_takes_it_back(world: World) -> None:
    world.replica.hold = asyncio.Event()
    started = time.monotonic()
    error = await error_of(world.router.Predict(ask(1), timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 3
    await eventually(lambda: len(world.replica.cancelled) == 1)
    world.replica.hold.set()
    await all_right(world, 3)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_REFUSED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.INTERNAL, "INVALID_MODEL_OUTPUT"),
    ],
)
async def test_refusals_of_inference_reach_the_caller_and_are_not_tried_again(
    world: World, code: grpc.StatusCode, reason: str
) -> None:
    world.replica.refuse = lambda _: status_of(code, reason)
    error = await error_of(world.router.Predict(ask(1), timeout=5))
    assert (error.code(), reason_of(error)) == (code, reason)
    assert len(world.replica.items) == 1


async def test_one_refused_call_does_not_fail_those_that_travelled_with_it(hop_world: World) -> None:
    world = hop_world
    world.replica.refuse = lambda item: (
        status_of(grpc.StatusCode.INVALID_ARGUMENT, "MODEL_REFUSED") if item.request_id == "bad" else None
    )
    bad = world.router.Predict(ask(99), timeout=5, metadata=(("x-correlation-id", "bad"),))
    answering = asyncio.gather(*(answer_of(world, a) for a in range(50)))
    refused = await error_of(bad)
    answers = await answering
    assert reason_of(refused) == "MODEL_REFUSED"
    assert answers == [a * 1000 + 0.5 for a in range(50)]


async def test_a_worker_that_died_costs_one_more_try(world: World) -> None:
    world.replica.refuse = lambda item: (
        status_of(grpc.StatusCode.UNAVAILABLE, "WORKER_DIED") if item.attempt == 1 else None
    )
    assert await answer_of(world, 3) == 3000.5
    assert [item.attempt for item in world.replica.items] == [1, 2]
    assert world.metric("interlock_router_inference_retries_total") == 1


async def test_a_request_that_kills_workers_meets_two_of_them_at_most(world: World) -> None:
    world.replica.refuse = lambda _: status_of(grpc.StatusCode.UNAVAILABLE, "WORKER_DIED")
    error = await error_of(world.router.Predict(ask(1), timeout=10))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "WORKER_DIED")
    assert len(world.replica.items) == 2


async def test_an_outage_of_every_replica_costs_few_tries_however_few_the_calls() -> None:
    async with several(2) as world:
        asked_before = sum(len(replica.items) for replica in world.replicas)
        for replica in world.replicas:
            replica.refuse = lambda _: status_of(grpc.StatusCode.UNAVAILABLE, "WORKER_DIED")
            replica.word_s = 0.02  # after a failure nobody is asked again before it has said that it is READY
            replica.set_ready(STANDARD_READY)
        codes = [(await error_of(world.router.Predict(ask(a), timeout=5))).code() for a in range(60)]
        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
        assert sum(len(replica.items) for replica in world.replicas) - asked_before <= 1.2 * len(codes)


async def test_a_broken_stream_loses_no_call(hop_world: World) -> None:
    world = hop_world
    world.replica.delay_s = 0.005
    world.replica.break_after_items = 20
    await all_right(world, 100)
    assert len(world.replica.opened) > len(STANDARD_READY)


async def test_a_stuck_replica_keeps_its_own_calls_only() -> None:
    async with World(replicas=2) as world:
        await world.start_router()
        await eventually(lambda: all(replica.streams == len(STANDARD_READY) for replica in world.replicas))
        world.replicas[0].queue_time_us = 1_000_000
        world.replicas[0].set_ready(STANDARD_READY)
        await asyncio.sleep(0.1)
        await all_right(world, 50)
        assert len(world.replicas[1].items) >= 49


async def test_a_dead_replica_is_left_for_the_other() -> None:
    async with World(replicas=2) as world:
        await world.start_router()
        await eventually(lambda: all(replica.streams == len(STANDARD_READY) for replica in world.replicas))
        world.replicas[0].hold = asyncio.Event()
        answering = asyncio.gather(*(answer_of(world, a) for a in range(40)))
        await eventually(lambda: bool(world.replicas[0].items))
        await world.replica_servers[0].stop(0)
        assert await answering == [a * 1000 + 0.5 for a in range(40)]


@pytest.mark.parametrize("hop", ["frames", "grpc"])
async def test_a_frozen_replica_costs_no_call_and_its_late_answers_are_nobodys(hop: str) -> None:
    async with several(3, attempt_timeout_s=0.1, hop=hop) as world:
        frozen = world.replicas[0]
        frozen.silent = True
        frozen.hold = asyncio.Event()
        for first in range(0, 200, 20):
            answers = await asyncio.gather(*(answer_of(world, a) for a in range(first, first + 20)))
            assert answers == [a * 1000 + 0.5 for a in range(first, first + 20)]
        assert world.metric("interlock_router_inference_retries_total") > 0
        await eventually(lambda: bool(frozen.cancelled))
        assert len(frozen.items) < 60, "it is left alone after its first silence"
        frozen.silent = False
        frozen.hold.set()
        await all_right(world, 50)


async def test_a_replica_that_falls_silent_is_given_up_and_what_it_held_is_asked_again(
    idle_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.adapters.inference_client.replica._SILENCE_S", 0.5)
    replica = idle_world.replica
    replica.word_s = 0.1
    await idle_world.start_router()
    replica.silent = True
    asking = asyncio.ensure_future(answer_of(idle_world, 5))
    await eventually(lambda: bool(replica.items))
    await eventually(lambda: replica.streams == 0)
    replica.silent = False
    assert await asking == 5000.5
    assert [item.attempt for item in replica.items] == [1, 2]


async def test_two_silent_replicas_leave_time_for_a_third_try() -> None:
    async with several(3, attempt_timeout_s=0.1) as world:
        for place, replica in enumerate(world.replicas):
            replica.queue_time_us = place * 100_000
            replica.set_ready(STANDARD_READY)
        for replica in world.replicas[:2]:
            replica.hold = asyncio.Event()
        before = len(world.replicas[2].items)
        # The replicas have not been told apart before their word has come.
        await eventually_async(lambda: answer_of(world, 3), lambda: len(world.replicas[2].items) > before)
        assert max(item.attempt for item in world.replicas[2].items) == 3
        assert all(item.attempt < 3 for replica in world.replicas[:2] for item in replica.items)


async def test_frames_that_lead_nowhere_or_elsewhere_are_not_used(idle_world: World) -> None:
    other = FakeReplica(replica_id="other", ready=set(STANDARD_READY))
    server, _ = await serve_replica(other)
    for address in (other.frames_address, "unix:/nowhere/hop.sock", "tcp:1", "carrier pigeons"):
        idle_world.replica.frames_address = address
        await idle_world.start_router()
        await all_right(idle_world, 5)
        await idle_world.stop_router()
    assert len(idle_world.replica.items) == 20
    assert not other.items
    await server.stop(0)


async def test_a_replica_that_takes_no_more_is_left_for_one_that_does() -> None:
    stream = InferStream(PAIR, "1", StreamOptions("test", 0.0, 1 << 20, lambda _: None), lambda _: None)
    opened = inference_pb.InferOpened(replica_id="r", max_in_flight=3)
    stream.take(inference_pb.CoalescedInferResponse(opened=opened))
    job = Job((Tensor("x", "FP64", (1, 2), bytes(16)),), 1)
    call = Call("m", deadline=time.monotonic() + 60)
    asking = [asyncio.ensure_future(stream.infer(job, call, 1, "")) for _ in range(5)]
    await eventually(lambda: not stream.has_room)
    sent = 0
    while (message := stream.next_message()) is not None:
        sent += len(inference_pb.CoalescedInferRequest.FromString(b"".join(message)).batch.ids)
        stream.has_sent()
    assert sent == 3, "no more than it may have in flight"
    assert (
        stream.load > InferStream(PAIR, "1", StreamOptions("test", 0.0, 1 << 20, lambda _: None), lambda _: None).load
    )
    stream.ended()
    failed = await asyncio.gather(*asking, return_exceptions=True)
    assert [error.ran for error in failed if isinstance(error, HopFailed)] == [True] * 3 + [False] * 2


async def test_a_replica_that_is_replaced_on_its_port_fails_no_call(hop_world: World) -> None:
    """The new process is READY on the port before the old one drains, as `interlock restart` does it."""
    world = hop_world
    world.replica.delay_s = 0.01
    failures: list[grpc.aio.AioRpcError] = []
    answered = 0
    stop = asyncio.Event()

    async def load(worker: int) -> None:
        nonlocal answered
        a = worker
        while not stop.is_set():
            a += 100
            try:
                assert await answer_of(world, a) == a * 1000 + 0.5
                answered += 1
            except grpc.aio.AioRpcError as error:
                failures.append(error)

    workers = [asyncio.ensure_future(load(worker)) for worker in range(16)]
    await eventually(lambda: answered > 100)
    old_server, port = world.replica_servers[0], world.replica_ports[0]
    for number in (2, 3):
        successor = FakeReplica(replica_id=f"replica-{number}", ready=set(STANDARD_READY))
        server, _ = await serve_replica(successor, f"127.0.0.1:{port}")
        world.replica.drain()
        await old_server.stop(5)
        world.replicas[0], old_server = successor, server
        world.replica_servers.append(server)
        await eventually(partial(_more_than, lambda: answered, answered + 100))
        assert successor.items
    stop.set()
    await asyncio.gather(*workers)
    assert not failures, reasons(failures)


async def eventually_async(work: Callable[[], Awaitable[object]], condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await work()


def _more_than(count: Callable[[], int], limit: int) -> bool:
    return count() > limit


async def test_a_version_that_is_unloaded_takes_no_other_with_it() -> None:
    """A router that took its stream's end for the replica's dialled anew, and all else waited, or timed out, meanwhile."""
    leaves, stays = (PAIR, "1"), (PAIR, "2")
    fake, lost = FakeReplica(ready={leaves, stays}), []
    server, port = await serve_replica(fake)
    options = StreamOptions("test", 0.0, 1 << 20, lambda _: None)
    replica = Replica(
        f"127.0.0.1:{port}", open_stream_channel, options, lambda: lost.append(replica.stream(stays) is None)
    )
    running = spawn(replica.run(), "replica")
    await eventually(lambda: fake.streams == 2)
    kept = replica.stream(stays)
    lost.clear()
    fake.set_ready([stays])
    await eventually(lambda: replica.stream(leaves) is None and fake.streams == 1)
    fake.set_ready([leaves, stays])
    await eventually(lambda: replica.stream(leaves) is not None and fake.streams == 2)
    assert replica.stream(stays) is kept is not None
    assert not any(lost)
    running.cancel()
    await asyncio.gather(running, replica.close(), return_exceptions=True)
    await server.stop(0)


@pytest.mark.parametrize("what", ["replica drains", "version leaves", "replica dies"])
async def test_a_call_at_the_moment_of_a_loss_knows_that_the_version_was_ready(what: str) -> None:
    """It must wait like those before it; to be refused it had only to come before the router's next turn."""
    fake, key = FakeReplica(ready={(PAIR, "1")}), (PAIR, "1")
    server, port = await serve_replica(fake)
    hopes: list[float] = []

    def look() -> None:
        if replica.stream(key) is None:
            hopes.append(replica.last_hope(key))

    options = StreamOptions("test", 0.0, 1 << 20, lambda _: None)
    replica = Replica(f"127.0.0.1:{port}", open_stream_channel, options, look)
    running = spawn(replica.run(), "replica")
    await eventually(lambda: replica.stream(key) is not None)
    hopes.clear()
    before = time.monotonic()
    if what == "replica drains":
        fake.drain()
    elif what == "version leaves":
        fake.set_ready([])
    else:
        await server.stop(0)
    await eventually(lambda: bool(hopes))
    assert hopes[0] >= before
    running.cancel()
    await asyncio.gather(running, replica.close(), return_exceptions=True)
    await server.stop(0)


async def test_a_replica_that_comes_back_is_waited_for(hop_world: World) -> None:
    world = hop_world
    port = world.replica_ports[0]
    await world.replica_servers[0].stop(0)
    waiting = asyncio.ensure_future(answer_of(world, 5))
    successor = FakeReplica(ready=set(STANDARD_READY))
    server, _ = await serve_replica(successor, f"127.0.0.1:{port}")
    world.replica_servers.append(server)
    assert await waiting == 5000.5


async def test_without_any_replica_a_call_fails_with_its_reason(idle_world: World) -> None:
    idle_world.overrides["replica_hope_s"] = 0.2
    await idle_world.replica_servers[0].stop(0)
    await idle_world.start_router(wait=False)
    await eventually(lambda: idle_world.running.runtime.health.ready)
    await asyncio.sleep(0.3)
    started = time.monotonic()
    error = await error_of(idle_world.router.Predict(ask(1), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "NO_REPLICA_READY")
    assert time.monotonic() - started < 4, "it waited for the deadline"


async def test_a_version_that_is_not_loaded_has_no_replica(idle_world: World) -> None:
    idle_world.overrides["replica_hope_s"] = 0.2
    idle_world.replica.ready = {(FLIGHT, "1")}
    await idle_world.start_router(wait=False)
    await eventually(lambda: idle_world.replica.streams == 1)
    await asyncio.sleep(0.3)
    error = await error_of(idle_world.router.Predict(ask(1), timeout=5))
    assert reason_of(error) == "NO_REPLICA_READY"


async def test_calls_beyond_the_limit_are_refused_with_a_delay(idle_world: World) -> None:
    idle_world.overrides["calls_in_flight_limit"] = 8
    await idle_world.start_router()
    idle_world.replica.hold = asyncio.Event()
    accepted = [asyncio.ensure_future(answer_of(idle_world, a)) for a in range(8)]
    await eventually(lambda: len(idle_world.replica.items) == 8)
    error = await error_of(idle_world.router.Predict(ask(9), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLS_IN_FLIGHT_EXCEEDED")
    idle_world.replica.hold.set()
    assert await asyncio.gather(*accepted) == [a * 1000 + 0.5 for a in range(8)]
    assert await answer_of(idle_world, 10) == 10_000.5


async def test_a_request_that_fills_a_message_does_not_break_the_stream(idle_world: World) -> None:
    idle_world.overrides["message_limit_bytes"] = 1 << 20
    await idle_world.start_router()
    await eventually(lambda: idle_world.replica.streams == len(STANDARD_READY))
    before = idle_world.replica.streams

    async def infer(rows: int) -> oip_pb.ModelInferResponse:
        request = oip_pb.ModelInferRequest(model_name=PAIR)
        request.inputs.add(name="x", datatype="FP64", shape=[rows, 2])
        request.raw_input_contents.append(bytes(16 * rows))
        return await idle_world.oip.ModelInfer(request, timeout=10)

    answers = await asyncio.gather(*(infer(40_000) for _ in range(6)))
    assert all(answer.outputs[0].shape[0] == 40_000 for answer in answers)
    # Just inside of what a message may hold, so that the door lets it in, and too large with what the hop adds.
    error = await error_of(infer(65_530))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert idle_world.replica.streams == before
    await all_right(idle_world, 3)


async def test_requests_of_other_outputs_and_shapes_do_not_share_a_batch(world: World) -> None:
    async def infer(output: str) -> oip_pb.ModelInferResponse:
        request = mirror_infer()
        request.outputs.add(name=output)
        return await world.oip.ModelInfer(request, timeout=10)

    wanted = ["out_INT8", "out_FP32"] * 20
    answers = await asyncio.gather(*(infer(output) for output in wanted))
    assert [answer.outputs[0].name for answer in answers] == wanted
