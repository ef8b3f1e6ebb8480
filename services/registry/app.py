"""Puts the registry together: database, store of content, housekeeping, servicers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import structlog
from interlock.registry.v1 import artifact_service_pb2, control_service_pb2, registry_service_pb2
from interlock.registry.v1alpha1 import (
    access_policy_service_pb2,
    batch_job_service_pb2,
    conversion_job_service_pb2,
    experiment_service_pb2,
    lineage_service_pb2,
    promotion_service_pb2,
    rollout_service_pb2,
    scaling_policy_service_pb2,
)

from services.common.call import Binding
from services.common.errors import ServiceError
from services.common.migration import open_database
from services.common.server import Runtime
from services.common.unimplemented import unimplemented_bindings
from services.registry.adapters.artifact_store import FsspecArtifactStore
from services.registry.adapters.bell import Bell
from services.registry.adapters.features_client import GrpcFeatureGate
from services.registry.adapters.migrations import MIGRATIONS
from services.registry.adapters.sql_feed import SqlChangeFeed
from services.registry.adapters.sql_store import SqlStore
from services.registry.domain.audit import Author
from services.registry.domain.catalog import create_first_environments
from services.registry.servicer.artifact_service import ArtifactServicer
from services.registry.servicer.control_service import ControlServicer
from services.registry.servicer.registry_service import RegistryServicer
from services.registry.settings import RegistrySettings

_WITHOUT_CODE: Final = (
    access_policy_service_pb2,
    batch_job_service_pb2,
    conversion_job_service_pb2,
    experiment_service_pb2,
    lineage_service_pb2,
    promotion_service_pb2,
    rollout_service_pb2,
    scaling_policy_service_pb2,
)
_LOG: Final = structlog.get_logger(part="registry")
_OURSELVES: Final = Author("registry", "CreateEnvironment", "start")


@asynccontextmanager
async def build(settings: RegistrySettings, runtime: Runtime[RegistrySettings]) -> AsyncIterator[Sequence[Binding]]:
    """Open the database and the store of content, bring both up to date, and give the servicers."""
    bell = Bell()
    runtime.on_drain(bell.close)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(
                settings.database,
                MIGRATIONS,
                service="registry",
                statement_timeout_s=settings.database_statement_timeout_s,
            )
        )
        store = SqlStore(database, bell)
        await store.begin()
        async with store.change(_OURSELVES) as change:
            await create_first_environments(change)
        feed = await SqlChangeFeed.open(database, bell)
        artifacts = await _open_artifacts(settings, runtime)
        features = GrpcFeatureGate(settings.features_address)
        stack.push_async_callback(features.close)
        for name, work in (
            ("poll-changes", feed.poll(settings.watch_poll_s)),
            ("housekeeping", _keep_house(settings, store, artifacts)),
        ):
            await stack.enter_async_context(runtime.in_background(work, name))
        yield (
            Binding(_full_name(registry_service_pb2, "RegistryService"), RegistryServicer(store, artifacts, features)),
            Binding(
                _full_name(artifact_service_pb2, "ArtifactService"),
                ArtifactServicer(artifacts, idle_timeout_s=settings.upload_idle_timeout_s),
            ),
            Binding(
                _full_name(control_service_pb2, "ControlService"),
                ControlServicer(store, feed, heartbeat_s=settings.watch_heartbeat_s),
            ),
            *unimplemented_bindings(*(module.DESCRIPTOR for module in _WITHOUT_CODE)),
        )


async def _open_artifacts(settings: RegistrySettings, runtime: Runtime[RegistrySettings]) -> FsspecArtifactStore:
    artifacts = FsspecArtifactStore(
        settings.artifacts,
        settings.state_dir.absolute() / "registry" / "uploads",
        least_free_share=settings.artifact_least_free_share,
        registry=runtime.registry,
    )
    await artifacts.prepare()
    return artifacts


async def _keep_house(settings: RegistrySettings, store: SqlStore, artifacts: FsspecArtifactStore) -> None:
    while True:
        try:
            await store.clean(settings.change_retention)
            await artifacts.sweep(settings.upload_retention_s)
        except ServiceError as error:
            _LOG.warning("housekeeping_failed", reason=error.reason)
        await asyncio.sleep(settings.housekeeping_interval_s)


def _full_name(stub: Any, service: str) -> str:
    name: str = stub.DESCRIPTOR.services_by_name[service].full_name
    return name
