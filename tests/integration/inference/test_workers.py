"""Model processes: how many, how large their batches, and what becomes of those that freeze or grow."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from interlock.registry.v1.deployment_pb2 import MODEL_PLACEMENT_INLINE

from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running, Start, worker_pids
from tests.integration.inference.stream import ItemFailed, open_stream, row


async def test_batches_of_any_size_come_back_right_side_by_side(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=8192)
    await running.ready("oracle/1")
    async with open_stream(running.own, "oracle", "1") as stream:
        counts = [1, 5_000, 3, 1_023, 1_024, 1_025, 8_192, 2, 20_000, 700]
        wanted = [row(*range(count)) + float(count) for count in counts]
        answers = await stream.infer(*wanted, timeout_s=20)
    for each, answer in zip(wanted, answers, strict=True):
        assert answer == (each * 2 + 1).tobytes()


async def test_a_frozen_process_is_ended_and_replaced(
    start: Start, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    async with registry.listening() as address, start(address, inference_worker_hung_s=2.0) as running:
        put_oracle()
        await running.ready("oracle/1")
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGSTOP)
        state = await _until(
            running, "oracle/1", lambda state: state.HasField("last_exit") and state.ready_instances == 1
        )
        assert state.last_exit.signal == signal.SIGKILL
        assert state.last_exit.memory_bytes > 0
        assert worker_pids() != [pid]
        async with open_stream(running.own, "oracle", "1") as stream:
            assert await stream.infer(row(3)) == [(row(3) * 2 + 1).tobytes()]


async def test_a_process_that_starts_under_load_runs_as_any_other(
    start: Start, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    async with registry.listening() as address, start(address) as running:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        try:
            put_oracle()
            await running.ready("oracle/1")
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        (pid,) = worker_pids()
        assert {os.sched_getscheduler(int(task)) for task in os.listdir(f"/proc/{pid}/task")} == {os.SCHED_OTHER}  # noqa: PTH208


async def test_two_processes_serve_one_version_and_their_number_changes_live(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=1, instances=2)
    await _until(running, "oracle/1", lambda state: state.ready_instances == 2)
    first, second = worker_pids()
    os.kill(first, signal.SIGKILL)
    async with open_stream(running.own, "oracle", "1") as stream:
        for value in range(30):  # only what the dead one held fails; the version never stops to answer
            (answer,) = await stream.infer(row(value))
            if isinstance(answer, ItemFailed):
                assert answer.reason == "WORKER_DIED"
            else:
                assert answer == (row(value) * 2 + 1).tobytes()
        await _until(running, "oracle/1", lambda state: state.HasField("last_exit") and state.ready_instances == 2)
        assert second in worker_pids()
        registry.deploy("oracle-1", "oracle/1", max_batch_size=1, instances=1)
        await _until(running, "oracle/1", lambda state: state.ready_instances == 1)
        assert await stream.infer(row(7)) == [(row(7) * 2 + 1).tobytes()]
    async with asyncio.timeout(10):
        while len(worker_pids()) != 1:
            await asyncio.sleep(0.01)


async def test_a_process_that_grows_is_replaced_and_nobody_notices(start: Start, registry: FakeRegistry) -> None:
    registry.put_version("wide/1", {"model.onnx": models.wide()}, [spec("x", "FP32", -1)], [spec("y", "FP32", 1)])
    registry.deploy("wide", "wide/1", max_batch_size=1)
    async with registry.listening() as address, start(address, inference_worker_hung_s=2.0) as running:
        await running.ready("wide/1")
        (pid,) = worker_pids()
        (memory,) = (await running.statistics("wide")).memory_usage
        registry.deploy("wide", "wide/1", max_batch_size=1, memory_limit_bytes=memory.byte_size + (8 << 20))
        wide = np.arange(6 << 20, dtype="<f4").reshape(1, -1)
        request = oip.ModelInferRequest(model_name="wide", raw_input_contents=[wide.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=wide.shape)
        narrow = oip.ModelInferRequest(model_name="wide", raw_input_contents=[wide[:, :1].tobytes()])
        narrow.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        response = await running.infer(request, limit_s=20)
        assert response.raw_output_contents[0] == np.float32(6 << 20).tobytes()
        async with asyncio.timeout(30):
            while pid in worker_pids():
                answer = await running.infer(narrow)
                assert answer.raw_output_contents[0] == np.ones((1, 1), "<f4").tobytes()
        assert not (await running.ready("wide/1")).HasField("last_exit")


async def test_a_batch_without_memory_for_it_is_run_in_parts(running: Running, registry: FakeRegistry) -> None:
    registry.put_version("hungry/1", {"model.onnx": models.hungry()}, [spec("x", "INT64", 1)], [spec("y", "INT64", 1)])
    registry.deploy("hungry", "hungry/1", max_batch_size=16)
    await running.ready("hungry/1")
    pids = worker_pids()

    def request(*sizes: int) -> oip.ModelInferRequest:
        made = oip.ModelInferRequest(model_name="hungry", raw_input_contents=[np.array(sizes, "<i8").tobytes()])
        made.inputs.add(name="x", datatype="INT64", shape=[len(sizes), 1])
        return made

    response = await running.infer(request(5, 6, 7))
    assert np.frombuffer(response.raw_output_contents[0], "<i8").tolist() == [5, 6, 7]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.infer(request(11))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ran out of memory" in str(refused.value.details())
    assert worker_pids() == pids


async def test_a_small_trusted_model_runs_in_the_front_end_and_moves_out_live(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.domain.instance.INLINE_LIMIT_S", 1.0)  # this machine may be busy
    put_oracle(max_batch_size=8, placement=MODEL_PLACEMENT_INLINE)
    await running.ready("oracle/1")
    assert worker_pids() == []
    async with open_stream(running.own, "oracle", "1") as stream:
        wanted = [row(*range(count)) + float(count) for count in (1, 3, 20, 8)]
        assert await stream.infer(*wanted) == [(each * 2 + 1).tobytes() for each in wanted]
        registry.deploy("oracle-1", "oracle/1", max_batch_size=8)
        async with asyncio.timeout(30):
            while not worker_pids():
                assert await stream.infer(row(5)) == [(row(5) * 2 + 1).tobytes()]
        monkeypatch.setattr("services.inference.domain.instance.INLINE_LIMIT_S", 0.0)  # no model is as fast as that
        (pid,) = worker_pids()
        registry.deploy("oracle-1", "oracle/1", max_batch_size=8, placement=MODEL_PLACEMENT_INLINE)
        async with asyncio.timeout(30):
            while worker_pids() in ([], [pid]) or len(worker_pids()) > 1:
                assert await stream.infer(row(6)) == [(row(6) * 2 + 1).tobytes()]


async def _until(running: Running, version: str, condition: Callable[[Any], bool], limit_s: float = 45) -> Any:
    """Wait until what the replica says of a version is so."""
    async with asyncio.timeout(limit_s):
        while (state := await running.state(version)) is None or not condition(state):
            await asyncio.sleep(0.02)
    return state
