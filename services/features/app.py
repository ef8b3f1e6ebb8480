"""Puts the features service together: definitions, and the parts that read and write values by them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from interlock.features.v1 import (
    feature_job_service_pb2,
    feature_service_pb2,
    feature_view_service_pb2,
    http_service_pb2,
    offline_feature_service_pb2,
)

from services.common.call import Binding
from services.common.cpus import thread_count
from services.common.database import Database
from services.common.migration import open_database
from services.common.server import Runtime
from services.common.settings import InvalidSettings
from services.features.adapters.definition_store import SqlDefinitionStore, follow
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.history import FeatureHistory
from services.features.adapters.job_runner import JobRunner
from services.features.adapters.job_store import SqlJobStore
from services.features.adapters.metrics import FeatureMetrics, HistoryMetrics, StoreMetrics
from services.features.adapters.migrations import MIGRATIONS, VERSION_TABLE
from services.features.adapters.offline_jobs import OfflineJobs
from services.features.adapters.offline_process import OfflineProcesses, StreamJoins
from services.features.adapters.online_writer import RedisOnlineWriter
from services.features.adapters.prediction_log import GrpcParitySources
from services.features.adapters.push_answers import RedisPushAnswers
from services.features.adapters.redis_link import InvalidRedisUrl, open_link
from services.features.adapters.redis_store import RedisStore
from services.features.adapters.registry_client import GrpcVersionRegistry
from services.features.domain.catalog import Catalog, CompiledView
from services.features.domain.catch_up import CatchUp
from services.features.domain.job import JobKind
from services.features.domain.online_read import FeatureReader, ReadPlans
from services.features.domain.push import Pusher, RowCheck, Writers, now_us
from services.features.servicer.feature_job_service import FeatureJobServicer
from services.features.servicer.feature_service import FeatureServicer
from services.features.servicer.feature_view_service import FeatureViewServicer
from services.features.servicer.http_service import FeaturesHttpServicer
from services.features.servicer.offline_feature_service import OfflineFeatureServicer
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


@dataclass(frozen=True)
class Online:
    """What pushes and reads of values share with jobs that write or read them too."""

    store: RedisStore
    writer: RedisOnlineWriter
    history: FeatureHistory


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
        definitions = await _definitions(base)
        online = await _open_online(base)
        yield [*definitions, *_online(base, online), *await _offline(base, online)]


async def _definitions(base: Base) -> Sequence[Binding]:
    """FeatureViewService, and the catalog that everybody reads."""
    store, registry = SqlDefinitionStore(base.database), GrpcVersionRegistry(base.settings.registry_address)
    base.stack.push_async_callback(registry.close)
    base.catalog.replace((await store.load()).compiled())
    await base.stack.enter_async_context(
        base.runtime.in_background(follow(store, base.catalog, base.settings.definition_poll_s), "follow-definitions")
    )

    async def forget(views: Sequence[CompiledView]) -> None:
        for view in views:
            for forget_view in base.on_view_deleted:
                base.runtime.spawn(forget_view(view), f"forget-{view.id}")

    servicer = FeatureViewServicer(store, base.catalog, registry, base.settings.file_roots, forget)
    return [Binding(_full_name(feature_view_service_pb2, "FeatureViewService"), servicer)]


async def _open_online(base: Base) -> Online:
    """Open the online store and the history; the store catches up with the history in the background."""
    settings, registry = base.settings, base.runtime.registry
    try:
        history = FeatureHistory(
            settings.history,
            settings.state_dir.absolute() / "features" / "log",
            roll_bytes=settings.features_history_roll_mib * 1024**2,
            roll_s=settings.features_history_roll_s,
            backlog_bytes=settings.features_history_backlog_mib * 1024**2,
            clock_us=now_us,
            metrics=HistoryMetrics(registry),
        )
    except (ImportError, ValueError) as error:
        # fsspec's words: a protocol that it does not know, or the package that it wants for one.
        raise InvalidSettings(f"INTERLOCK_FEATURES_HISTORY_URI: {error}") from None
    await history.open()
    base.stack.push_async_callback(history.close)
    behind = history.behind.set
    try:
        link = open_link(settings.redis, connect_timeout_s=settings.redis_connect_timeout_s, on_reconnect=behind)
    except InvalidRedisUrl as error:
        raise InvalidSettings(f"INTERLOCK_REDIS_URL: {error}") from None
    base.stack.push_async_callback(link.close)
    store = RedisStore(
        link,
        read_deadline_s=settings.redis_read_deadline_s,
        write_deadline_s=settings.redis_write_deadline_s,
        metrics=StoreMetrics(registry),
        on_back=behind,
    )
    base.stack.push_async_callback(store.close)
    writer = RedisOnlineWriter(store, now_us)
    for work, name in (
        (history.run(), "history-parts"),
        (CatchUp(history, writer, base.catalog).run(), "online-store-catch-up"),
    ):
        await base.stack.enter_async_context(base.runtime.in_background(work, name))
    base.on_view_deleted.append(store.delete_view)
    return Online(store, writer, history)


def _online(base: Base, online: Online) -> Sequence[Binding]:
    """FeatureService, and what of it speaks JSON."""
    settings = base.settings
    servicer = FeatureServicer(
        plans=ReadPlans(base.catalog),
        reader=FeatureReader(online.store),
        writers=Writers(base.catalog),
        pusher=Pusher(
            RowCheck(settings.clock_tolerance_s),
            online.history,
            online.writer,
            online.history.behind.set,
            waiting_rows_limit=settings.push_waiting_rows,
        ),
        answers=RedisPushAnswers(online.store),
        metrics=FeatureMetrics(base.runtime.registry),
        draining=base.runtime.draining,
        clock_tolerance_s=settings.clock_tolerance_s,
    )
    hot = frozenset({"ReadFeatures", "PushFeatures"})
    return [
        Binding(_full_name(feature_service_pb2, "FeatureService"), servicer, hot),
        Binding(_full_name(http_service_pb2, "FeaturesHttpService"), FeaturesHttpServicer(servicer)),
    ]


async def _offline(base: Base, online: Online) -> Sequence[Binding]:
    """OfflineFeatureService and FeatureJobService: joins in child processes, and jobs in the background."""
    settings, stack = base.settings, base.stack
    limits = EngineLimits(
        "", settings.offline_memory_mib, settings.offline_spill_mib, thread_count(settings.offline_threads)
    )
    processes = OfflineProcesses(
        settings.state_dir.absolute() / "features" / "offline",
        limits,
        settings.features_connections,
        settings.file_roots,
        parallelism=settings.offline_parallelism,
    )
    await asyncio.to_thread(processes.clear)
    sources = GrpcParitySources(settings.registry_address, settings.monitor_address)
    stack.push_async_callback(sources.close)
    store = SqlJobStore(base.database, owner=uuid4().hex)
    jobs = OfflineJobs(base.catalog, store, processes, online.history, online.writer, sources)
    runner = JobRunner(
        store,
        {JobKind.JOIN: jobs.join, JobKind.MATERIALIZATION: jobs.materialize, JobKind.PARITY: jobs.check_parity},
        parallelism=settings.offline_parallelism,
        lease_s=settings.job_lease_s,
        poll_s=settings.job_poll_s,
    )
    await stack.enter_async_context(base.runtime.in_background(runner.run(), "jobs"))
    joins = OfflineFeatureServicer(
        base.catalog,
        StreamJoins(processes, online.history),
        limit_mib=settings.features_join_limit_mib,
        idle_timeout_s=settings.features_join_idle_timeout_s,
    )
    base.runtime.on_drain(joins.drain)
    return [
        Binding(_full_name(offline_feature_service_pb2, "OfflineFeatureService"), joins),
        Binding(
            _full_name(feature_job_service_pb2, "FeatureJobService"),
            FeatureJobServicer(store, runner, jobs, settings.file_roots),
        ),
    ]


def _full_name(stub: Any, service: str) -> str:
    name: str = stub.DESCRIPTOR.services_by_name[service].full_name
    return name
