"""Many writers at once, restarts, and two processes that start together."""

import asyncio
from pathlib import Path

import grpc
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from interlock.registry.v1 import control_service_pb2 as control_pb
from interlock.registry.v1 import registry_service_pb2 as pb
from sqlalchemy import Connection

from services.common.database import Database
from services.common.migration import migrate
from services.registry.adapters.migrations import MIGRATIONS
from services.registry.adapters.table import METADATA
from tests.fakes.registry_service import Registry, new_id, running_registry

WRITERS = 50


async def verify(registry: Registry) -> pb.VerifyAuditLogResponse:
    return await registry.api.VerifyAuditLog(pb.VerifyAuditLogRequest(), timeout=20)


async def test_fifty_writers_get_no_error(registry: Registry) -> None:
    await registry.create_model("shared")

    async def write(number: int) -> None:
        for step in range(4):
            await registry.api.CreateModel(pb.CreateModelRequest(model_id=f"m-{number}-{step}"), timeout=30)
            await registry.report(replica=f"r-{number}", lease_duration=None)

    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    listed = await registry.api.ListModels(pb.ListModelsRequest(page_size=1_000))
    assert len(listed.models) == WRITERS * 4 + 1
    assert len({model.etag for model in listed.models}) == WRITERS * 4 + 1
    found = await verify(registry)
    assert (found.intact, found.entry_count) == (True, 3 + WRITERS * 4 + 1)


async def test_two_processes_write_at_once(database_url: str, tmp_path: Path) -> None:
    """Both start at the same moment on an empty database, and both write: epochs stay in the order of commits."""
    async with asyncio.TaskGroup() as group:
        running = [running_registry(tmp_path / name, database_url) for name in ("a", "b")]
        starts = [group.create_task(each.__aenter__()) for each in running]
    registries = [start.result() for start in starts]
    try:
        await registries[0].create_model("shared")
        await registries[0].create_version("shared")
        await registries[1].upload()

        async def write(registry: Registry, count: int) -> None:
            for _ in range(count):
                await registry.create_version("shared")

        stream = registries[0].control.Watch(control_pb.WatchRequest(environment="production"))
        await stream.read()
        await asyncio.gather(*(write(registry, 5) for registry in registries for _ in range(4)))
        listed = await registries[1].api.ListModelVersions(
            pb.ListModelVersionsRequest(parent="models/shared", page_size=1_000)
        )
        assert [int(each.name.rpartition("/")[2]) for each in listed.model_versions] == list(range(41, 0, -1))
        assert (await verify(registries[0])).intact
        environments = await registries[0].api.ListEnvironments(pb.ListEnvironmentsRequest())
        assert len(environments.environments) == 3
        stream.cancel()
    finally:
        for each in running:
            await each.__aexit__(None, None, None)


async def test_one_request_sent_many_times_at_once_is_done_once(registry: Registry) -> None:
    await registry.create_model("fraud")
    await registry.create_version()
    request = pb.DeployModelRequest(model="fraud", version="1", request_id=new_id())
    answers = await asyncio.gather(*(registry.api.DeployModel(request) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert len((await registry.api.ListDeployments(pb.ListDeploymentsRequest())).deployments) == 1


async def test_everything_is_there_after_a_restart(database_url: str, tmp_path: Path) -> None:
    async with running_registry(tmp_path, database_url) as before:
        deployed = await before.serve_versions(None, 25)
        route, model = await before.route(), await before.api.GetModel(pb.GetModelRequest(name="models/fraud"))
        log = await verify(before)
    async with running_registry(tmp_path, database_url) as after:
        assert await after.route() == route
        assert await after.api.GetModel(pb.GetModelRequest(name="models/fraud")) == model
        assert await verify(after) == log, "a start changes nothing"
        assert (await after.deployment(deployed[1].name)).model_version == "models/fraud/versions/2"


async def test_a_caller_that_gives_up_leaves_the_registry_working(registry: Registry) -> None:
    calls = [
        registry.api.CreateModel(pb.CreateModelRequest(model_id=f"m-{number}"), timeout=0.02) for number in range(60)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    codes = {outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)}
    assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED}
    await registry.create_model("last")
    assert (await verify(registry)).intact


async def test_migrations_make_the_tables_that_the_code_expects(database_url: str) -> None:
    database = Database(database_url, service="registry")
    try:
        await migrate(database, MIGRATIONS)
        await migrate(database, MIGRATIONS)

        def compare(connection: Connection) -> list[object]:
            differences: list[object] = compare_metadata(MigrationContext.configure(connection), METADATA)
            return differences

        async with database.read() as connection:
            assert await connection.run_sync(compare) == []
    finally:
        await database.close()


async def test_a_database_that_a_newer_release_migrated_is_used_as_it_is(database_url: str, tmp_path: Path) -> None:
    async with running_registry(tmp_path, database_url) as registry:
        await registry.create_model("fraud")
    database = Database(database_url, service="registry")
    async with database.write() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")
        await connection.exec_driver_sql("ALTER TABLE resource ADD COLUMN of_the_future INTEGER")
    await database.close()
    async with running_registry(tmp_path, database_url) as registry:
        await registry.create_version()
