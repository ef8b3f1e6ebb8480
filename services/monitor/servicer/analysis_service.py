"""How versions are doing."""

from interlock.monitor.v1 import analysis_service_pb2 as pb

from services.common.call import Call
from services.monitor.convert.analysis import (
    data_quality_to_proto,
    drift_to_proto,
    fairness_to_proto,
    quality_request,
    quality_to_proto,
    scope_from_proto,
)
from services.monitor.domain.analyses import Analyses


class AnalysisServicer:
    """Answers from windows; no call reads the log."""

    def __init__(self, analyses: Analyses) -> None:
        self._analyses = analyses

    async def GetDriftReport(self, request: pb.GetDriftReportRequest, call: Call) -> pb.GetDriftReportResponse:
        """Compare inputs and outputs with the version's baseline, or with another scope."""
        scope = scope_from_proto(request.scope)
        reference = scope_from_proto(request.reference, "reference") if request.HasField("reference") else None
        report = await self._analyses.drift(scope, reference, tuple(request.features))
        return pb.GetDriftReportResponse(drift_report=drift_to_proto(report))

    async def GetDataQualityReport(
        self, request: pb.GetDataQualityReportRequest, call: Call
    ) -> pb.GetDataQualityReportResponse:
        """Check nulls, types, ranges, categories, volume and freshness."""
        report = await self._analyses.data_quality(scope_from_proto(request.scope))
        return pb.GetDataQualityReportResponse(data_quality_report=data_quality_to_proto(report))

    async def GetQualityReport(self, request: pb.GetQualityReportRequest, call: Call) -> pb.GetQualityReportResponse:
        """Measure predictions against labels, and estimate where labels are missing."""
        report = await self._analyses.quality(quality_request(request))
        return pb.GetQualityReportResponse(quality_report=quality_to_proto(report))

    async def GetFairnessReport(self, request: pb.GetFairnessReportRequest, call: Call) -> pb.GetFairnessReportResponse:
        """Compare groups."""
        report = await self._analyses.fairness(scope_from_proto(request.scope))
        return pb.GetFairnessReportResponse(fairness_report=fairness_to_proto(report))
