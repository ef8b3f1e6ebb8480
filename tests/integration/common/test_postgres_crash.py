"""Postgres is killed under a service: nothing acknowledged is lost, callers are told, what needs no database goes on."""

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from interlock.features.v1 import feature_job_pb2 as jobs
from interlock.features.v1 import feature_job_service_pb2 as job_pb
from interlock.registry.v1 import registry_service_pb2 as registry_pb

from tests.fakes.features_service import a_view, an_entity, running_features
from tests.fakes.monitor_registry import FakeRegistry
from tests.fakes.monitor_traffic import draw_traffic, hour_times, requests
from tests.fakes.offline_world import OfflineWorld, batch_view, csv_source, row
from tests.fakes.redis_server import redis_server
from tests.fakes.registry_postgres import Postgres, postgres_server
from tests.fakes.registry_service import Refusal, running_registry
from tests.integration.monitor.asking import label, record, send
from tests.integration.monitor.conftest import running_monitor
from tests.integration.monitor.test_analysis import trained_version
from tests.integration.monitor.test_kill_and_full_disk import count_in_windows, ids_in_log, labels_joined
from tests.integration.registry.test_crashes import audit, models

# Three services in turn, a server that really writes: on a busy machine that takes a while.
pytestmark = pytest.mark.timeout(180)
AWAY = (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
CSV = "carrier,when,delay_mean\nAA,2025-06-01 10:00Z,1\n"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """One that syncs what it commits, unlike that of other tests."""
    with postgres_server(durable=True) as server:
        yield server


async def test_registry(postgres: Postgres, tmp_path: Path) -> None:
    """Killed by a crash of its machine, and stopped as for an upgrade."""
    acknowledged: list[str] = []
    unavailable: list[Refusal] = []
    done = asyncio.Event()
    async with running_registry(tmp_path, await postgres.create_database("registry")) as registry:

        async def write() -> None:
            number = 0
            while not done.is_set():
                number += 1
                try:
                    await registry.api.CreateModel(registry_pb.CreateModelRequest(model_id=f"m-{number}"), timeout=30)
                    acknowledged.append(f"m-{number}")
                except grpc.aio.AioRpcError as error:
                    unavailable.append(Refusal.of(error))
                    await asyncio.sleep(0.02)

        writing = asyncio.ensure_future(write())
        for end in (postgres.crash, postgres.stop):
            await until(acknowledged, len(acknowledged) + 5)
            refused = len(unavailable)
            await asyncio.to_thread(end)
            await until(unavailable, refused + 1)
            await asyncio.to_thread(postgres.start)
        await until(acknowledged, len(acknowledged) + 5)
        done.set()
        await writing
        assert {(each.code, each.reason) for each in unavailable} == {AWAY}
        assert set(acknowledged) <= await models(registry)
        assert (await audit(registry)).intact


async def test_features(postgres: Postgres, tmp_path: Path) -> None:
    """Values need no database; a job that was at work goes on."""
    source = tmp_path / "delays.csv"
    source.write_text(CSV)
    url = await postgres.create_database("features")
    settings: dict[str, Any] = {"redis_read_deadline_s": 5, "redis_write_deadline_s": 60}
    settings |= {"features_database_url": url, "job_poll_s": 0.05, "job_lease_s": 3}
    acknowledged: list[str] = []
    async with redis_server() as redis:
        async with running_features(tmp_path / "state", redis_url=redis.url, **settings) as features:
            world = OfflineWorld(features, tmp_path)
            await features.apply(an_entity(), a_view(), batch_view(csv_source(source)))
            job = jobs.MaterializationJob(feature_view="featureViews/batch")
            create = job_pb.CreateMaterializationJobRequest(materialization_job=job)
            # What the job read waits to be written.
            redis.freeze()
            name = (await world.jobs.CreateMaterializationJob(create)).materialization_job.name
            await world.running(name)
            applying = asyncio.ensure_future(apply_until_it_breaks(world, acknowledged))
            await until(acknowledged, 3)
            await asyncio.to_thread(postgres.kill)
            await applying
            # It goes on, and has nobody to tell.
            redis.thaw()
            await world.push("carrier_delays", row("AA", 0, 0, {"delay_mean": 7}))
            assert await world.read("carrier_delays.delay_mean", "AA") == 7
            assert not await is_there(world.jobs.CreateMaterializationJob(create))
            await asyncio.to_thread(postgres.start)
            while not await is_there(features.names()):
                await asyncio.sleep(0.05)
            assert set(acknowledged) <= set(await features.names())
            done = await world.materialized(name)
            assert done.status.state == jobs.JOB_STATE_SUCCEEDED, done
            assert await world.read("batch.delay_mean", "AA") == 1.0
        async with running_features(tmp_path / "state", redis_url=redis.url, **settings) as features:
            assert set(acknowledged) <= set(await features.names())


async def test_monitor(postgres: Postgres, tmp_path: Path) -> None:
    """Predictions are taken all the time; labels that were taken are joined, and windows count each prediction once."""
    registry = FakeRegistry([trained_version()])
    settings = {"monitor_database_url": await postgres.create_database("monitor")}
    quick: dict[str, Any] = {"monitor_window_interval_s": 0.1, "monitor_label_join_interval_s": 0.05, **settings}
    traffic = [draw_traffic(seed, hour_times(300, 0)) for seed in range(3)]
    labelled: list[bytes] = []
    async with running_monitor(tmp_path, registry, **quick) as monitor:
        assert await record(monitor, requests(traffic[0])) == 300

        async def label_until_it_breaks() -> None:
            for prediction_id in traffic[0].ids:
                if not await is_there(send(monitor, label(prediction_id, 1))):
                    return
                labelled.append(prediction_id)

        labelling = asyncio.ensure_future(label_until_it_breaks())
        await until(labelled, 10)
        await asyncio.to_thread(postgres.kill)
        await labelling
        assert 10 <= len(labelled) < 300
        assert await record(monitor, requests(traffic[1])) == 300
        assert len(await ids_in_log(monitor)) == 600
        assert not await is_there(send(monitor, label(traffic[1].ids[0], 1)))
        await asyncio.to_thread(postgres.start)
        assert await record(monitor, requests(traffic[2])) == 300
        assert await count_in_windows(monitor, 900) == 900
        while not await is_there(send(monitor, label(traffic[2].ids[0], 1))):
            await asyncio.sleep(0.05)
        await labels_joined(monitor, len(labelled) + 1)
    async with running_monitor(tmp_path, registry, **settings) as monitor:
        assert len(await ids_in_log(monitor)) == 900
        assert await count_in_windows(monitor, 900) == 900
        await labels_joined(monitor, len(labelled) + 1)


async def apply_until_it_breaks(world: OfflineWorld, acknowledged: list[str]) -> None:
    """Apply one view after the other, and note the names of those that were acknowledged."""
    while await is_there(world.features.apply(a_view(f"view_{len(acknowledged)}"))):
        acknowledged.append(f"featureViews/view_{len(acknowledged)}")


async def is_there(call: Awaitable[object]) -> bool:
    """Return whether a call is answered; refused it may be only because the database is away."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        refusal = Refusal.of(error)
        assert (refusal.code, refusal.reason) == AWAY, refusal
        return False
    return True


async def until(found: Sequence[object], count: int) -> None:
    """Return when a list has so many; the test's time-out is the limit."""
    while len(found) < count:
        await asyncio.sleep(0.01)
