"""RouterService.PredictStream and PredictRowsStream, and the SDK's calls of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from interlock_sdk.client import Row, connect
from interlock_sdk.errors import CallError
from tests.fakes.router_models import MIRROR, PAIR
from tests.fakes.router_world import World, eventually, reason_of
from tests.integration.router.test_oip_grpc import mirror_infer

STREAM = "interlock.router.v1.RouterService/PredictStream"
ROWS = "interlock.router.v1.RouterService/PredictRowsStream"

STALLED = 3
LARGE = 32


def row(a: int, **more: Any) -> pb.PredictRow:
    return pb.PredictRow(features={"a": FeatureValue(int64_value=a), "b": FeatureValue(double_value=0.5)}, **more)


def item(number: int, **more: Any) -> pb.PredictStreamRequest:
    return pb.PredictStreamRequest(item=pb.PredictStreamItem(id=number, row=row(number), **more))


def opening(model: str = PAIR, **more: Any) -> pb.PredictStreamRequest:
    return pb.PredictStreamRequest(open=pb.PredictStreamOpen(model=model, **more))


async def results_of(call: Any) -> dict[int, pb.PredictRowResult]:
    found: dict[int, pb.PredictRowResult] = {}
    async for response in call:
        if response.HasField("result"):
            assert response.result.id not in found
            found[response.result.id] = response.result.result
    return found


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return caught.value.code(), reason_of(caught.value)


@pytest.mark.rpc(STREAM, "happy")
async def test_each_item_is_answered_with_its_id(world: World) -> None:
    call = world.router.PredictStream(iter([opening(), *map(item, range(300))]), timeout=10)
    assert (await anext(aiter(call))).opened.max_outstanding_items == 256
    found = await results_of(call)
    assert {number: result.prediction.prediction.double_value for number, result in found.items()} == {
        number: number * 1000 + 0.5 for number in range(300)
    }


@pytest.mark.rpc(STREAM, "error")
async def test_what_is_wrong_with_an_item_stands_in_its_answer(world: World) -> None:
    wrong = pb.PredictStreamRequest(item=pb.PredictStreamItem(id=7, row=pb.PredictRow()))
    call = world.router.PredictStream(iter([opening(), item(5), wrong, opening(), item(9)]), timeout=10)
    found = await results_of(call)
    assert sorted(found) == [0, 5, 7, 9]
    assert (found[7].error.code, found[0].error.code) == (3, 3)
    assert "features.a" in str(found[7].error.details)
    assert "want an item after open, got open" in found[0].error.message
    assert found[9].HasField("prediction")


@pytest.mark.parametrize(
    ("first", "code", "reason"),
    [
        (item(1), grpc.StatusCode.INVALID_ARGUMENT, "STREAM_PROTOCOL"),
        (opening(max_outstanding_items=5000), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (opening(model="nobody"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ],
)
async def test_a_stream_that_cannot_be_opened_ends(
    world: World, first: pb.PredictStreamRequest, code: grpc.StatusCode, reason: str
) -> None:
    call = world.router.PredictStream(timeout=10)
    await call.write(first)
    assert await ended(call) == (code, reason)


async def test_an_item_meets_its_own_deadline_and_the_stream_goes_on(world: World) -> None:
    world.replica.hold = asyncio.Event()
    call = world.router.PredictStream(iter([opening(), item(1, timeout_ms=50), item(2, timeout_ms=20_000)]), timeout=30)
    answers = aiter(call)
    await anext(answers)
    late = await anext(answers)
    assert (late.result.id, late.result.result.error.code) == (1, grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
    world.replica.hold.set()
    assert (await anext(answers)).result.id == 2
    call.cancel()


async def test_the_router_reads_no_further_ahead_than_agreed(world: World) -> None:
    world.replica.hold = asyncio.Event()
    call = world.router.PredictStream(iter([opening(max_outstanding_items=2), *map(item, range(10))]), timeout=20)
    await eventually(lambda: len(world.replica.items) == 2)
    # Another stream is read meanwhile.
    other = world.router.PredictStream(iter([opening(), *map(item, range(5))]), timeout=20)
    await eventually(lambda: len(world.replica.items) == 2 + 5)
    world.replica.hold.set()
    assert len(await results_of(call)) == 10
    assert len(await results_of(other)) == 5


def narrow_channel(world: World) -> grpc.aio.Channel:
    """By itself grpcio takes in megabytes that nobody has asked for."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    return grpc.aio.insecure_channel(world.address, options=options)


