"""Reports between the contract and the domain, and their content as JSON."""

import json
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from interlock.monitor.v1 import report_service_pb2 as pb

from services.common.errors import Violation
from services.common.names import NameFormat, id_violation
from services.common.refusals import InvalidRequest, refuse, request_id_of
from services.monitor.convert.analysis import (
    data_quality_to_proto,
    drift_to_proto,
    fairness_to_proto,
    quality_to_proto,
    scope_from_proto,
)
from services.monitor.convert.time import time_to_proto
from services.monitor.domain.report_page import Findings, ReportFormat, ReportState, StoredReport
from services.monitor.domain.scope import ScopeRequest

REPORT: Final = NameFormat("reports/{report}")
_FORMATS: Final = {
    pb.REPORT_FORMAT_UNSPECIFIED: ReportFormat.HTML,
    pb.REPORT_FORMAT_HTML: ReportFormat.HTML,
    pb.REPORT_FORMAT_JSON: ReportFormat.JSON,
}
_FORMATS_BACK: Final = {ReportFormat.HTML: pb.REPORT_FORMAT_HTML, ReportFormat.JSON: pb.REPORT_FORMAT_JSON}
_STATES: Final = {
    ReportState.RUNNING: pb.REPORT_STATE_RUNNING,
    ReportState.SUCCEEDED: pb.REPORT_STATE_SUCCEEDED,
    ReportState.FAILED: pb.REPORT_STATE_FAILED,
}
CONTENT_TYPES: Final = {ReportFormat.HTML: "text/html; charset=utf-8", ReportFormat.JSON: "application/json"}


def report_id_of(name: str) -> str:
    """Return the id in the name of a report."""
    (report_id,) = REPORT.parse(name)
    return report_id


def order_from_proto(request: pb.CreateReportRequest) -> tuple[ScopeRequest, ReportFormat, str]:
    """Return scope, format and idempotency key of an order; raises InvalidArgument listing all that is wrong."""
    form = _FORMATS.get(request.report.format)
    wrong = []
    if form is None:
        want = ", ".join(pb.ReportFormat.keys()[1:])
        wrong.append(Violation("report.format", f"want one of {want}; got {request.report.format}"))
    try:
        request_id = request_id_of(request.request_id)
    except InvalidRequest as error:
        wrong += error.violations
        request_id = ""
    try:
        scope = scope_from_proto(request.report.scope, "report.scope")
    except InvalidRequest as error:
        raise InvalidRequest([*error.violations, *wrong]) from None
    refuse(wrong)
    assert form is not None, "refused above"
    return scope, form, request_id


def list_filter(request: pb.ListReportsRequest) -> str:
    """Return the model whose reports are listed, empty for all."""
    wrong = id_violation(request.model, "model") if request.model else None
    refuse([] if wrong is None else [wrong])
    return request.model


def report_to_proto(report: StoredReport) -> pb.Report:
    """Return a report without its content."""
    message = pb.Report(
        name=report.name,
        format=_FORMATS_BACK[report.format],
        state=_STATES[report.state],
        size_bytes=report.size_bytes,
        creator=report.creator,
        create_time=time_to_proto(report.create_us),
        expire_time=time_to_proto(report.expire_us),
    )
    asked = report.request
    message.scope.model_version = f"models/{asked.model}/versions/{asked.version}"
    message.scope.environment = asked.environment
    message.scope.slice, message.scope.variant = asked.slice_name, asked.variant
    for field, time_us in (("start_time", asked.start_us), ("end_time", asked.end_us)):
        if time_us is not None:
            getattr(message.scope, field).CopyFrom(time_to_proto(time_us))
    if report.state is ReportState.FAILED:
        message.error.CopyFrom(Status(code=report.error_code, message=report.error_message))
    return message


def findings_to_json(findings: Findings) -> bytes:
    """Return the reports of AnalysisService as one JSON object."""
    content: dict[str, Any] = {
        "quality_report": _plain(quality_to_proto(findings.quality)),
        "data_quality_report": _plain(data_quality_to_proto(findings.data_quality)),
        "fairness_report": _plain(fairness_to_proto(findings.fairness)),
        "left_out": list(findings.left_out),
    }
    if findings.drift is not None:
        content["drift_report"] = _plain(drift_to_proto(findings.drift))
    return json.dumps(content, indent=1).encode()


def _plain(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
