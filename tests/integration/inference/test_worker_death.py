"""A model process that dies, hangs or chokes on one request."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from interlock.inference.v1 import inference_service_pb2 as pb

from services.inference.adapters import worker_process
from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running, worker_pids
from tests.integration.inference.stream import ItemFailed, open_stream, row

# A model process that SIGUSR1 ends with words and an exit code of its own.
TALKER = """
import os, signal, sys
def end(*_):
    os.write(2, b"the disk is made of cheese\\n")
    os._exit(7)
signal.signal(signal.SIGUSR1, end)
from services.inference.worker.__main__ import main
main()
"""


async def test_a_killed_worker_costs_only_unavailable_and_is_replaced(
    running: Running, put_oracle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = worker_process._command
    monkeypatch.setattr(worker_process, "_command", lambda *given: [sys.executable, "-c", TALKER, *plain(*given)[3:]])
    put_oracle()
    await running.ready("oracle/1")
    (pid,) = worker_pids()
    stop = asyncio.Event()
    outcomes: list[str] = []

    async def load(number: int) -> None:
        async with open_stream(running.own, "oracle", "1") as stream:
            value = float(number)
            while not stop.is_set():
                value += 10
                (answer,) = await asyncio.wait_for(stream.infer(row(value)), 6)
                if isinstance(answer, ItemFailed):
                    outcomes.append(answer.reason)
                    await asyncio.sleep(0.01)
                else:
                    assert answer == (row(value) * 2 + 1).tobytes()
                    outcomes.append("OK")

    callers = [asyncio.ensure_future(load(number)) for number in range(8)]
    while len(outcomes) < 200:
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    state = await running.wait_state("oracle/1", pb.LOAD_STATE_LOADING)
    assert "signal 9 (SIGKILL)" in state.message
    assert running.serving.runtime.health.serving["model/oracle/1"] is False
    state = await running.wait_state("oracle/1", pb.LOAD_STATE_READY, limit_s=10)
    how = state.last_exit
    assert (how.pid, how.signal, how.exit_code) == (pid, signal.SIGKILL, 0)
    assert how.memory_bytes > 0
    before = outcomes.count("OK")
    while outcomes.count("OK") < before + 100:
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*callers)
    assert set(outcomes) <= {"OK", "WORKER_DIED", "VERSION_NOT_READY"}
    (successor,) = worker_pids()
    assert successor != pid
    os.kill(successor, signal.SIGUSR1)
    state = await running.wait_state("oracle/1", pb.LOAD_STATE_LOADING)
    assert "ended with exit code 7" in state.message
    how = state.last_exit
    assert (how.pid, how.signal, how.exit_code) == (successor, 0, 7)
    assert how.log_lines[-1] == "the disk is made of cheese"


async def test_one_poisoned_request_fails_alone(running: Running, registry: FakeRegistry) -> None:
    registry.put_version(
        "picky/1", {"model.onnx": models.picky()}, [spec("index", "INT64", 1)], [spec("value", "FP32", 1)]
    )
    registry.deploy("picky", "picky/1", max_batch_size=16)
    await running.ready("picky/1")
    indexes = [0, 1, 2, 99, 1, 0, 2, 1]
    stream = running.own.CoalescedInfer()
    await stream.write(pb.CoalescedInferRequest(open=pb.InferOpen(model="picky", version="1")))
    await stream.read()
    batch = pb.InferBatch(ids=range(8), rows=[1] * 8, timeouts_us=[5_000_000] * 8)
    batch.tensors.add(name="index", data_type=9, shape=[8, 1], data=np.array(indexes, "<i8").tobytes())
    await stream.write(pb.CoalescedInferRequest(batch=batch))
    answers: dict[int, float] = {}
    errors: dict[int, str] = {}
    while len(answers) + len(errors) < len(indexes):
        results = (await stream.read()).results
        values = iter(np.frombuffer(results.tensors[0].data, "<f4").tolist() if results.tensors else [])
        for failure in results.failures:
            errors |= dict.fromkeys((failure.id, *failure.further_ids), failure.error.message)
        answers |= {ident: next(values) for ident in results.ids}
    assert answers == {ident: [10.0, 20.0, 30.0][index] for ident, index in enumerate(indexes) if index != 99}
    assert list(errors) == [3]
    assert errors[3].startswith("the model refused these values")
    assert "/" not in errors[3]
    stream.cancel()


async def test_a_model_that_swallows_rows_is_never_believed(running: Running, registry: FakeRegistry) -> None:
    registry.put_version(
        "swallower/1", {"model.onnx": models.swallower()}, [spec("x", "FP32", 2)], [spec("y", "FP32", 2)]
    )
    registry.deploy("swallower", "swallower/1")
    await running.ready("swallower/1")
    async with open_stream(running.own, "swallower", "1") as stream:
        answers = await stream.infer(row(1, 2), row(3, 4))
    assert [answer.reason for answer in answers] == ["INVALID_MODEL_OUTPUT"] * 2
    assert "want 2 rows, got 1" in str(answers[0])


async def test_an_endless_run_is_stopped_at_the_deadline_and_the_worker_lives_on(
    running: Running, registry: FakeRegistry
) -> None:
    registry.put_version("looper/1", {"model.onnx": models.looper()}, [spec("x", "INT64", 1)], [spec("y", "INT64", 1)])
    registry.deploy("looper", "looper/1")
    await running.ready("looper/1")
    pids = worker_pids()

    def request(turns: int) -> oip.ModelInferRequest:
        made = oip.ModelInferRequest(model_name="looper", raw_input_contents=[np.array([turns], "<i8").tobytes()])
        made.inputs.add(name="x", datatype="INT64", shape=[1, 1])
        return made

    with pytest.raises(grpc.aio.AioRpcError) as late:
        await running.infer(request(10**15), limit_s=0.5)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    response = await running.infer(request(5), limit_s=5)
    assert response.raw_output_contents[0] == np.array([5], "<i8").tobytes()
    assert worker_pids() == pids