def large_stream(channel: grpc.aio.Channel) -> Any:
    large = mirror_infer()
    at = [tensor.name for tensor in large.inputs].index("in_BYTES")
    large.raw_input_contents[at] = (128 * 1024).to_bytes(4, "little") + bytes(128 * 1024) + bytes(4)
    return GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([large] * LARGE), timeout=60)


async def test_callers_that_do_not_read_hold_a_bounded_part_and_others_go_on(idle_world: World) -> None:
    """What gRPC itself takes in and the bound of the stream are the most that is asked for a caller who reads nothing."""
    await idle_world.start_router()
    async with narrow_channel(idle_world) as channel:
        stalled = [large_stream(channel) for _ in range(STALLED)]
        await eventually(lambda: len(idle_world.replica.items) >= STALLED)
        assert len(await results_of(idle_world.router.PredictStream(iter([opening(), *map(item, range(200))])))) == 200
        assert len([one async for one in large_stream(channel)]) == LARGE
        # Half of what they would like at the very most; of a stream that begins a large message goes alone.
        assert len(idle_world.replica.items) < 200 + LARGE + STALLED * LARGE // 2
        assert [len([one async for one in call]) for call in stalled] == [LARGE] * STALLED


async def test_a_stream_whose_answers_nobody_reads_ends_and_says_so(idle_world: World) -> None:
    idle_world.overrides["stream_stall_s"] = 1.0
    await idle_world.start_router()
    async with narrow_channel(idle_world) as channel:
        call = large_stream(channel)
        finished = {"method": "inference.GRPCInferenceService/ModelStreamInfer", "code": "RESOURCE_EXHAUSTED"}
        await eventually(lambda: idle_world.metric("interlock_router_requests_total", **finished))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in call]
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAM_STALLED")


@pytest.mark.rpc(ROWS, "happy")
async def test_many_rows_are_answered_each_once(world: World) -> None:
    rows = [row(at) for at in range(2_000)]
    rows[1234] = pb.PredictRow()
    rows[1235].entities["no/name"] = "x"
    found: dict[int, pb.PredictRowResult] = {}
    async for response in world.router.PredictRowsStream(
        pb.PredictRowsStreamRequest(model=PAIR, rows=rows), timeout=30
    ):
        found |= {one.row_index: one.result for one in response.predictions}
    assert sorted(found) == list(range(2_000))
    assert [at for at, result in found.items() if result.HasField("error")] in ([1234, 1235], [1235, 1234])
    assert found[1999].prediction.prediction.double_value == 1_999_000.5


@pytest.mark.rpc(ROWS, "error")
@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (pb.PredictRowsStreamRequest(model=PAIR), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (pb.PredictRowsStreamRequest(model="nobody", rows=[row(1)]), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    ],
)
async def test_rows_that_cannot_be_begun_fail_the_call(
    world: World, request_: pb.PredictRowsStreamRequest, code: grpc.StatusCode, reason: str
) -> None:
    assert await ended(world.router.PredictRowsStream(request_, timeout=10)) == (code, reason)


async def test_rows_without_features_in_the_signature_say_so_each(world: World) -> None:
    request = pb.PredictRowsStreamRequest(model=MIRROR, rows=[row(1), row(2)])
    (response,) = [one async for one in world.router.PredictRowsStream(request, timeout=10)]
    assert [one.result.error.code for one in response.predictions] == [9, 9]


async def test_the_sdk_streams(world: World) -> None:
    rows = [Row({"a": at, "b": 0.5}) for at in range(20)]
    rows[3] = Row({"a": "text", "b": 0.5})
    async with connect(world.address) as client:
        streamed = {number: found async for number, found in client.predict_stream(PAIR, _as_they_come(rows))}
        at_once = {number: found async for number, found in client.predict_rows_stream(PAIR, rows)}
        for found in (streamed, at_once):
            assert sorted(found) == list(range(20))
            assert isinstance(found[3], CallError)
            assert found[3].reason == "INVALID_FEATURES"
        breaking = client.predict_stream(PAIR, _as_they_come(rows, breaks=True))
        assert sorted([(await anext(breaking))[0] for _ in rows]) == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await anext(breaking)
        with pytest.raises(CallError) as refused:
            await anext(client.predict_stream("nobody", _as_they_come(rows)))
        assert refused.value.reason == "MODEL_NOT_FOUND"


async def _as_they_come(rows: Sequence[Row], *, breaks: bool = False) -> AsyncIterator[Row]:
    for one in rows:
        yield one
    if breaks:
        raise ZeroDivisionError
