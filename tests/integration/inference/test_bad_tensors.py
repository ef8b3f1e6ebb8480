"""Every kind of wrong tensor is refused with what was wanted and what came, and never reaches the model."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from inference import grpc_service_pb2 as oip
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.registry.v1.deployment_pb2 import NON_FINITE_POLICY_REFUSE

from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running
from tests.integration.inference.stream import open_call, open_stream, row
from tests.proof.fuzz import mutated, targets
from tests.proof.fuzz_wire import bugs, fuzz_grpc, inference_methods

ROW = np.ones((1, 2), "<f4").tobytes()


def request(
    *,
    name: str = "x",
    datatype: str = "FP32",
    shape: tuple[int, ...] = (1, 2),
    raw: list[bytes] | None = None,
    contents: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = (),
) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest(model_name="oracle")
    tensor = made.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents is not None:
        tensor.contents.CopyFrom(oip.InferTensorContents(**contents))
    made.raw_input_contents.extend([ROW] if raw is None and contents is None else raw or [])
    for output in outputs:
        made.outputs.add(name=output)
    return made


def twice() -> oip.ModelInferRequest:
    made = request(raw=[ROW, ROW])
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    return made


def crowd() -> oip.ModelInferRequest:
    made = request()
    for _ in range(100_000):
        made.inputs.add()
    return made


CASES = {
    "name": (request(name="X"), "want one of 'x', got \"X\""),
    "datatype": (request(datatype="FP64"), 'want FP32, got "FP64"'),
    "control characters": (request(datatype="FP32\n\x1b[31m"), "want FP32, got"),
    "rank": (request(shape=(2,)), "want shape [-1, 2], got [2]"),
    "size": (request(shape=(1, 3)), "want shape [-1, 2], got [1, 3]"),
    "negative": (request(shape=(-1, 2)), "no negative size, got [-1, 2]"),
    "both negative": (request(shape=(-1, -2)), "got [-1, -2]"),
    "no rows": (request(shape=(0, 2), raw=[b""]), "at least 1 row"),
    "huge": (request(shape=(2**62, 2)), "want at most"),
    "huge rank": (request(shape=(1,) * 5_000), "got 5000 dimensions"),
    "short": (request(raw=[ROW[:-1]]), "want 8 bytes for shape [1, 2] of FP32, got 7"),
    "long": (request(raw=[ROW + b"\x00"]), "want 8 bytes for shape [1, 2] of FP32, got 9"),
    "entries": (request(raw=[ROW, ROW]), "want one entry for each of the 1 inputs, got 2"),
    "no values": (request(raw=[], contents={}), "want 2 values in contents.fp32_contents, got 0"),
    "both forms": (request(raw=[ROW], contents={"fp32_contents": [1, 2]}), "got contents too"),
    "other field": (request(contents={"int_contents": [1, 2]}), "got some in contents.int_contents"),
    "count": (request(contents={"fp32_contents": [1, 2, 3]}), "want 2 values in contents.fp32_contents, got 3"),
    "output twice": (request(outputs=("y", "y")), "want at most 1 names, got 2"),
    "input twice": (twice(), "want it once, got it again"),
    "crowd": (crowd(), "want 1, got 100001"),
    "nothing": (oip.ModelInferRequest(model_name="oracle"), "want FP32 [-1, 2], got no tensor of that name"),
}


def details(error: grpc.aio.AioRpcError) -> tuple[Status, str, list[str]]:
    status = rpc_status.from_call(error)
    info, bad = ErrorInfo(), BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return status, info.reason, [violation.description for violation in bad.field_violations]


@pytest.mark.rpc("inference.GRPCInferenceService/ModelInfer", "error")
async def test_a_tensor_that_does_not_fit_is_refused_before_the_model(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    for kind, (bad, want) in CASES.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.infer(bad)
        _, reason, descriptions = details(refused.value)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, kind
        assert reason == "INVALID_TENSORS", kind
        assert any(want in description for description in descriptions), (kind, descriptions)
        assert (refused.value.details() or "").isprintable()
    statistics = await running.statistics("oracle")
    assert (statistics.execution_count, statistics.inference_count) == (0, 0)
    assert (await running.infer(request())).raw_output_contents[0] == np.full((1, 2), 3, "<f4").tobytes()


@pytest.mark.parametrize(
    ("model", "version", "code"),
    [
        ("nobody", "", "NOT_FOUND"),
        ("oracle", "7", "NOT_FOUND"),
        ("", "", "INVALID_ARGUMENT"),
        ("../etc/passwd", "", "INVALID_ARGUMENT"),
        ("a\x00b", "", "INVALID_ARGUMENT"),
        ("oracle", "../1", "INVALID_ARGUMENT"),
    ],
)
async def test_a_model_that_is_not_here(
    running: Running, put_oracle: Callable[..., None], model: str, version: str, code: str
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    bad = request()
    bad.model_name, bad.model_version = model, version
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.infer(bad)
    assert refused.value.code().name == code


async def test_an_output_that_the_model_does_not_have(running: Running, put_oracle: Callable[..., None]) -> None:
    put_oracle()
    await running.ready("oracle/1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.infer(request(outputs=("y", "z")))
    _, reason, descriptions = details(refused.value)
    assert (refused.value.code(), reason) == (grpc.StatusCode.NOT_FOUND, "OUTPUT_NOT_FOUND")
    assert descriptions == ["want one of 'y', got \"z\""]
    assert refused.value.details() == "outputs[1].name: want one of 'y', got \"z\""
    assert (await running.statistics("oracle")).execution_count == 0


async def test_texts_are_walked_and_must_be_texts(running: Running, registry: FakeRegistry) -> None:
    registry.put_version(
        "text/1",
        {"model.onnx": models.text()},
        [spec("word", "BYTES", 1), spec("n", "INT64", 1)],
        [spec("echo", "BYTES", 1), spec("m", "INT64", 1)],
    )
    registry.deploy("text", "text/1")
    await running.ready("text/1")
    number = (5).to_bytes(8, "little")

    def made(word: bytes) -> oip.ModelInferRequest:
        wanted = oip.ModelInferRequest(model_name="text", raw_input_contents=[word, number])
        wanted.inputs.add(name="word", datatype="BYTES", shape=[1, 1])
        wanted.inputs.add(name="n", datatype="INT64", shape=[1, 1])
        return wanted

    for word, want in [
        (b"\x05\x00\x00\x00abc", "element 0 ends at byte 9, got 7 bytes"),
        (b"\xff\xff\xff\xffabc", "element 0 ends at byte 4294967299"),
        (b"", "want 1 elements"),
        (b"\x01\x00\x00\x00ab", "got 1 bytes more"),
        (b"\x01\x00\x00\x00\xff", "want UTF-8 text, got byte 0xff"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.infer(made(word))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert want in (refused.value.details() or "")
    response = await running.infer(made(b"\x03\x00\x00\x00abc"))
    assert list(response.raw_output_contents) == [b"\x03\x00\x00\x00abc", number]
    assert (await running.statistics("text")).execution_count == 1


async def test_numbers_that_are_none_are_refused_where_the_policy_says_so(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=4, non_finite=NON_FINITE_POLICY_REFUSE)
    await running.ready("oracle/1")
    rows = np.ones((6, 2), "<f4")
    rows[5, 1] = np.inf
    for bad, text in [
        (request(contents={"fp32_contents": [1, np.nan]}), "want finite numbers, got NaN at [0, 1]"),
        # More than a batch holds: it would run in parts.
        (request(shape=(6, 2), raw=[rows.tobytes()]), "want finite numbers, got infinity at [5, 1]"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.infer(bad)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(refused.value)[1:] == ("INVALID_TENSORS", [text])
        assert refused.value.details() == f"the model takes finite numbers only: inputs.x: {text}"
    async with open_stream(running.own, "oracle", "1") as stream:
        before, failed, after = await stream.infer(rows[:2], rows[4:], rows[:1])
    assert (before, after) == (np.full((2, 2), 3, "<f4").tobytes(), np.full((1, 2), 3, "<f4").tobytes())
    assert (failed.code, failed.reason) == (3, "INVALID_TENSORS")
    assert "got infinity at [1, 1]" in str(failed)
    statistics = await running.statistics("oracle")
    assert (statistics.inference_stats.success.count, statistics.inference_stats.fail.count) == (2, 3)
    # Changed while it serves.
    put_oracle(max_batch_size=4)
    answer = None
    async with asyncio.timeout(10):
        while answer is None:
            with suppress(grpc.aio.AioRpcError):
                answer = await running.infer(request(shape=(6, 2), raw=[rows.tobytes()]))
            await asyncio.sleep(0.02)
    assert answer.raw_output_contents[0] == (rows * 2 + 1).tobytes()


def message(**changes: Any) -> pb.InferBatch:
    batch = pb.InferBatch(outputs=changes.get("outputs", []))
    for ident, rows in changes.get("items", [(1, 1)]):
        batch.ids.append(ident)
        batch.rows.append(rows)
        batch.timeouts_us.append(1_000_000)
    for column in ("tenants", "attempts"):
        getattr(batch, column).extend(changes.get(column, []))
    tensor = {"name": "x", "data_type": 11, "shape": [1, 2], "data": ROW, **changes.get("tensor", {})}
    batch.tensors.add(**tensor)
    return batch


@pytest.mark.rpc("interlock.inference.v1.InferenceService/CoalescedInfer", "error")
async def test_tensors_of_a_stream_that_do_not_fit_fail_their_items_only(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    stream = running.own.CoalescedInfer()
    await stream.write(pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1")))
    await stream.read()
    for tensor in (
        {"name": "z"},
        {"data_type": 12},
        {"data_type": 99},
        {"shape": [1, 3]},
        {"shape": [2, 2]},
        {"data": ROW[:3]},
    ):
        await stream.write(pb.CoalescedInferRequest(batch=message(tensor=tensor)))
        (failure,) = (await stream.read()).results.failures
        assert (failure.id, failure.error.code) == (1, 3), tensor
        assert "want" in failure.error.message
    await stream.write(pb.CoalescedInferRequest(batch=message()))
    answer = (await stream.read()).results
    assert answer.tensors[0].data == np.full((1, 2), 3, "<f4").tobytes()
    assert (await running.statistics("oracle")).execution_count == 1
    stream.cancel()


@pytest.mark.parametrize(
    "messages",
    [
        [pb.CoalescedInferRequest(batch=message())],
        [pb.CoalescedInferRequest()],
        [],
        [pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1"))] * 2,
        [
            pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1")),
            pb.CoalescedInferRequest(batch=message(items=[])),
        ],
        [
            pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1")),
            pb.CoalescedInferRequest(batch=message(items=[(1, 1), (1, 1)])),
        ],
        [
            pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1")),
            pb.CoalescedInferRequest(batch=message(items=[(1, 0)])),
        ],
        [
            pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1")),
            pb.CoalescedInferRequest(batch=message(tenants=["a", "b"])),
        ],
        [
            pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1")),
            pb.CoalescedInferRequest(batch=message(tenants=["a" * 129])),
        ],
    ],
    ids=[
        "batch first",
        "empty",
        "nothing",
        "open twice",
        "no items",
        "id twice",
        "no rows",
        "columns of other lengths",
        "long text",
    ],
)
async def test_a_message_that_breaks_the_rules_ends_the_stream(
    running: Running, put_oracle: Callable[..., None], messages: list[pb.CoalescedInferRequest]
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    stream = running.own.CoalescedInfer(iter(messages))
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in stream:
            pass
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(ended.value)[1] == "INVALID_STREAM_MESSAGE"


async def test_a_stream_for_a_version_that_is_not_here(running: Running) -> None:
    stream = running.own.CoalescedInfer(
        iter([pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1"))])
    )
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert ended.value.code() is grpc.StatusCode.NOT_FOUND
    assert details(ended.value)[1] == "VERSION_NOT_LOADED"


async def test_bad_frames_cost_their_connection_and_nothing_else(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    opening = pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1"))
    async with open_stream(running.own, "oracle", "1", "frames") as stream:
        for bad in (b"\xff\xff", opening.SerializeToString()[:-1]):
            call = await open_call(running.own, "frames")
            await call.write(opening)
            assert (await call.read()).HasField("opened")
            call.link.send(bad)
            await asyncio.wait_for(call.is_over.wait(), 5)
        for messages in ([pb.CoalescedInferRequest()], [opening, pb.CoalescedInferRequest(batch=message(items=[]))]):
            call = await open_call(running.own, "frames")
            for each in messages:
                await call.write(each)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await stream.infer(row(5)) == [(row(5) * 2 + 1).tobytes()]


async def test_bytes_that_are_hardly_a_request_never_make_it_fail(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle("plain/1")
    await running.ready("plain/1")
    good = {name: target.good for name, target in targets().items()}
    opening = pb.CoalescedInferRequest(open=pb.InferOpen(model="plain", version="1")).SerializeToString()
    for method in inference_methods(good["ModelInfer at inference"], good["CoalescedInfer"], opening):
        ended = await fuzz_grpc(running.channel, method, 150, seed=1)
        assert not bugs(ended), bugs(ended)
        assert ended["INVALID_ARGUMENT"], f"{method.name} was reached: {ended}"
    draw = random.Random(1)
    async with open_stream(running.own, "plain", "1", "frames") as stream:
        for _ in range(100):
            call = await open_call(running.own, "frames")
            call.link.send(opening)
            call.link.send(mutated(draw, good["CoalescedInfer"]))
            await call.done_writing()
            await asyncio.wait_for(call.is_over.wait(), 10)
            assert call.status.code in {0, 3, 5}, call.status
        assert await stream.infer(row(5)) == [(row(5) * 2 + 1).tobytes()]


async def test_answers_that_one_message_cannot_hold_come_in_several(
    start: Callable[..., Any], registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=1024)
    async with registry.listening() as address, start(address, message_limit_bytes=16_384) as running:
        await running.ready("oracle/1")
        for form in ("grpc", "frames"):
            async with open_stream(running.own, "oracle", "1", form) as stream:
                rows = [np.full((200, 2), value, "<f4") for value in range(8)]
                assert await stream.infer(*rows) == [(each * 2 + 1).tobytes() for each in rows]
                assert max(stream.batch_sizes) > 400, "a batch is larger than what is joined in one message"
