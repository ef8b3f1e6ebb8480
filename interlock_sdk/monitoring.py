"""How versions are doing: drift, data quality, quality, fairness; and how a model is watched."""

from collections.abc import Sequence

from google.protobuf.field_mask_pb2 import FieldMask
from interlock.monitor.v1 import (
    analysis_pb2,
    analysis_service_pb2_grpc,
    monitoring_policy_pb2,
    monitoring_policy_service_pb2_grpc,
)
from interlock.monitor.v1 import analysis_service_pb2 as pb
from interlock.monitor.v1 import monitoring_policy_service_pb2 as policy_pb

from interlock_sdk.channel import Caller, new_request_id

# What many windows are computed from takes longer than other calls.
ANALYSIS_TIMEOUT_S = 15.0


class Monitoring:
    """Reports about versions, and monitoring policies by model."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._analysis = analysis_service_pb2_grpc.AnalysisServiceStub(caller.channel)
        self._policies = monitoring_policy_service_pb2_grpc.MonitoringPolicyServiceStub(caller.channel)

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
