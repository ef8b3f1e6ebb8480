"""Puts the monitor together."""

import asyncio
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
async def build(settings: Settings, runtime: Runtime) -> AsyncIterator[Sequence[Binding]]:
    """Yield what the process serves."""
    counts, totals = PredictionCounts(settings.prediction_count_limit), StreamTotals()
    draining = asyncio.Event()
    runtime.on_drain(draining.set)
    runtime.registry.register(CountsCollector(counts, totals))
    yield monitor_bindings(MonitorServicer(counts, totals, draining))
