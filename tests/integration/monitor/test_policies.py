"""Monitoring policies through the wire."""

import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interlock.monitor.v1 import monitoring_policy_pb2 as policy_pb
from interlock.monitor.v1 import monitoring_policy_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from tests.fakes.monitor_registry import FakeRegistry, model_version
from tests.integration.monitor.conftest import Monitor, running_monitor

GET = "interlock.monitor.v1.MonitoringPolicyService/GetMonitoringPolicy"
UPDATE = "interlock.monitor.v1.MonitoringPolicyService/UpdateMonitoringPolicy"
LIST = "interlock.monitor.v1.MonitoringPolicyService/ListMonitoringPolicies"
NAME = "monitoringPolicies/fraud"


def _details(error: grpc.aio.AioRpcError) -> tuple[str, list[str]]:
    status = rpc_status.from_call(error)
    reason, fields = "", []
    for packed in status.details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if packed.Unpack(info):
            reason = info.reason
        if packed.Unpack(request):
            fields = [violation.field for violation in request.field_violations]
    return reason, fields


async def _update(monitor: Monitor, policy: policy_pb.MonitoringPolicy, **more: Any) -> policy_pb.MonitoringPolicy:
    policy.name = policy.name or NAME
    request = pb.UpdateMonitoringPolicyRequest(monitoring_policy=policy, **more)
    return (await monitor.policies.UpdateMonitoringPolicy(request)).monitoring_policy


def _domestic() -> policy_pb.Slice:
    return policy_pb.Slice(name="domestic", feature="country", values=[FeatureValue(string_value="NO")])


@pytest.mark.rpc(GET, "happy")
@pytest.mark.rpc(UPDATE, "happy")
@pytest.mark.rpc(LIST, "happy")
async def test_a_policy_has_defaults_until_it_is_changed_and_outlives_a_restart(tmp_path: Path) -> None:
    registry = FakeRegistry([model_version(), model_version("churn")])
    async with running_monitor(tmp_path, registry) as monitor:
        got = (await monitor.policies.GetMonitoringPolicy(pb.GetMonitoringPolicyRequest(name=NAME))).monitoring_policy
        assert (got.window_duration.seconds, got.log_basis_points, got.false_discovery_rate) == (3600, 10_000, 0.01)
        assert dict(got.minimum_effects) == {"psi": 0.1, "jensen_shannon": 0.1, "kolmogorov_smirnov": 0.1}
        assert not got.HasField("update_time")
        wanted = policy_pb.MonitoringPolicy(
            window_duration=Duration(seconds=60), slices=[_domestic()], log_basis_points=0, positive_label="fine"
        )
        changed = await _update(monitor, wanted)
        assert changed.log_basis_points == 0
        assert changed.HasField("update_time")
        # The mask names what goes back to its default.
        changed = await _update(
            monitor, policy_pb.MonitoringPolicy(), update_mask=FieldMask(paths=["positive_label", "log_basis_points"])
        )
        assert (changed.positive_label, changed.log_basis_points, len(changed.slices)) == ("", 10_000, 1)
        await _update(monitor, policy_pb.MonitoringPolicy(name="monitoringPolicies/churn", log_basis_points=5))
    async with running_monitor(tmp_path, registry) as monitor:
        first = await monitor.policies.ListMonitoringPolicies(pb.ListMonitoringPoliciesRequest(page_size=1))
        assert [found.name for found in first.monitoring_policies] == ["monitoringPolicies/churn"]
        more = pb.ListMonitoringPoliciesRequest(page_size=1, page_token=first.next_page_token)
        second = await monitor.policies.ListMonitoringPolicies(more)
        assert second.monitoring_policies[0] == changed
        assert not second.next_page_token


async def test_an_old_etag_is_refused_and_the_same_request_changes_nothing_twice(monitor: Monitor) -> None:
    request_id = str(uuid.uuid4())
    first = await _update(monitor, policy_pb.MonitoringPolicy(etag="0", log_basis_points=1), request_id=request_id)
    again = await _update(monitor, policy_pb.MonitoringPolicy(etag="0", log_basis_points=1), request_id=request_id)
    assert again == first
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _update(monitor, policy_pb.MonitoringPolicy(etag="0", log_basis_points=2))
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert _details(caught.value)[0] == "ETAG_MISMATCH"


@pytest.mark.rpc(UPDATE, "error")
async def test_every_wrong_field_of_a_policy_is_named(monitor: Monitor) -> None:
    wrong = policy_pb.MonitoringPolicy(
        window_duration=Duration(seconds=1),
        false_discovery_rate=1,
        positive_label="nobody",
        minimum_effects={"vibes": 1},
        slices=[
            _domestic(),
            policy_pb.Slice(name="domestic", feature="amount", minimum=5, maximum=5),
            policy_pb.Slice(name="odd", feature="colour", values=[FeatureValue(string_value="red")]),
            policy_pb.Slice(name="typed", feature="items", values=[FeatureValue(string_value="red")]),
            policy_pb.Slice(name="none", feature="items"),
        ],
        fairness_groups=[policy_pb.FairnessGroup(feature="gender")],
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _update(monitor, wrong)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _details(caught.value) == (
        "INVALID_FIELD",
        [
            "monitoring_policy.window_duration",
            "monitoring_policy.false_discovery_rate",
            "monitoring_policy.minimum_effects",
            "monitoring_policy.slices[1].name",
            "monitoring_policy.slices[1].maximum",
            "monitoring_policy.slices[2].feature",
            "monitoring_policy.slices[3].values[0]",
            "monitoring_policy.slices[4]",
            "monitoring_policy.fairness_groups[0].feature",
            "monitoring_policy.positive_label",
        ],
    )


@pytest.mark.rpc(GET, "error")
async def test_a_model_that_the_registry_does_not_know_has_no_policy(monitor: Monitor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await monitor.policies.GetMonitoringPolicy(pb.GetMonitoringPolicyRequest(name="monitoringPolicies/nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    monitor.registry.is_down = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await monitor.policies.GetMonitoringPolicy(pb.GetMonitoringPolicyRequest(name="monitoringPolicies/nobody"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.rpc(LIST, "error")
async def test_a_list_of_policies_refuses_a_negative_page(monitor: Monitor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await monitor.policies.ListMonitoringPolicies(pb.ListMonitoringPoliciesRequest(page_size=-1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
