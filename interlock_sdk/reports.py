"""Reports for people: one page for a version and a stretch of time."""

import asyncio

from interlock.monitor.v1 import analysis_pb2, report_service_pb2_grpc
from interlock.monitor.v1 import report_service_pb2 as pb

from interlock_sdk.channel import Caller, new_request_id
from interlock_sdk.errors import CallError, call_error_from_status

REPORT_TIMEOUT_S = 60.0
_POLL_S = 0.2


class Reports:
    """Orders reports and fetches what was written."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = report_service_pb2_grpc.ReportServiceStub(caller.channel)

    async def create(
        self,
        scope: analysis_pb2.AnalysisScope,
        form: "pb.ReportFormat.ValueType" = pb.REPORT_FORMAT_HTML,
        *,
        timeout_s: float = REPORT_TIMEOUT_S,
    ) -> pb.Report:
        """Orders a report and waits until it is written. Raises CallError, and TimeoutError when it takes longer."""
        request = pb.CreateReportRequest(report=pb.Report(scope=scope, format=form), request_id=new_request_id())
        report = (await self._caller.call(self._stub.CreateReport, request)).report
        async with asyncio.timeout(timeout_s):
            while report.state == pb.REPORT_STATE_RUNNING:
                await asyncio.sleep(_POLL_S)
                report = (await self._caller.call(self._stub.GetReport, pb.GetReportRequest(name=report.name))).report
        if report.state == pb.REPORT_STATE_FAILED:
            raise _failure(report)
        return report

    async def download(self, name: str) -> bytes:
        """Gives the content of a report. Raises CallError."""
        request = pb.DownloadReportRequest(name=name)
        parts = self._caller.stream(self._stub.DownloadReport(request, timeout=REPORT_TIMEOUT_S))
        return b"".join([part.data async for part in parts])


def _failure(report: pb.Report) -> CallError:
    return call_error_from_status(report.error)
