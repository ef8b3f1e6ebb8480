"""interlock.monitor.v1.MonitorHttpService: the same use cases over REST; the chain makes bodies of errors."""

from google.api.httpbody_pb2 import HttpBody
from interlock.monitor.v1 import http_service_pb2 as pb

from services.common.call import Call
from services.monitor.convert.feedback_json import request_from_json, response_to_json
from services.monitor.convert.report import CONTENT_TYPES, report_id_of
from services.monitor.domain.report_page import ReportStore, require_ready
from services.monitor.servicer.feedback_service import FeedbackServicer


class MonitorHttpServicer:
    """Speaks JSON where the transcoder would drop what it does not know."""

    def __init__(self, feedback: FeedbackServicer, reports: ReportStore) -> None:
        self._feedback = feedback
        self._reports = reports

    async def SendFeedback(self, request: pb.SendFeedbackHttpRequest, call: Call) -> HttpBody:
        """POST /v1/feedback."""
        asked = request_from_json(request.body.data)
        return response_to_json(await self._feedback.SendFeedback(asked, call))

    async def GetReportContent(self, request: pb.GetReportContentHttpRequest, call: Call) -> HttpBody:
        """GET /v1/reports/{report}/content."""
        report = await self._reports.get(report_id_of(request.name))
        require_ready(report)
        content = await self._reports.content(report.report_id)
        return HttpBody(content_type=CONTENT_TYPES[report.format], data=content)
