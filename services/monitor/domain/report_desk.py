"""Takes orders for reports and writes them in the background."""

import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import structlog

from services.common.errors import ServiceError
from services.monitor.domain.analyses import Analyses
from services.monitor.domain.report_page import (
    Findings,
    ReportFormat,
    ReportState,
    ReportStore,
    StoredReport,
    find,
)
from services.monitor.domain.scope import ScopeRequest

Render = Callable[[Findings, ReportFormat], Coroutine[Any, Any, bytes]]
_LOG: Final = structlog.get_logger(part="reports")


class ReportDesk:
    """Creates reports; each is written by a task of its own, those that a restart cut short from the beginning."""

    def __init__(
        self,
        store: ReportStore,
        analyses: Analyses,
        render: Render,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._analyses = analyses
        self._render = render
        self._spawn = spawn
        self._clock = clock

    async def resume(self) -> None:
        """Write what was being written when the process ended."""
        for report in await self.store.unfinished():
            self._spawn(self._write(report), f"report-{report.report_id}")

    async def order(self, request: ScopeRequest, form: ReportFormat, creator: str, request_id: str) -> StoredReport:
        """Keep a new report and begin to write it; raises what `Scopes.resolve` raises."""
        # What cannot be looked at is refused now and not found out later; times are those of the order.
        scope = await self._analyses.resolve(request)
        asked = replace(
            request, model=scope.info.model, version=scope.info.version, start_us=scope.start_us, end_us=scope.end_us
        )
        now_us = int(self._clock() * 1e6)
        # Rises with time, so that the newest come first.
        report_id = f"{now_us:015x}-{uuid4().hex[:8]}"
        wanted = StoredReport(report_id, asked, form, ReportState.RUNNING, creator, now_us)
        kept = await self.store.create(wanted, request_id)
        if kept.report_id == report_id:
            self._spawn(self._write(kept), f"report-{report_id}")
        return kept

    async def _write(self, report: StoredReport) -> None:
        try:
            content = await self._render(await find(self._analyses, report.request), report.format)
        except ServiceError as error:
            status, *_ = error.code.value
            failed = replace(report, state=ReportState.FAILED, error_code=status, error_message=error.message)
            await self.store.finish(failed, b"")
        except Exception:  # noqa: BLE001 - whatever it is, somebody waits for the report
            # The caller learns that it failed; what it was is in the log.
            _LOG.exception("report_failed", report=report.name)
            text = "the report could not be written; the log of the monitor says why"
            failed = replace(report, state=ReportState.FAILED, error_code=13, error_message=text)
            await self.store.finish(failed, b"")
        else:
            done = replace(report, state=ReportState.SUCCEEDED, size_bytes=len(content))
            await self.store.finish(done, content)
