"""interlock.monitor.v1.MonitorHttpService: the same use cases over REST; the chain makes bodies of errors."""

from google.api.httpbody_pb2 import HttpBody
from interlock.monitor.v1 import http_service_pb2 as pb

from services.common.call import Call
from services.common.errors import Unimplemented
from services.common.unimplemented import NOT_IMPLEMENTED
from services.monitor.convert.feedback_json import request_from_json, response_to_json
from services.monitor.servicer.feedback_service import FeedbackServicer


class MonitorHttpServicer:
    """Speaks JSON where the transcoder would drop what it does not know."""

    def __init__(self, feedback: FeedbackServicer) -> None:
        self._feedback = feedback

    async def SendFeedback(self, request: pb.SendFeedbackHttpRequest, call: Call) -> HttpBody:
        """POST /v1/feedback."""
        asked = request_from_json(request.body.data)
        return response_to_json(await self._feedback.SendFeedback(asked, call))

    async def GetReportContent(self, request: pb.GetReportContentHttpRequest, call: Call) -> HttpBody:
        """GET /v1/reports/{report}/content."""
        raise Unimplemented(f"{call.method} is in the contract and not in this release", reason=NOT_IMPLEMENTED)
