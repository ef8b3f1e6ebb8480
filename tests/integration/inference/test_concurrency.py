"""Thousands of requests at once, many of them cancelled: nobody gets somebody else's answer, nothing is left over."""

import asyncio
import random
from collections.abc import Callable

import grpc
import numpy as np
from inference import grpc_service_pb2 as oip
from interlock.inference.v1 import inference_service_pb2 as pb

from tests.integration.inference.conftest import Running
from tests.integration.inference.stream import ItemFailed, open_stream, row


async def test_thousands_of_items_with_cancels_are_never_mixed_up(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=64)
    await running.ready("oracle/1")
    picks = random.Random(7)
    outcomes = {"right": 0, "cancelled": 0, "refused": 0}

    async def one_stream(number: int) -> None:
        async with open_stream(running.own, "oracle", "1") as stream:
            for turn in range(20):
                values = [float(number * 100_000 + turn * 100 + place) for place in range(25)]
                rows = [row(*([value] * picks.randint(1, 3))) for value in values]
                batch, ids = stream.put(rows)
                futures = {ident: stream.waiting[ident] for ident in ids}
                await stream.send(batch)
                gone = picks.sample(ids, 5)
                await stream.call.write(pb.CoalescedInferRequest(cancel=pb.InferCancel(ids=gone)))
                for ident, sent in zip(ids, rows, strict=True):
                    if ident in gone:
                        futures[ident].cancel()
                        outcomes["cancelled"] += 1
                        continue
                    try:
                        assert await asyncio.wait_for(futures[ident], 10) == (sent * 2 + 1).tobytes()
                        outcomes["right"] += 1
                    except ItemFailed as failed:
                        assert failed.reason == "QUEUE_FULL"
                        outcomes["refused"] += 1

    async def one_caller(number: int) -> None:
        for turn in range(25):
            value = np.array([[number * 1000.0 + turn, -1.0]], "<f4")
            request = oip.ModelInferRequest(model_name="oracle", id=str(turn), raw_input_contents=[value.tobytes()])
            request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
            call = asyncio.ensure_future(running.infer(request))
            if picks.random() < 0.2:
                await asyncio.sleep(picks.random() * 0.005)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                outcomes["cancelled"] += 1
                continue
            try:
                response = await call
                assert response.raw_output_contents[0] == (value * 2 + 1).tobytes()
                outcomes["right"] += 1
            except grpc.aio.AioRpcError as refused:
                assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                outcomes["refused"] += 1

    await asyncio.gather(*(one_stream(number) for number in range(6)), *(one_caller(number) for number in range(20)))

    assert outcomes["right"] > 2_000, outcomes
    assert sum(outcomes.values()) == 6 * 20 * 25 + 20 * 25
    state = await running.state("oracle/1")
    assert state is not None
    assert state.queued_rows == 0
    statistics = await running.statistics("oracle")
    assert statistics.inference_count > statistics.execution_count


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
