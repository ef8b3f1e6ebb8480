"""Puts the monitor together."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from interlock.monitor.v1 import (
    alert_service_pb2,
    analysis_service_pb2,
    feedback_service_pb2,
    http_service_pb2,
    monitor_service_pb2,
    monitoring_policy_service_pb2,
    prediction_log_service_pb2,
    report_service_pb2,
)
from interlock.monitor.v1alpha1 import analysis_service_pb2 as alpha_analysis_service_pb2
from interlock.monitor.v1alpha1 import verdict_service_pb2

from services.common.call import Binding
from services.common.channels import open_channel
from services.common.migration import open_database
from services.common.server import Runtime
from services.common.unimplemented import unimplemented_bindings
from services.monitor.adapters.migrations import MIGRATIONS
from services.monitor.adapters.policy_store import PolicyStore
from services.monitor.adapters.prometheus_counts import CountsCollector
from services.monitor.adapters.registry_client import IDEMPOTENT, RegistryVersions
from services.monitor.domain.event_stream import StreamTotals
from services.monitor.domain.policy import PolicyBook
from services.monitor.domain.prediction_counts import PredictionCounts
from services.monitor.servicer.monitor_service import MonitorServicer
from services.monitor.servicer.monitoring_policy_service import MonitoringPolicyServicer
from services.monitor.settings import Settings

_WITHOUT_CODE: Final = (
    alert_service_pb2,
    analysis_service_pb2,
    feedback_service_pb2,
    prediction_log_service_pb2,
    report_service_pb2,
    http_service_pb2,
    alpha_analysis_service_pb2,
    verdict_service_pb2,
)


@asynccontextmanager
async def build(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Sequence[Binding]]:
    """Open the adapters, and yield what the process serves."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(
                settings.monitor_database,
                MIGRATIONS,
                service="monitor",
                statement_timeout_s=settings.monitor_database_statement_timeout_s,
                version_table="alembic_version_monitor",
            )
        )
        versions = RegistryVersions(
            await stack.enter_async_context(open_channel(settings.registry_address, idempotent=IDEMPOTENT))
        )
        policies = PolicyStore(database, PolicyBook())
        await policies.load()
        counts, totals = PredictionCounts(settings.prediction_count_limit), StreamTotals()
        runtime.registry.register(CountsCollector(counts, totals))
        yield (
            _binding(monitor_service_pb2, MonitorServicer(counts, totals, runtime.draining)),
            _binding(monitoring_policy_service_pb2, MonitoringPolicyServicer(policies, policies.book, versions)),
            *unimplemented_bindings(*(module.DESCRIPTOR for module in _WITHOUT_CODE)),
        )


def _binding(stub: Any, servicer: object) -> Binding:
    """Return the binding of the one service that a contract file defines."""
    (service,) = stub.DESCRIPTOR.services_by_name.values()
    return Binding(service.full_name, servicer)
