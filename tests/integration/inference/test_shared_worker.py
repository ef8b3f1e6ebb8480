"""Small versions in one process: what they cost each other, and what they do not."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.registry.v1.deployment_pb2 import MODEL_PLACEMENT_SHARED

from services.inference.adapters.shared_process import SharedProcesses, SharedWorker
from services.inference.adapters.worker_process import WorkerLimits
from services.inference.domain.frame import Failure, FrameTensor, RunFailure
from services.inference.domain.item import BatchAnswer
from services.inference.domain.ports import LoadFailure, ModelBundle
from services.inference.domain.tensor import Tensor, TensorSpec
from services.inference.domain.version import BatchingPolicy, FileSpec, GoldenRow, VersionKey, VersionSpec
from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running, worker_pids
from tests.integration.inference.stream import ItemFailed, open_stream, row

_ENDLESS = 10**15


@pytest.fixture(autouse=True)
def _slow_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.domain.instance.SHARED_LIMIT_S", 60.0)  # this machine may be busy


@pytest.fixture
def share(put_oracle: Callable[..., None]) -> Callable[..., None]:
    def put(*versions: str) -> None:
        for version in versions:
            put_oracle(version, placement=MODEL_PLACEMENT_SHARED)

    return put


async def test_versions_come_and_go_in_one_process_while_others_serve(
    running: Running, registry: FakeRegistry, share: Callable[..., None]
) -> None:
    share("a/1", "b/1")
    states = [await running.ready(version) for version in ("a/1", "b/1")]
    (pid,) = worker_pids()
    assert [list(state.worker_pids) for state in states] == [[pid], [pid]]
    process = psutil.Process(pid)
    async with _caller(running, "a") as a, _caller(running, "b") as b:
        await asyncio.gather(a.more(20), b.more(20))
        assert set(b.outcomes) == {"OK"}
        await b.stop()
        weights = np.ones((1, 3_000_000), "<f4")
        registry.put_version(
            "heavy/1", {"model.onnx": models.heavy(weights)}, [spec("x", "FP32", 1)], [spec("y", "FP32", 1)]
        )
        registry.deploy("heavy-1", "heavy/1", max_batch_size=1, placement=MODEL_PLACEMENT_SHARED)
        await running.ready("heavy/1")
        loaded = process.memory_info().rss
        registry.remove("deployments/heavy-1", "deployments/b-1")
        await asyncio.gather(running.wait_gone("heavy/1"), running.wait_gone("b/1"), a.more(20))
        async with asyncio.timeout(20):
            while process.memory_info().rss > loaded - weights.nbytes // 2:
                await asyncio.sleep(0.02)
        share("c/1")
        assert list((await running.ready("c/1")).worker_pids) == [pid]
        registry.deploy("a-1", "a/1")
        async with asyncio.timeout(30):
            while list((await running.ready("a/1")).worker_pids) == [pid]:
                await a.more(1)
        await a.more(20)
        assert set(a.outcomes) == {"OK"}
    registry.remove("deployments/a-1", "deployments/c-1")
    async with asyncio.timeout(20):
        while worker_pids():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crashed"])
async def test_a_dead_process_costs_its_versions_only_unavailable_and_all_come_back(
    running: Running, share: Callable[..., None], number: signal.Signals
) -> None:
    versions = ("a/1", "b/1", "c/1")
    share(*versions)
    for version in versions:
        await running.ready(version)
    (pid,) = worker_pids()
    async with _caller(running, "a") as a, _caller(running, "b") as b, _caller(running, "c") as c:
        callers = (a, b, c)
        await asyncio.gather(*(each.more(30) for each in callers))
        os.kill(pid, number)
        for version in versions:
            await running.wait_state(version, pb.LOAD_STATE_READY)
        await asyncio.gather(*(each.more(30) for each in callers))
    for each in callers:
        assert set(each.outcomes) <= {"OK", "WORKER_DIED", "VERSION_NOT_READY"}
    (successor,) = worker_pids()
    for version in versions:
        state = await running.ready(version)
        assert list(state.worker_pids) == [successor]
        assert (state.last_exit.pid, state.last_exit.signal) == (pid, number)


async def test_a_load_that_does_not_end_holds_nobody_up(folder: Path) -> None:
    processes = SharedProcesses(WorkerLimits())
    serving = await _looper(processes, folder, "a")
    loading = asyncio.ensure_future(_looper(processes, folder, "b", golden=_ENDLESS))
    async with asyncio.timeout(20):
        while not serving._place.heartbeat.at_work()[1]:
            await asyncio.sleep(0.01)
    assert await _answer(serving, 3) == _number(3)
    loading.cancel()  # as when it is not wanted any more: its run is stopped, or nobody could be loaded after it
    await asyncio.wait([loading])
    other = await _looper(processes, folder, "c")
    assert other.pid == serving.pid
    assert await _answer(other, 4) == _number(4)
    await asyncio.gather(serving.close(), other.close())


async def test_the_version_that_was_at_work_is_to_blame_and_serves_alone_the_second_time(folder: Path) -> None:
    processes = SharedProcesses(WorkerLimits())
    for turn in (1, 2):
        innocent, guilty = await _looper(processes, folder, "a"), await _looper(processes, folder, "b")
        assert await _answer(innocent, 3) == _number(3)
        _run(guilty, _ENDLESS)
        async with asyncio.timeout(20):
            while innocent._place.heartbeat.at_work()[0] != guilty._place.number:
                await asyncio.sleep(0.01)
        _run(innocent, 1)
        innocent.kill()  # it waits for the other's batch: it goes elsewhere, and nobody is ended
        await innocent.outgrown()
        assert not guilty._process.ended.done()
        guilty.kill()
        exits = [await each.ended() for each in (innocent, guilty)]
        assert [how.signal for how in exits] == [signal.SIGKILL] * 2
        assert [how.innocent for how in exits] == [True, False]
        await asyncio.gather(innocent.close(), guilty.close())
        assert processes.welcomes(VersionKey("a", "1"))
        assert processes.welcomes(VersionKey("b", "1")) is (turn == 1)


async def test_batches_are_stopped_where_they_run_and_where_they_wait(folder: Path) -> None:
    processes = SharedProcesses(WorkerLimits())
    running, waiting = await _looper(processes, folder, "a"), await _looper(processes, folder, "b")
    stopped = asyncio.ensure_future(_result(running, _ENDLESS))
    async with asyncio.timeout(20):
        while not running._place.heartbeat.at_work()[0]:
            await asyncio.sleep(0.01)
    never_run = asyncio.ensure_future(_result(waiting, _ENDLESS))
    await asyncio.sleep(0)
    waiting.interrupt(_ENDLESS)
    async with asyncio.timeout(20):
        while not stopped.done():  # asked too early, it is asked again by those who wait for it
            running.interrupt(_ENDLESS)
            await asyncio.sleep(0.01)
    assert await stopped == await never_run == RunFailure(Failure.INTERRUPTED, "")
    assert await _answer(waiting, 3) == _number(3)
    await asyncio.gather(running.close(), waiting.close())


async def test_a_process_that_grows_is_left_and_one_that_freezes_is_ended(folder: Path) -> None:
    processes = SharedProcesses(WorkerLimits(hung_s=2.0))
    both = [await _looper(processes, folder, "a"), await _looper(processes, folder, "b")]
    for each in both:
        each._memory_at_load = 0
        each.limit_memory(1)
    await asyncio.gather(*(each.outgrown() for each in both))
    os.kill(both[0].pid, signal.SIGSTOP)
    for each in both:
        how = await each.ended()
        assert how.signal == signal.SIGKILL
        assert how.cause == "gave no sign of life for 2 s and was ended"
        assert how.memory_bytes > 0
    await asyncio.gather(*(each.close() for each in both))


async def test_a_load_that_is_given_up_makes_the_others_move_and_fails_none(folder: Path) -> None:
    processes = SharedProcesses(WorkerLimits())
    serving = await _looper(processes, folder, "a")
    with pytest.raises(LoadFailure, match="not ready within"):
        await _looper(processes, folder, "b", golden=_ENDLESS, timeout_s=0.2)
    await serving.outgrown()
    successor = await _looper(processes, folder, "a")
    assert successor.pid != serving.pid
    assert not serving._process.ended.done()
    await asyncio.gather(serving.close(), successor.close())


class _Caller:
    """Sends one row after the other and checks the answers."""

    def __init__(self, stream: Any) -> None:
        self.outcomes: list[str] = []
        self._stream = stream
        self._task = asyncio.ensure_future(self._call())

    async def more(self, count: int) -> None:
        """Wait for so many more right answers."""
        wanted = self.outcomes.count("OK") + count
        async with asyncio.timeout(45):
            while self.outcomes.count("OK") < wanted:
                if self._task.done():
                    self._task.result()
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _call(self) -> None:
        value = 0.0
        while True:
            value += 1.0
            (answer,) = await self._stream.infer(row(value), timeout_s=20)
            if isinstance(answer, ItemFailed):
                self.outcomes.append(answer.reason)
                await asyncio.sleep(0.01)
            else:
                assert answer == (row(value) * 2 + 1).tobytes()
                self.outcomes.append("OK")


@asynccontextmanager
async def _caller(running: Running, model: str) -> AsyncIterator[_Caller]:
    async with open_stream(running.own, model, "1") as stream:
        caller = _Caller(stream)
        try:
            yield caller
        finally:
            await caller.stop()


async def _looper(
    processes: SharedProcesses, folder: Path, model: str, golden: int = 0, timeout_s: float = 60.0
) -> SharedWorker:
    """Load a model into a process that it shares; `golden` and `timeout_s` are for a load that takes long."""
    content = models.looper()
    (folder / "model.onnx").write_bytes(content)
    file = FileSpec("model.onnx", hashlib.sha256(content).hexdigest(), len(content))
    known = Tensor("x", "INT64", (1, 1), _number(golden))
    version = VersionSpec(
        VersionKey(model, "1"),
        (file,),
        (TensorSpec("x", "INT64", (-1, 1)),),
        (TensorSpec("y", "INT64", (-1, 1)),),
        (GoldenRow((known,), (replace(known, name="y"),), 0.0, 0.0),),
    )
    worker = await processes.start(version, lambda *_: None)
    assert isinstance(worker, SharedWorker)
    worker._limits = replace(worker._limits, load_timeout_s=timeout_s)
    try:
        await worker.load(version, ModelBundle(folder, {"model.onnx": folder / "model.onnx"}), BatchingPolicy(1))
    except (LoadFailure, asyncio.CancelledError):
        await worker.close()
        raise
    return worker


async def _answer(worker: SharedWorker, turns: int) -> bytes:
    result = await _result(worker, turns)
    assert isinstance(result, BatchAnswer)
    return bytes(result.outputs[0].data)


async def _result(worker: SharedWorker, turns: int) -> BatchAnswer | RunFailure:
    answered: asyncio.Future[BatchAnswer | RunFailure] = asyncio.get_running_loop().create_future()
    worker._on_result = lambda _, result: answered.set_result(result)
    _run(worker, turns)
    async with asyncio.timeout(30):
        return await answered


def _run(worker: SharedWorker, turns: int) -> None:
    worker.run(turns, [0], [FrameTensor("INT64", (1, 1), [_number(turns)])], "")


def _number(value: int) -> bytes:
    return np.array([value], "<i8").tobytes()
