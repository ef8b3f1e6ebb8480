"""Predict and ModelInfer of the router through the door inside Envoy, where it needs no task: the same answers, whatever breaks."""

import asyncio
import gc
import json
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from inference import grpc_service_pb2 as oip_pb
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.common.door_asgi import AsgiDoor
from services.common.door_sweeper import Sweeper
from services.common.grpc_wire import frame
from tests.fakes.envoy_like import EnvoyLike, count_of, grpc_scope
from tests.fakes.router_inference import status_of
from tests.fakes.router_models import LIVE, PAIR, live_signature
from tests.fakes.router_registry import deployment_of, route_of, version_of
from tests.fakes.router_world import World, eventually

PATHS = {
    "infer": "/inference.GRPCInferenceService/ModelInfer",
    "predict": "/interlock.router.v1.RouterService/Predict",
    "fetched": "/interlock.router.v1.RouterService/Predict",
    "rest": "/v1/predict",
}
all_forms = pytest.mark.parametrize("form", list(PATHS))
OF_A_CALL = ("PromptCall", "RowRun", "_TensorRun", "_FirstTry", "Observation", "_Item", "_Message")


class Door:
    """The door over the router of a world, in this process."""

    def __init__(self, world: World, form: str) -> None:
        self._form = form
        self.chain = world.running.runtime.chain
        self._door = AsgiDoor(self.chain, world.running.methods)

    async def know(self) -> None:
        """Have requests of each size answered once: from then on they need no task."""
        for a in range(3):
            await self.check(a, self.ask(a))

    def ask(self, a: int, timeout: str = "20S") -> EnvoyLike:
        return self.ask_for(self._message(a), timeout)

    def ask_for(self, message: Message, timeout: str = "20S") -> EnvoyLike:
        server = EnvoyLike(frame(message.SerializeToString()))
        headers = {}
        if self._form == "rest":
            body = json_format.MessageToDict(message, preserving_proto_field_name=True)
            body["features"] = {name: value["double_value"] for name, value in body.get("features", {}).items()}
            server = EnvoyLike(json.dumps(body).encode())
            headers = {"content_type": "application/json", "te": ""}
        scope = grpc_scope(PATHS[self._form], grpc_timeout=timeout, **headers)
        assert self._door.begin(scope, server.receive, server.send) is None
        return server

    async def answered(self, server: EnvoyLike) -> EnvoyLike:
        await eventually(lambda: self.is_whole(server))
        return server

    def is_whole(self, server: EnvoyLike) -> bool:
        return len(server.sent) >= 2 and (not server.sent[0]["trailers"] or len(server.sent) == 3)

    async def refused(self, server: EnvoyLike) -> tuple[int, str]:
        """The code and the text of the error that comes."""
        await self.answered(server)
        if self._form == "rest":
            assert server.sent[0]["status"] >= 400
            error = json.loads(server.sent[1]["body"])
            return error["code"], error["message"]
        return int(server.header(b"grpc-status") or b"0"), unquote((server.header(b"grpc-message") or b"").decode())

    async def check(self, a: int, server: EnvoyLike) -> None:
        """The answer comes, and is that of request `a`."""
        self.check_sent(a, await self.answered(server))

    def check_sent(self, a: int, server: EnvoyLike) -> None:
        body, value = server.sent[1]["body"][5:], a * 1000 + 0.5
        if self._form == "rest":
            assert server.header(b"content-type") == b"application/json"
            assert json.loads(server.sent[1]["body"])["prediction"] == value
        elif self._form == "fetched":
            prediction = pb.PredictResponse.FromString(body).prediction
            assert (prediction.prediction.double_value, list(prediction.degraded)) == (_live_value(a), []), server.sent
        elif self._form == "predict":
            assert pb.PredictResponse.FromString(body).prediction.prediction.double_value == value
        else:
            answer = oip_pb.ModelInferResponse.FromString(body)
            assert (answer.id, answer.model_name) == (f"id-{a}", PAIR)
            assert answer.raw_output_contents[0] == struct.pack("<d", value) * _rows(a)

    def _message(self, a: int) -> Message:
        if self._form == "infer":
            return self._infer(a)
        if self._form == "fetched":
            hour = {"hour": FeatureValue(int64_value=a % 24)}
            return pb.PredictRequest(model=LIVE, features=hour, entities={"carrier": _carrier(a), "origin": "JFK"})
        features = {name: FeatureValue(double_value=value) for name, value in (("a", float(a)), ("b", 0.5))}
        return pb.PredictRequest(model=PAIR, features=features)

    def _infer(self, a: int) -> oip_pb.ModelInferRequest:
        request = oip_pb.ModelInferRequest(model_name=PAIR, id=f"id-{a}")
        request.inputs.add(name="x", datatype="FP64", shape=[_rows(a), 2])
        request.raw_input_contents.append(struct.pack("<2d", float(a), 0.5) * _rows(a))
        return request

    async def check_books(self) -> None:
        """Nothing of any call is left."""
        await eventually(lambda: not self.chain.deadlines.watched)
        assert (self.chain.budget.used_bytes, self.chain.arrivals.count()) == (0, 0)


