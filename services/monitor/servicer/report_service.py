"""Reports for people."""

from collections.abc import AsyncIterator
from typing import Final

from interlock.monitor.v1 import report_service_pb2 as pb

from services.common.call import Call
from services.common.pagination import parse_page
from services.monitor.convert.report import list_filter, order_from_proto, report_id_of, report_to_proto
from services.monitor.domain.report_desk import ReportDesk
from services.monitor.domain.report_page import require_ready

_PART_BYTES: Final = 1024 * 1024


class ReportServicer:
    """Takes orders and gives what was written."""

    def __init__(self, desk: ReportDesk) -> None:
        self._desk = desk

    async def CreateReport(self, request: pb.CreateReportRequest, call: Call) -> pb.CreateReportResponse:
        """Begin a report."""
        scope, form, request_id = order_from_proto(request)
        report = await self._desk.order(scope, form, call.principal, request_id)
        return pb.CreateReportResponse(report=report_to_proto(report))

    async def GetReport(self, request: pb.GetReportRequest, call: Call) -> pb.GetReportResponse:
        """Return a report without its content."""
        report = await self._desk.store.get(report_id_of(request.name))
        return pb.GetReportResponse(report=report_to_proto(report))

    async def ListReports(self, request: pb.ListReportsRequest, call: Call) -> pb.ListReportsResponse:
        """List reports, newest first."""
        model = list_filter(request)
        page = parse_page(request.page_size, request.page_token, {"list": "reports", "model": model})
        found = await self._desk.store.page(model, page.after, page.size + 1)
        shown = found[: page.size]
        return pb.ListReportsResponse(
            reports=map(report_to_proto, shown),
            next_page_token=page.next_token(shown[-1].report_id) if len(found) > page.size else "",
        )

    async def DownloadReport(
        self, request: pb.DownloadReportRequest, call: Call
    ) -> AsyncIterator[pb.DownloadReportResponse]:
        """Yield the content in parts."""
        report = await self._desk.store.get(report_id_of(request.name))
        require_ready(report)
        content = await self._desk.store.content(report.report_id)
        for offset in range(0, len(content), _PART_BYTES):
            yield pb.DownloadReportResponse(offset_bytes=offset, data=content[offset : offset + _PART_BYTES])
