"""Drain, registry down, restart from the disk, unload, and a parent that is killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from inference import model_config_pb2 as config_pb
from interlock.inference.v1 import inference_service_pb2 as pb

from tests.fakes.inference_registry import FakeRegistry
from tests.fakes.ports import free_offset
from tests.integration.inference.conftest import Running, worker_pids
from tests.integration.inference.stream import ItemFailed, StreamClient, open_stream, row

ROOT = Path(__file__).parents[3]


@pytest.mark.rpc("interlock.inference.v1.InferenceService/WatchReplica", "happy")
@pytest.mark.rpc("interlock.inference.v1.InferenceService/WatchReplica", "error")
async def test_a_drain_answers_what_it_accepted_and_ends_streams_unavailable(
    start: Callable[..., Any], registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_delay_ms=100)
    async with registry.listening() as address, start(address) as running:
        await running.ready("oracle/1")
        watch = running.own.WatchReplica(pb.WatchReplicaRequest())
        first = await watch.read()
        assert (first.pool, first.draining, first.epoch) == ("default", False, registry.epoch)
        async with (
            open_stream(running.own, "oracle", "1") as over_grpc,
            open_stream(running.own, "oracle", "1", "frames") as as_frames,
        ):
            streams = (over_grpc, as_frames)
            waiting = []
            for stream in streams:
                batch, ids = stream.put([row(value) for value in range(50)])
                waiting += [stream.waiting[ident] for ident in ids]
                await stream.send(batch)
            draining = asyncio.ensure_future(running.serving.runtime.drain())
            assert all(isinstance(answer, bytes) for answer in await asyncio.gather(*waiting))
            for stream in streams:
                await asyncio.wait_for(stream.draining.wait(), 5)
                assert await stream.call.code() is grpc.StatusCode.UNAVAILABLE
            await draining
        last = [message async for message in until_end(watch)][-1]
        assert last.draining
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE
        late = running.own.CoalescedInfer(
            iter([pb.CoalescedInferRequest(open=pb.InferOpen(model="oracle", version="1"))])
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        while not registry.draining_reports:
            await asyncio.sleep(0.01)
    assert worker_pids() == []


async def until_end(call: Any) -> Any:
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            yield message
    except grpc.aio.AioRpcError:
        return


async def test_it_serves_without_the_registry_also_after_a_restart(
    start: Callable[..., Any], registry: FakeRegistry, put_oracle: Callable[..., None], folder: Path
) -> None:
    put_oracle()
    async with registry.listening() as address, start(address) as running:
        await running.ready("oracle/1")
        while not await asyncio.to_thread(lambda: list(folder.glob("inference/*.snapshot"))):
            await asyncio.sleep(0.01)
    downloads = len(registry.downloads)
    async with start(address) as running:  # nobody listens there any more
        async with open_stream(running.own, "oracle", "1") as stream:
            assert await stream.infer(row(5)) == [(row(5) * 2 + 1).tobytes()]
        assert running.serving.runtime.health.ready
    assert len(registry.downloads) == downloads


async def test_without_registry_and_snapshot_it_says_so_and_waits(
    start: Callable[..., Any], registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    async with registry.listening() as address:
        pass
    async with start(address, inference_start_wait_s=0.1) as running:
        assert not running.serving.runtime.health.ready
        async with registry.listening(address):
            await running.ready("oracle/1")
            assert running.serving.runtime.health.ready


async def test_a_version_that_is_not_deployed_any_more_ends_its_streams_and_frees_its_process(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    put_oracle("oracle/2")
    await running.ready("oracle/1")
    await running.ready("oracle/2")
    async with open_stream(running.own, "oracle", "1") as first, open_stream(running.own, "oracle", "2") as second:
        registry.remove("deployments/oracle-1")
        assert await asyncio.wait_for(first.call.code(), 5) is grpc.StatusCode.UNAVAILABLE
        await running.wait_gone("oracle/1")
        assert await second.infer(row(2)) == [(row(2) * 2 + 1).tobytes()]
    assert len(worker_pids()) == 1
    assert "model/oracle/1" not in running.serving.runtime.health.serving


async def test_a_policy_changes_under_load_in_the_same_process_and_nothing_is_lost(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle(max_batch_size=2)
    await running.ready("oracle/1")
    pids = worker_pids()
    policies: list[dict[str, Any]] = [
        {"max_batch_size": 32, "max_delay_ms": 7},
        {"max_batch_size": 16, "max_delay_ms": 1, "batch_sizes": [4, 16]},
        {"max_batch_size": 3, "max_delay_ms": 3, "max_queue_rows": 5},
        {"max_batch_size": 64, "max_delay_ms": 2, "batch_sizes": [8, 64]},
    ]
    done = asyncio.Event()

    async def load(stream: StreamClient, number: int) -> int:
        """Send without a pause; every item is answered right or refused because the queue is full."""
        refused = 0
        while not done.is_set():
            wanted = [row(*range(count)) + float(number) for count in (1, 2, number + 3)]
            for each, answer in zip(wanted, await stream.infer(*wanted, timeout_s=20), strict=True):
                if isinstance(answer, ItemFailed) and answer.reason == "QUEUE_FULL":
                    refused += 1
                else:
                    assert answer == (each * 2 + 1).tobytes()
        return refused

    async with (
        asyncio.timeout(50),
        open_stream(running.own, "oracle", "1", "frames") as stream,
        asyncio.TaskGroup() as group,
    ):
        loads = [group.create_task(load(stream, number)) for number in range(8)]
        for policy in policies:
            registry.deploy("oracle-1", "oracle/1", **policy)
            while not _is_by(await _config(running), policy):
                await asyncio.sleep(0.01)
            count = (await running.statistics("oracle")).inference_count
            while (await running.statistics("oracle")).inference_count < count + 200:
                await asyncio.sleep(0.01)
        done.set()
    assert sum(each.result() for each in loads), "more than five rows were sent at once"
    assert worker_pids() == pids


async def _config(running: Running) -> Any:
    return (await running.oip.ModelConfig(config_pb.ModelConfigRequest(name="oracle"))).config


def _is_by(config: config_pb.ModelConfig, policy: dict[str, Any]) -> bool:
    return config.max_batch_size == policy[
        "max_batch_size"
    ] and config.dynamic_batching == config_pb.ModelDynamicBatching(
        max_queue_delay_microseconds=policy["max_delay_ms"] * 1_000,
        preferred_batch_size=policy.get("batch_sizes", []),
        default_queue_policy=config_pb.ModelQueuePolicy(max_queue_size=policy.get("max_queue_rows", 65_536)),
    )


async def test_no_worker_outlives_its_parent(
    registry: FakeRegistry, put_oracle: Callable[..., None], folder: Path
) -> None:
    put_oracle()
    async with registry.listening() as address:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            "INTERLOCK_STATE_DIR": str(folder),
            "INTERLOCK_PORT_OFFSET": str(free_offset()),
            "INTERLOCK_REGISTRY_ADDRESS": address,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.inference", env=environment, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(30):
                while "oracle-1" not in registry.reports or registry.reports["oracle-1"].state != 3:
                    await asyncio.sleep(0.05)
            (worker,) = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            async with asyncio.timeout(5):
                while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
                    await asyncio.sleep(0.02)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def test_the_worker_imports_no_transport() -> None:
    code = "import sys, services.inference.worker.loop; print([m for m in ('grpc', 'google.rpc', 'services.common.channels', 'services.common.errors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