def _rows(a: int) -> int:
    return 1 + a % 3


def _carrier(a: int) -> str:
    return f"c{a % 60}"


def _live_value(a: int) -> float:
    return a % 24 * 1e6 + a % 60 * 1e4 + 34_56


def has_task() -> bool:
    return any(task.get_name() in {"call", "infer"} for task in asyncio.all_tasks())


@asynccontextmanager
async def opened(form: str, replicas: int = 1, **overrides: object) -> AsyncIterator[tuple[World, Door]]:
    async with World(replicas=replicas) as world:
        world.overrides |= overrides
        await (_start_live(world) if form == "fetched" else world.start_router())
        await eventually(lambda: all(replica.streams == len(replica.ready) for replica in world.replicas))
        door = Door(world, form)
        await door.know()
        sweeping = asyncio.ensure_future(Sweeper(door.chain.deadlines).run())
        for replica in world.replicas:
            replica.items.clear()
        yield world, door
        await door.check_books()
        sweeping.cancel()


async def _start_live(world: World) -> None:
    world.control.resources = [
        version_of(LIVE, 1, live_signature(), "1.0.1"),
        deployment_of(LIVE, 1),
        route_of(LIVE, [(1, 10_000)]),
    ]
    for replica in world.replicas:
        replica.ready = {(LIVE, "1")}
    for a in range(60):
        world.features.put("carriers.delay", _carrier(a), float(a))
    world.features.put("weather.wind", "JFK", 34.0)
    world.features.put("weather.landings", "JFK", 56)
    # A busy machine is no slow service.
    world.overrides.setdefault("features_timeout_s", 1.0)
    await world.start_router(wait=False)
    await world.wait_ready(LIVE)


async def all_right(door: Door, first: int, count: int) -> None:
    servers = [door.ask(a) for a in range(first, first + count)]
    for a, server in enumerate(servers, first):
        await door.check(a, server)


@all_forms
async def test_a_call_waits_for_its_answer_without_a_task(form: str) -> None:
    async with opened(form) as (world, door):
        world.replica.hold = asyncio.Event()
        servers = [door.ask(a) for a in range(50)]
        await eventually(lambda: len(world.replica.items) == 50)
        assert not has_task()
        world.replica.hold.set()
        for a, server in enumerate(servers):
            await door.check(a, server)
        method = "interlock.router.v1.RouterHttpService/Predict" if form == "rest" else PATHS[form][1:]
        assert world.metric("interlock_router_requests_total", method=method, code="OK") == 53


@all_forms
async def test_an_answered_call_leaves_nothing_for_the_garbage_collector(form: str) -> None:
    """Circles of objects, one for each call, made the collector and cold caches eat what having no task gains."""
    async with opened(form) as (_, door):
        gc.collect()
        gc.disable()
        try:
            before = count_of(*OF_A_CALL)
            await all_right(door, 1, 50)
            assert count_of(*OF_A_CALL) == before
        finally:
            gc.enable()


@all_forms
async def test_thousands_of_calls_whose_callers_go_never_mix_answers_up(form: str) -> None:
    async with opened(form) as (world, door):
        world.replica.delay_s = 0.002
        chance = random.Random(7)

        # On a slow machine more at a time would wait too long for their features, and be refused.
        at_a_time = asyncio.Semaphore(100)

        async def one(a: int) -> str:
            await asyncio.sleep(chance.random() * 0.5)
            async with at_a_time:
                server = door.ask(a)
                if a % 2:
                    await asyncio.sleep(chance.random() * 0.05)
                    server.gone = True
                await eventually(lambda: door.is_whole(server) or server.gone)
            if not server.sent:
                return "gone"
            door.check_sent(a, server)
            return "answered"

        outcomes = await asyncio.gather(*(one(a) for a in range(1000)))
        assert outcomes.count("answered") >= 500
        world.replica.delay_s = 0
        await all_right(door, 5000, 30)


