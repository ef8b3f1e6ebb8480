"""Puts the features service together: definitions, and the parts that read and write values by them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from interlock.features.v1 import (
    feature_job_service_pb2,
    feature_service_pb2,
    feature_view_service_pb2,
    offline_feature_service_pb2,
)

from services.common.call import Binding
from services.common.database import Database
from services.common.migration import open_database
from services.common.server import Runtime
from services.common.unimplemented import unimplemented_bindings
from services.features.adapters.definition_store import SqlDefinitionStore, follow
from services.features.adapters.migrations import MIGRATIONS, VERSION_TABLE
from services.features.adapters.registry_client import GrpcVersionRegistry
from services.features.domain.catalog import Catalog, CompiledView
from services.features.servicer.feature_view_service import FeatureViewServicer
from services.features.settings import Settings


@dataclass(frozen=True)
class Base:
    """What every part builds on; `stack` closes what a part opens, in reverse order."""

    settings: Settings
    runtime: Runtime[Settings]
    stack: AsyncExitStack
    database: Database
    catalog: Catalog
    on_view_deleted: list[Callable[[CompiledView], Coroutine[Any, Any, None]]] = field(default_factory=list)
    """Run in the background for each view that an apply has deleted."""


@asynccontextmanager
async def build(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Sequence[Binding]]:
    """Open the database, load the definitions, and give the servicers of all parts."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(
                settings.database,
                MIGRATIONS,
                service="features",
                statement_timeout_s=settings.database_statement_timeout_s,
                version_table=VERSION_TABLE,
            )
        )
        base = Base(settings, runtime, stack, database, Catalog())
        yield [*await _definitions(base), *await _online(base), *await _offline(base)]


async def _definitions(base: Base) -> Sequence[Binding]:
    """FeatureViewService, and the catalog that everybody reads."""
    store, registry = SqlDefinitionStore(base.database), GrpcVersionRegistry(base.settings.registry_address)
    base.stack.push_async_callback(registry.close)
    base.catalog.replace((await store.load()).compiled())
    await base.stack.enter_async_context(
        in_background(base.runtime, follow(store, base.catalog, base.settings.definition_poll_s), "follow-definitions")
    )

    async def forget(views: Sequence[CompiledView]) -> None:
        for view in views:
            for forget_view in base.on_view_deleted:
                base.runtime.spawn(forget_view(view), f"forget-{view.id}")

    servicer = FeatureViewServicer(store, base.catalog, registry, forget)
    return [Binding(_full_name(feature_view_service_pb2, "FeatureViewService"), servicer)]


async def _online(base: Base) -> Sequence[Binding]:
    """FeatureService: the online store, the history, aggregates and expressions."""
    return unimplemented_bindings(feature_service_pb2.DESCRIPTOR)


async def _offline(base: Base) -> Sequence[Binding]:
    """OfflineFeatureService and FeatureJobService."""
    return unimplemented_bindings(feature_job_service_pb2.DESCRIPTOR, offline_feature_service_pb2.DESCRIPTOR)


@asynccontextmanager
async def in_background(runtime: Runtime[Settings], work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run work that never ends by itself while the block runs."""
    task = runtime.spawn(work, name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _full_name(stub: Any, service: str) -> str:
    name: str = stub.DESCRIPTOR.services_by_name[service].full_name
    return name
