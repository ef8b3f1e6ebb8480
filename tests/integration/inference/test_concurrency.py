"""Thousands of requests at once, many of them cancelled: nobody gets somebody else's answer, nothing is left over."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from inference import grpc_service_pb2 as oip
from interlock.inference.v1 import inference_service_pb2 as pb

from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running
from tests.integration.inference.stream import ItemFailed, StreamClient, open_stream, row


class Crowd:
    """Callers of both contracts, some of whom go away; counts how they fared."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.picks = random.Random(7)
        self.outcomes = {"right": 0, "cancelled": 0, "refused": 0}

    async def one_stream(self, number: int) -> None:
        async with open_stream(self.running.own, "oracle", "1", ("grpc", "frames")[number % 2]) as stream:
            for turn in range(20):
                first = number * 100_000 + turn * 100
                await self.one_message(stream, [float(first + place) for place in range(25)])

    async def one_message(self, stream: StreamClient, values: list[float]) -> None:
        rows = [row(*([value] * self.picks.randint(1, 3))) for value in values]
        batch, ids = stream.put(rows)
        futures = {ident: stream.waiting[ident] for ident in ids}
        await stream.send(batch)
        gone = self.picks.sample(ids, 5)
        await stream.call.write(pb.CoalescedInferRequest(cancel=pb.InferCancel(ids=gone)))
        for ident in gone:
            futures.pop(ident).cancel()
            self.outcomes["cancelled"] += 1
        wanted = {ident: (sent * 2 + 1).tobytes() for ident, sent in zip(ids, rows, strict=True)}
        for ident, future in futures.items():
            self.judge(wanted[ident], await asyncio.wait_for(settled(future), 10))

    async def one_caller(self, number: int) -> None:
        for turn in range(25):
            value = np.array([[number * 1000.0 + turn, -1.0]], "<f4")
            request = oip.ModelInferRequest(model_name="oracle", id=str(turn), raw_input_contents=[value.tobytes()])
            request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
            call = asyncio.ensure_future(self.running.infer(request))
            if self.picks.random() < 0.2:
                await asyncio.sleep(self.picks.random() * 0.005)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                self.outcomes["cancelled"] += 1
                continue
            answer = await settled(call)
            self.judge(
                (value * 2 + 1).tobytes(),
                answer.raw_output_contents[0] if isinstance(answer, oip.ModelInferResponse) else answer,
            )

    def judge(self, want: bytes, answer: object) -> None:
        if isinstance(answer, ItemFailed):
            assert answer.reason == "QUEUE_FULL", answer
        elif isinstance(answer, grpc.aio.AioRpcError):
            assert answer.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, answer
        else:
            assert answer == want
        self.outcomes["refused" if isinstance(answer, Exception) else "right"] += 1


async def settled(future: "asyncio.Future[Any]") -> Any:
    """Return the result or the exception."""
    return (await asyncio.gather(future, return_exceptions=True))[0]


async def test_thousands_of_items_with_cancels_are_never_mixed_up(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=64)
    await running.ready("oracle/1")
    crowd = Crowd(running)
    await asyncio.gather(
        *(crowd.one_stream(number) for number in range(6)), *(crowd.one_caller(number) for number in range(20))
    )

    assert crowd.outcomes["right"] > 2_000, crowd.outcomes
    assert sum(crowd.outcomes.values()) == 6 * 20 * 25 + 20 * 25
    state = await running.state("oracle/1")
    assert state is not None
    assert state.queued_rows == 0
    statistics = await running.statistics("oracle")
    assert statistics.inference_count > statistics.execution_count


async def test_a_slow_model_with_a_full_queue_holds_nobody_else_up(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    registry.put_version("looper/1", {"model.onnx": models.looper()}, [spec("x", "INT64", 1)], [spec("y", "INT64", 1)])
    registry.deploy("looper", "looper/1", max_batch_size=1, max_queue_rows=4)
    await asyncio.gather(running.ready("oracle/1"), running.ready("looper/1"))
    endless = oip.ModelInferRequest(model_name="looper", raw_input_contents=[np.array([10**15], "<i8").tobytes()])
    endless.inputs.add(name="x", datatype="INT64", shape=[1, 1])
    asked = [asyncio.ensure_future(running.infer(endless, limit_s=30)) for _ in range(40)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    crowd = Crowd(running)
    for refused in done:
        crowd.judge(b"", await settled(refused))
    assert crowd.outcomes["refused"]

    await asyncio.gather(*(crowd.one_caller(number) for number in range(10)))
    assert crowd.outcomes["right"] + crowd.outcomes["cancelled"] == 10 * 25, crowd.outcomes
    # Meanwhile its batch goes on, as do those that wait for it.
    going_on = [call for call in asked if not call.done()]
    assert len(going_on) >= 4
    for call in going_on:
        call.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_request_of_more_rows_than_a_batch_is_answered_whole(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=4)
    await running.ready("oracle/1")
    rows = np.arange(202, dtype="<f4").reshape(101, 2)
    request = oip.ModelInferRequest(model_name="oracle", raw_input_contents=[rows.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    response = await running.infer(request)
    assert response.raw_output_contents[0] == (rows * 2 + 1).tobytes()
    assert list(response.outputs[0].shape) == [101, 2]
    statistics = await running.statistics("oracle")
    assert (statistics.inference_count, statistics.execution_count) == (101, 26)


async def test_requests_of_different_length_share_batches_where_the_policy_fills_them_up(
    running: Running, registry: FakeRegistry
) -> None:
    registry.put_version("wide/1", {"model.onnx": models.wide()}, [spec("x", "FP32", -1)], [spec("y", "FP32", 1)])
    registry.deploy("wide", "wide/1", length_buckets=[4, 8])
    await running.ready("wide/1")

    async def largest(length: int) -> float:
        sent = np.arange(1, length + 1, dtype="<f4")
        request = oip.ModelInferRequest(model_name="wide", raw_input_contents=[sent.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=[1, length])
        return float(np.frombuffer((await running.infer(request)).raw_output_contents[0], "<f4")[0])

    async with asyncio.timeout(20):
        shared = 1
        while shared == 1:  # eight lengths, none twice: without filling, no batch has two rows
            assert await asyncio.gather(*map(largest, range(1, 9))) == [length + 1 for length in range(1, 9)]
            shared = max(each.batch_size for each in (await running.statistics("wide")).batch_stats)
    assert await largest(11) == 12, "longer than the last bucket"


async def test_a_latency_target_keeps_batches_as_small_as_the_model_is_slow(
    running: Running, registry: FakeRegistry
) -> None:
    weights = np.linspace(0, 1, 200_000, dtype="<f4").reshape(1, -1)
    registry.put_version(
        "heavy/1", {"model.onnx": models.heavy(weights)}, [spec("x", "FP32", 1)], [spec("y", "FP32", 1)]
    )
    # 64 rows write and read 51 MB: no machine does that in a millisecond.
    target = Duration(nanos=1_000_000)
    registry.deploy("heavy", "heavy/1", max_batch_size=64, max_delay_ms=0, latency_target=target)
    await running.ready("heavy/1")
    async with open_stream(running.own, "heavy", "1") as stream:
        rows = [np.array([[number]], "<f4") for number in range(64)]
        assert await stream.infer(*rows) == [each.tobytes() for each in rows]
    assert max(stream.batch_sizes) < 64
