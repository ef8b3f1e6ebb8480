"""Reports in the database."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import delete, insert, select, update

from services.common.database import Database
from services.common.refusals import ResourceNotFound
from services.monitor.adapters.table import REPORT
from services.monitor.domain.policy import DAY_US
from services.monitor.domain.report_page import KEPT_US, ReportFormat, ReportState, StoredReport
from services.monitor.domain.scope import ScopeRequest

_PLAIN: Final = [column for column in REPORT.c if column.name != "content"]


class SqlReportStore:
    """See `report_page.ReportStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, report: StoredReport, request_id: str) -> StoredReport:
        """Keep a new report, and forget those past their time."""
        async with self._database.write() as connection:
            await connection.execute(delete(REPORT).where(REPORT.c.create_us < report.create_us - KEPT_US))
            if request_id:
                known = select(*_PLAIN).where(
                    REPORT.c.request_id == request_id, REPORT.c.create_us >= report.create_us - DAY_US
                )
                row = (await connection.execute(known)).mappings().first()
                if row is not None:
                    return _report(row)
            await connection.execute(
                insert(REPORT).values(
                    report_id=report.report_id,
                    model=report.request.model,
                    request=json.dumps(asdict(report.request)),
                    format=report.format.value,
                    creator=report.creator,
                    request_id=request_id,
                    create_us=report.create_us,
                    **_end(report),
                )
            )
        return report

    async def finish(self, report: StoredReport, content: bytes) -> None:
        """Keep the end of a report."""
        async with self._database.write() as connection:
            ended = update(REPORT).where(REPORT.c.report_id == report.report_id)
            await connection.execute(ended.values(content=content, **_end(report)))

    async def get(self, report_id: str) -> StoredReport:
        """Return a report; raises ResourceNotFound."""
        async with self._database.read() as connection:
            query = select(*_PLAIN).where(REPORT.c.report_id == report_id)
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise ResourceNotFound(f"reports/{report_id}")
        return _report(row)

    async def content(self, report_id: str) -> bytes:
        """Return the content of a report that succeeded."""
        async with self._database.read() as connection:
            query = select(REPORT.c.content).where(REPORT.c.report_id == report_id)
            return bytes(await connection.scalar(query) or b"")

    async def page(self, model: str, before: str, size: int) -> Sequence[StoredReport]:
        """Return reports, newest first, after the one named `before`."""
        query = select(*_PLAIN).order_by(REPORT.c.report_id.desc()).limit(size)
        if model:
            query = query.where(REPORT.c.model == model)
        if before:
            query = query.where(REPORT.c.report_id < before)
        async with self._database.read() as connection:
            return [_report(row) for row in (await connection.execute(query)).mappings()]

    async def unfinished(self) -> Sequence[StoredReport]:
        """Return what was being written when the process ended."""
        query = select(*_PLAIN).where(REPORT.c.state == ReportState.RUNNING.value)
        async with self._database.read() as connection:
            return [_report(row) for row in (await connection.execute(query)).mappings()]


def _end(report: StoredReport) -> dict[str, object]:
    return {
        "state": report.state.value,
        "error_code": report.error_code,
        "error_message": report.error_message,
        "size_bytes": report.size_bytes,
    }


def _report(row: Mapping[Any, Any]) -> StoredReport:
    return StoredReport(
        report_id=row["report_id"],
        request=ScopeRequest(**json.loads(row["request"])),
        format=ReportFormat(row["format"]),
        state=ReportState(row["state"]),
        creator=row["creator"],
        create_us=row["create_us"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        size_bytes=row["size_bytes"],
    )
