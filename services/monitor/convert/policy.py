"""Monitoring policies between the contract and the domain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from interlock.monitor.v1 import monitoring_policy_pb2 as pb
from interlock.monitor.v1 import monitoring_policy_service_pb2 as service_pb

from services.common.errors import Violation, echo
from services.common.names import NameFormat
from services.common.refusals import InvalidRequest, request_id_of
from services.monitor.convert.time import duration_from_proto, duration_to_proto, time_to_proto
from services.monitor.convert.value import scalar_from_proto, scalar_to_proto
from services.monitor.domain.policy import (
    DEFAULT_EFFECTS,
    DEFAULT_MINIMUM_COUNT,
    FairnessGroup,
    MonitoringPolicy,
    Slice,
)
from services.monitor.domain.version_info import Scalar

MONITORING_POLICY: Final = NameFormat("monitoringPolicies/{model}")
PATH: Final = "monitoring_policy"


@dataclass(frozen=True, slots=True)
class PolicyUpdate:
    """What somebody wants changed."""

    model: str
    changes: Mapping[str, Any]
    """New values of the domain's fields."""
    etag: str
    request_id: str

    def applied_to(self, policy: MonitoringPolicy) -> MonitoringPolicy:
        """Return the policy with the changes."""
        return replace(policy, **self.changes)


def policy_model(name: str) -> str:
    """Return the model in the name of a policy."""
    (model,) = MONITORING_POLICY.parse(name)
    return model


def policy_update(request: service_pb.UpdateMonitoringPolicyRequest) -> PolicyUpdate:
    """Return what a request wants changed; a field that the mask names and the message leaves out goes to its default."""
    policy = request.monitoring_policy
    (model,) = MONITORING_POLICY.parse(policy.name, f"{PATH}.name")
    wanted = _masked(policy, request.update_mask)
    default = MonitoringPolicy(model)
    changes: dict[str, Any] = {}
    wrong: list[Violation] = []
    for field in wanted:
        name, read = _READ[field]
        changes[name] = read(policy, wrong) if _is_set(policy, field) else getattr(default, name)
    if wrong:
        raise InvalidRequest(wrong)
    return PolicyUpdate(model, changes, policy.etag, request_id_of(request.request_id))


def policy_to_proto(policy: MonitoringPolicy) -> pb.MonitoringPolicy:
    """Return a policy with every default in its place."""
    message = pb.MonitoringPolicy(
        name=MONITORING_POLICY.format(policy.model),
        window_duration=duration_to_proto(policy.window_us),
        slices=[_slice_to_proto(found) for found in policy.slices],
        fairness_groups=[_group_to_proto(found) for found in policy.fairness_groups],
        log_basis_points=policy.log_basis_points,
        log_retention=duration_to_proto(policy.log_retention_us),
        label_retention=duration_to_proto(policy.label_retention_us),
        positive_label=policy.positive_label,
        false_discovery_rate=policy.false_discovery_rate,
        minimum_effects={**DEFAULT_EFFECTS, **policy.minimum_effects},
        etag=policy.etag,
    )
    if policy.update_us:
        message.update_time.CopyFrom(time_to_proto(policy.update_us))
    return message


def _masked(policy: pb.MonitoringPolicy, mask: FieldMask) -> list[str]:
    """Return which fields a mask names: without one those that are set, with "*" all; ours to say are left out."""
    if "*" in mask.paths:
        return list(_READ)
    if not mask.paths:
        return [field for field in _READ if _is_set(policy, field)]
    unknown = [path for path in mask.paths if path not in pb.MonitoringPolicy.DESCRIPTOR.fields_by_name]
    if unknown:
        want = f"want fields of a policy such as {', '.join(_READ)}"
        raise InvalidRequest([Violation("update_mask", f"{want}; got {echo(path)}") for path in unknown])
    return [field for field in _READ if field in mask.paths]


def _is_set(policy: pb.MonitoringPolicy, field: str) -> bool:
    return any(descriptor.name == field for descriptor, _ in policy.ListFields())


def _slices(policy: pb.MonitoringPolicy, wrong: list[Violation]) -> tuple[Slice, ...]:
    return tuple(_slice(found, f"{PATH}.slices[{index}]", wrong) for index, found in enumerate(policy.slices))


def _slice(message: pb.Slice, path: str, wrong: list[Violation]) -> Slice:
    values = [scalar_from_proto(value) for value in message.values]
    for index, value in enumerate(values):
        if value is None:
            wrong.append(Violation(f"{path}.values[{index}]", "want a number, a text or a truth value, got another"))
    return Slice(
        name=message.name,
        feature=message.feature,
        values=tuple(value for value in values if value is not None),
        minimum=message.minimum if message.HasField("minimum") else None,
        maximum=message.maximum if message.HasField("maximum") else None,
    )


def _slice_to_proto(found: Slice) -> pb.Slice:
    return pb.Slice(
        name=found.name,
        feature=found.feature,
        values=[scalar_to_proto(value) for value in found.values],
        minimum=found.minimum,
        maximum=found.maximum,
    )


def _groups(policy: pb.MonitoringPolicy, wrong: list[Violation]) -> tuple[FairnessGroup, ...]:
    return tuple(
        _group(found, f"{PATH}.fairness_groups[{index}]", wrong) for index, found in enumerate(policy.fairness_groups)
    )


def _group(message: pb.FairnessGroup, path: str, wrong: list[Violation]) -> FairnessGroup:
    reference: Scalar | None = None
    if message.HasField("reference_value"):
        reference = scalar_from_proto(message.reference_value)
        if reference is None:
            wrong.append(Violation(f"{path}.reference_value", "want a number, a text or a truth value, got another"))
    return FairnessGroup(message.feature, reference, message.minimum_count or DEFAULT_MINIMUM_COUNT)


def _group_to_proto(found: FairnessGroup) -> pb.FairnessGroup:
    message = pb.FairnessGroup(feature=found.feature, minimum_count=found.minimum_count)
    if found.reference is not None:
        message.reference_value.CopyFrom(scalar_to_proto(found.reference))
    return message


_Read = Callable[[pb.MonitoringPolicy, list[Violation]], Any]
_READ: Final[Mapping[str, tuple[str, _Read]]] = {
    "window_duration": ("window_us", lambda policy, _: duration_from_proto(policy.window_duration)),
    "slices": ("slices", _slices),
    "fairness_groups": ("fairness_groups", _groups),
    "log_basis_points": ("log_basis_points", lambda policy, _: policy.log_basis_points),
    "log_retention": ("log_retention_us", lambda policy, _: duration_from_proto(policy.log_retention)),
    "label_retention": ("label_retention_us", lambda policy, _: duration_from_proto(policy.label_retention)),
    "positive_label": ("positive_label", lambda policy, _: policy.positive_label),
    "false_discovery_rate": ("false_discovery_rate", lambda policy, _: policy.false_discovery_rate),
    "minimum_effects": ("minimum_effects", lambda policy, _: dict(policy.minimum_effects)),
}