@all_forms
async def test_a_worker_that_died_costs_one_more_try(form: str) -> None:
    async with opened(form) as (world, door):
        world.replica.refuse = lambda item: (
            status_of(grpc.StatusCode.UNAVAILABLE, "WORKER_DIED") if item.attempt == 1 else None
        )
        await door.check(3, door.ask(3))
        assert [item.attempt for item in world.replica.items] == [1, 2]
        assert world.metric("interlock_router_inference_retries_total") == 1


@all_forms
@pytest.mark.parametrize(
    ("code", "reason", "status", "items"),
    [
        (grpc.StatusCode.UNAVAILABLE, "WORKER_DIED", 14, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 8, 1),
    ],
)
async def test_what_inference_refuses_reaches_the_caller(
    form: str, code: grpc.StatusCode, reason: str, status: int, items: int
) -> None:
    async with opened(form) as (world, door):
        world.replica.refuse = lambda _: status_of(code, reason)
        assert ((await door.refused(door.ask(1)))[0], len(world.replica.items)) == (status, items)


@all_forms
async def test_a_broken_stream_loses_no_call(form: str) -> None:
    async with opened(form) as (world, door):
        world.replica.delay_s = 0.005
        world.replica.break_after_items = 20
        await all_right(door, 1, 100)


@all_forms
async def test_a_frozen_replica_costs_no_call(form: str) -> None:
    async with opened(form, 3, attempt_timeout_s=0.1) as (world, door):
        frozen = world.replicas[0]
        frozen.silent, frozen.hold = True, asyncio.Event()
        for first in range(0, 200, 20):
            await all_right(door, first, 20)
        assert world.metric("interlock_router_inference_retries_total") > 0
        frozen.silent = False
        frozen.hold.set()
        await all_right(door, 200, 50)


@all_forms
async def test_the_deadline_ends_a_call_and_takes_it_back(form: str) -> None:
    async with opened(form) as (world, door):
        world.replica.hold = asyncio.Event()
        assert (await door.refused(door.ask(1, timeout="100m")))[0] == 4
        await eventually(lambda: len(world.replica.cancelled) == 1)
        world.replica.hold.set()
        await all_right(door, 2, 3)


@all_forms
async def test_without_a_replica_a_call_hears_so(form: str) -> None:
    async with opened(form, replica_hope_s=0.2) as (world, door):
        world.replica.set_ready([])
        await eventually(lambda: world.replica.streams == 0)
        code, message = await door.refused(door.ask(1, timeout="20S"))
        assert (code, "replica" in message) == (14, True)


async def test_a_caller_who_goes_ends_a_read_that_nobody_else_waits_for() -> None:
    async with opened("fetched") as (world, door):
        world.features.delay_s = 300.0
        gc.collect()
        before = count_of(*OF_A_CALL)
        gone, staying = door.ask(1), door.ask(2)
        await eventually(lambda: len(world.features.requests[-1].rows) == 2)
        gone.gone = True
        await asyncio.sleep(0.1)
        assert (world.features.cancelled, staying.sent) == (0, [])
        staying.gone = True
        await eventually(lambda: world.features.cancelled == 1)
        await eventually(lambda: count_of(*OF_A_CALL) <= before)
        world.features.delay_s = 0.0
        await all_right(door, 2, 3)


@pytest.mark.parametrize("silent", [True, False])
async def test_without_features_a_call_is_answered_as_its_policies_say(silent: bool) -> None:
    async with opened("fetched", features_timeout_s=0.05) as (world, door):
        world.features.delay_s, world.features.code = 300.0 if silent else 0.0, grpc.StatusCode.UNAVAILABLE
        for _ in range(20):
            code, message = await door.refused(door.ask(1))
            assert (code, "features" in message) == (14, True)
        # The service is known to be down by now: nobody waits for it.
        assert world.metric("interlock_router_feature_fetches_refused_total") > 0
        world.features.delay_s, world.features.code = 0.0, None
        await eventually(lambda: world.metric("interlock_router_features_breaker_open") == 0)
        await all_right(door, 2, 3)


async def test_a_row_with_wrong_keys_fails_alone() -> None:
    async with opened("fetched") as (_, door):
        request = pb.PredictRequest(
            model=LIVE, features={"hour": FeatureValue(int64_value=1)}, entities={"carrier": "bad"}
        )
        server = door.ask_for(request)
        await all_right(door, 2, 3)
        assert (await door.refused(server))[0] == 3


async def test_what_json_lacks_is_told_as_json_and_the_call_needs_no_task() -> None:
    async with opened("rest") as (_, door):
        code, message = await door.refused(door.ask_for(pb.PredictRequest(model=PAIR, features={})))
        assert (code, "features" in message) == (3, True)
        assert (await door.refused(door.ask_for(pb.PredictRequest(model="nobody", features={}))))[0] == 5
