"""Puts the monitor together."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from services.common.call import Binding
from services.common.server import Runtime
from services.monitor.adapters.prometheus_counts import CountsCollector
from services.monitor.domain.event_stream import StreamTotals
from services.monitor.domain.prediction_counts import PredictionCounts
from services.monitor.servicer import MonitorServicer, monitor_bindings
from services.monitor.settings import Settings


@asynccontextmanager
async def build(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Sequence[Binding]]:
    """Yield what the process serves."""
    counts, totals = PredictionCounts(settings.prediction_count_limit), StreamTotals()
    runtime.registry.register(CountsCollector(counts, totals))
    yield monitor_bindings(MonitorServicer(counts, totals, runtime.draining))
