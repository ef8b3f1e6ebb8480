"""Puts the features service together: definitions, and the parts that read and write values by them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
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
from services.features.adapters.migrations import MIGRATIONS, VERSION_TABLE
from services.features.domain.catalog import Catalog
from services.features.settings import Settings


@dataclass(frozen=True)
class Base:
    """What every part builds on; `stack` closes what a part opens, in reverse order."""

    settings: Settings
    runtime: Runtime[Settings]
    stack: AsyncExitStack
    database: Database
    catalog: Catalog


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
    """FeatureViewService."""
    return unimplemented_bindings(feature_view_service_pb2.DESCRIPTOR)


async def _online(base: Base) -> Sequence[Binding]:
    """FeatureService: the online store, the history, aggregates and expressions."""
    return unimplemented_bindings(feature_service_pb2.DESCRIPTOR)


async def _offline(base: Base) -> Sequence[Binding]:
    """OfflineFeatureService and FeatureJobService."""
    return unimplemented_bindings(feature_job_service_pb2.DESCRIPTOR, offline_feature_service_pb2.DESCRIPTOR)


def _full_name(stub: Any, service: str) -> str:
    name: str = stub.DESCRIPTOR.services_by_name[service].full_name
    return name
