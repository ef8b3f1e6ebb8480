"""How versions are doing: drift, data quality, quality, fairness; and how a model is watched."""

from collections.abc import AsyncIterator, Sequence

from google.protobuf.field_mask_pb2 import FieldMask
from interlock.monitor.v1 import (
    analysis_pb2,
    analysis_service_pb2_grpc,
    feedback_service_pb2,
    feedback_service_pb2_grpc,
    monitoring_policy_pb2,
    monitoring_policy_service_pb2_grpc,
    prediction_log_service_pb2,
    prediction_log_service_pb2_grpc,
)
from interlock.monitor.v1 import analysis_service_pb2 as pb
from interlock.monitor.v1 import monitoring_policy_service_pb2 as policy_pb

from interlock_sdk.channel import Caller, new_request_id

# What many windows are computed from takes longer than other calls.
ANALYSIS_TIMEOUT_S = 15.0
# A query may compute for a minute; the rest is for its rows to travel.
QUERY_TIMEOUT_S = 120.0


class Monitoring:
    """Reports about versions, and monitoring policies by model."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._analysis = analysis_service_pb2_grpc.AnalysisServiceStub(caller.channel)
        self._feedback = feedback_service_pb2_grpc.FeedbackServiceStub(caller.channel)
        self._log = prediction_log_service_pb2_grpc.PredictionLogServiceStub(caller.channel)
        self._policies = monitoring_policy_service_pb2_grpc.MonitoringPolicyServiceStub(caller.channel)

    async def send_feedback(
        self, feedback: Sequence[feedback_service_pb2.Feedback]
    ) -> Sequence[feedback_service_pb2.FeedbackResult]:
        """Sends labels and rewards, at most 1,000; returns what became of each, in order."""
        request = feedback_service_pb2.SendFeedbackRequest(feedback=feedback, request_id=new_request_id())
        return (await self._caller.call(self._feedback.SendFeedback, request)).results

    async def query_log(
        self, request: prediction_log_service_pb2.QueryPredictionLogRequest
    ) -> AsyncIterator[prediction_log_service_pb2.QueryPredictionLogResponse]:
        """Runs a query over the prediction log; yields the parts of one Arrow IPC stream. Raises CallError."""
        async for part in self._caller.stream(self._log.QueryPredictionLog(request, timeout=QUERY_TIMEOUT_S)):
            yield part

    async def drift(
        self,
        scope: analysis_pb2.AnalysisScope,
        *,
        reference: analysis_pb2.AnalysisScope | None = None,
        features: Sequence[str] = (),
    ) -> analysis_pb2.DriftReport:
        """Compares inputs and outputs with the version's baseline, or with another scope."""
        request = pb.GetDriftReportRequest(scope=scope, reference=reference, features=features)
        answer = await self._caller.call(self._analysis.GetDriftReport, request, timeout_s=ANALYSIS_TIMEOUT_S)
        return answer.drift_report

    async def data_quality(self, scope: analysis_pb2.AnalysisScope) -> analysis_pb2.DataQualityReport:
        """Checks nulls, types, ranges, categories, volume and freshness."""
        request = pb.GetDataQualityReportRequest(scope=scope)
        answer = await self._caller.call(self._analysis.GetDataQualityReport, request, timeout_s=ANALYSIS_TIMEOUT_S)
        return answer.data_quality_report

    async def quality(
        self, scope: analysis_pb2.AnalysisScope, *, metrics: Sequence[str] = (), include_estimates: bool = False
    ) -> analysis_pb2.QualityReport:
        """Measures predictions against labels; with `include_estimates` also without."""
        request = pb.GetQualityReportRequest(scope=scope, metrics=metrics, include_estimates=include_estimates)
        answer = await self._caller.call(self._analysis.GetQualityReport, request, timeout_s=ANALYSIS_TIMEOUT_S)
        return answer.quality_report

    async def fairness(self, scope: analysis_pb2.AnalysisScope) -> analysis_pb2.FairnessReport:
        """Compares the groups that the policy names."""
        request = pb.GetFairnessReportRequest(scope=scope)
        answer = await self._caller.call(self._analysis.GetFairnessReport, request, timeout_s=ANALYSIS_TIMEOUT_S)
        return answer.fairness_report

    async def policy(self, model: str) -> monitoring_policy_pb2.MonitoringPolicy:
        """Gives how a model is watched."""
        request = policy_pb.GetMonitoringPolicyRequest(name=f"monitoringPolicies/{model}")
        return (await self._caller.call(self._policies.GetMonitoringPolicy, request)).monitoring_policy

    async def set_policy(
        self, model: str, policy: monitoring_policy_pb2.MonitoringPolicy, fields: Sequence[str] = ()
    ) -> monitoring_policy_pb2.MonitoringPolicy:
        """Changes how a model is watched: the named fields, or those that are set."""
        changed = monitoring_policy_pb2.MonitoringPolicy()
        changed.CopyFrom(policy)
        changed.name = f"monitoringPolicies/{model}"
        request = policy_pb.UpdateMonitoringPolicyRequest(monitoring_policy=changed, request_id=new_request_id())
        if fields:
            request.update_mask.CopyFrom(FieldMask(paths=fields))
        return (await self._caller.call(self._policies.UpdateMonitoringPolicy, request)).monitoring_policy
