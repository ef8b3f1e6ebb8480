"""Requests as the domain's values: what cannot be right whatever is stored is refused here, all of it at once."""

import math
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from interlock.registry.v1 import deployment_pb2, model_pb2, route_pb2
from interlock.registry.v1 import registry_service_pb2 as pb

from services.common import names
from services.common.errors import INVALID_NAME, Violation, echo
from services.common.refusals import InvalidRequest
from services.common.stamp import enum_from_proto, time_from_proto
from services.common.text_check import check_pairs, check_text
from services.registry.convert.batching import batching_from_proto
from services.registry.convert.resource import (
    DEVICE_PREFIX,
    failure_policy_from_proto,
    fallback_from_proto,
    variant_from_proto,
)
from services.registry.domain.batching_check import check_batching
from services.registry.domain.catalog import MODEL_FIELDS, ModelUpdate
from services.registry.domain.deploying import REPLICA_LIMIT, DeploymentUpdate, DeployOrder
from services.registry.domain.failure import NotActedUpon, refuse
from services.registry.domain.ports import Selection
from services.registry.domain.resource import DEFAULT_ENVIRONMENT, DEFAULT_POOL, DeviceClass, Variant
from services.registry.domain.route_check import check_route_values
from services.registry.domain.traffic import SALT_LIMIT_CHARS, RouteUpdate
from services.registry.domain.version import is_alias, is_semantic_version, is_version_id

DESCRIPTION_LIMIT_CHARS: Final = 10_000
OWNER_LIMIT_CHARS: Final = 200
LABEL_LIMIT: Final = 64
LABEL_LIMIT_CHARS: Final = 128
ENVIRONMENT_DESCRIPTION_LIMIT_CHARS: Final = 1_000
_BASIS_POINTS: Final = 100
_PERCENT_PRECISION: Final = 1e-6
_ALL_MODELS: Final = "models/-"
_NOT_ACTED_UPON: Final = ("layer", "shadow", "cache", "guardrails")
_POLICY: Final = "batching"
_FIXED_FIELDS: Final = ("model_version", "environment", "pool", "replicas", "device_class")
_ROUTE_FIELDS: Final = ("variants", "fallback", "feature_failure_policy", "redacted_features")


def new_name(form: names.NameFormat, new_id: str, field: str) -> str:
    """Return the name of a resource that is to be created under an id of the caller's choice."""
    return form.format(names.parse_id(new_id, field))


def model_values(message: model_pb2.Model, fields: Collection[str] = MODEL_FIELDS) -> dict[str, Any]:
    """Return those of a model's fields that callers set, checked."""
    wrong = [
        *check_text(message.description, "model.description", DESCRIPTION_LIMIT_CHARS),
        *check_text(message.owner, "model.owner", OWNER_LIMIT_CHARS),
        *check_pairs(
            message.labels,
            "model.labels",
            limit=LABEL_LIMIT,
            key_chars=LABEL_LIMIT_CHARS,
            value_chars=LABEL_LIMIT_CHARS,
        ),
    ]
    refuse(wrong)
    values = {"description": message.description, "owner": message.owner, "labels": dict(message.labels)}
    return {field: values[field] for field in fields}


def model_update(request: pb.UpdateModelRequest) -> ModelUpdate:
    """Return what a request wants changed of a model."""
    names.MODEL.parse(request.model.name, "model.name")
    fields = masked_fields(request.model, request.update_mask, MODEL_FIELDS)
    return ModelUpdate(request.model.name, model_values(request.model, fields), request.model.etag)


def masked_fields(message: Message, mask: FieldMask, settable: Sequence[str]) -> list[str]:
    """Return which fields a mask names: without one those that are set, with "*" all; ours to say are left out."""
    if not mask.paths:
        populated = {field.name for field, _ in message.ListFields()}
        return [field for field in settable if field in populated]
    if "*" in mask.paths:
        return list(settable)
    unknown = [path for path in mask.paths if path not in message.DESCRIPTOR.fields_by_name]
    if unknown:
        want = f"want fields of {message.DESCRIPTOR.name} such as {', '.join(settable)}"
        raise InvalidRequest([Violation("update_mask", f"{want}; got {echo(path)}") for path in unknown])
    return [field for field in settable if field in mask.paths]


def environment_description(request: pb.CreateEnvironmentRequest) -> str:
    """Return what a new environment is for."""
    text = request.environment.description
    refuse(list(check_text(text, "environment.description", ENVIRONMENT_DESCRIPTION_LIMIT_CHARS)))
    return text


def alias_of(request: pb.SetModelAliasRequest | pb.DeleteModelAliasRequest) -> str:
    """Return the alias in a request."""
    names.MODEL.parse(request.model, "model")
    if not is_alias(request.alias):
        want = "want 1 to 128 letters, digits, _ and -, with a letter first"
        raise InvalidRequest([Violation("alias", f"{want}; got {echo(request.alias)}")], INVALID_NAME)
    return request.alias


def alias_target(request: pb.SetModelAliasRequest) -> str:
    """Return the id or semantic label that an alias should point at."""
    if not (is_version_id(request.version) or is_semantic_version(request.version)) or not names.is_id(request.version):
        want = "want the id or the semantic label of a version"
        raise InvalidRequest([Violation("version", f"{want}, got {echo(request.version)}")], INVALID_NAME)
    return request.version


def deploy_order(request: pb.DeployModelRequest) -> DeployOrder:
    """Return what a request wants deployed; raises InvalidRequest with everything that is wrong with it."""
    order = DeployOrder(
        model=request.model,
        version=request.version,
        environment=request.environment or DEFAULT_ENVIRONMENT,
        pool=request.pool or DEFAULT_POOL,
        replicas=request.replicas or 1,
        device_class=_device_class(request.device_class) or DeviceClass.CPU,
        batching=batching_from_proto(request.batching) if request.HasField("batching") else None,
        share=_share(request),
        deployment_id=request.deployment_id,
    )
    refuse(_order_violations(request, order))
    return order


def _device_class(number: int) -> DeviceClass | None:
    number = number or deployment_pb2.DEVICE_CLASS_CPU
    return enum_from_proto(DeviceClass, deployment_pb2.DeviceClass, DEVICE_PREFIX, number)


def _share(request: pb.DeployModelRequest) -> int | None:
    percent = request.traffic_percent
    if not request.HasField("traffic_percent") or not math.isfinite(percent):
        return None
    return round(percent * _BASIS_POINTS)


def _order_violations(request: pb.DeployModelRequest, order: DeployOrder) -> list[Violation]:
    ids = {"model": order.model, "version": order.version, "environment": order.environment, "pool": order.pool}
    if order.deployment_id:
        ids["deployment_id"] = order.deployment_id
    wrong = [found for field, value in ids.items() if (found := names.id_violation(value, field)) is not None]
    if not 1 <= order.replicas <= REPLICA_LIMIT:
        wrong.append(Violation("replicas", f"want 1 to {REPLICA_LIMIT}, got {order.replicas}"))
    if _device_class(request.device_class) is None:
        wrong.append(Violation("device_class", "want DEVICE_CLASS_CPU or DEVICE_CLASS_GPU, got neither"))
    if order.batching is not None:
        wrong += check_batching(order.batching, "batching")
    return [*wrong, *_percent_violations(request)]


def _percent_violations(request: pb.DeployModelRequest) -> list[Violation]:
    percent = request.traffic_percent
    if not 0 <= percent <= _BASIS_POINTS:
        return [Violation("traffic_percent", f"want 0 to 100, got {percent:g}")]
    if abs(percent * _BASIS_POINTS - round(percent * _BASIS_POINTS)) > _PERCENT_PRECISION:
        return [Violation("traffic_percent", f"want at most two decimals, got {percent!r}")]
    return []


def deployment_update(request: pb.UpdateDeploymentRequest) -> DeploymentUpdate:
    """Return what a request wants changed of a deployment, and what it says of that which never changes."""
    message = request.deployment
    names.DEPLOYMENT.parse(message.name, "deployment.name")
    policy = batching_from_proto(message.batching)
    fixed: dict[str, Any] = {field: getattr(message, field) for field in _FIXED_FIELDS}
    fixed["device_class"] = _device_class(message.device_class)
    if fixed["device_class"] is None:
        refuse([Violation("deployment.device_class", "want the deployment's own, got none that there is")])
    told = {field.name for field, _ in message.ListFields()} | set(request.update_mask.paths)
    return DeploymentUpdate(
        name=message.name,
        policy={field: getattr(policy, field) for field in _policy_fields(request)},
        fixed={field: value for field, value in fixed.items() if field in told},
        etag=message.etag,
    )


def _policy_fields(request: pb.UpdateDeploymentRequest) -> list[str]:
    """Return which fields of the policy a request names: without a mask those that are set."""
    known = deployment_pb2.BatchingPolicy.DESCRIPTOR.fields_by_name
    paths = request.update_mask.paths
    if not paths:
        return [field.name for field, _ in request.deployment.batching.ListFields()]
    settable = {f"{_POLICY}.{field}": field for field in known}
    unknown = [path for path in paths if path not in (*settable, *request.deployment.DESCRIPTOR.fields_by_name, "*")]
    want = f"want {_POLICY} or a field of it, such as {_POLICY}.max_delay"
    refuse([Violation("update_mask", f"{want}; got {echo(path)}") for path in unknown])
    if "*" in paths or _POLICY in paths:
        return list(known)
    return [settable[path] for path in paths if path in settable]


def deployment_selection(request: pb.ListDeploymentsRequest) -> Selection:
    """Return which deployments a request wants listed."""
    given = {"model": request.model, "environment": request.environment, "pool": request.pool}
    wrong = [names.id_violation(value, field) for field, value in given.items() if value]
    refuse([violation for violation in wrong if violation is not None])
    model = names.MODEL.format(request.model) if request.model else ""
    return Selection(model=model, environment=request.environment, pool=request.pool)


def route_parent(request: pb.ListRoutesRequest) -> str:
    """Return the name of the model whose routes are wanted, empty for all."""
    if request.parent == _ALL_MODELS:
        return ""
    names.MODEL.parse(request.parent, "parent")
    return request.parent


def as_of_time(request: pb.GetRouteRequest) -> datetime | None:
    """Return the time at which a route is wanted, None for now."""
    if not request.HasField("as_of_time"):
        return None
    try:
        return time_from_proto(request.as_of_time)
    except ValueError:
        want = "want a time from year 1 to 9999 with 0 to 999,999,999 nanoseconds"
        raise InvalidRequest([Violation("as_of_time", f"{want}, got none")]) from None


def route_update(request: pb.UpdateRouteRequest) -> RouteUpdate:
    """Return what a request wants changed of a route; NotActedUpon for fields that nobody would act upon."""
    names.ROUTE.parse(request.route.name, "route.name")
    _refuse_not_acted_upon(request)
    given: dict[str, Any] = {
        "variants": tuple(_variant_from_caller(variant) for variant in request.route.variants),
        "fallback": fallback_from_proto(request.route.fallback),
        "feature_failure_policy": failure_policy_from_proto(request.route.feature_failure_policy),
        "redacted_features": tuple(request.route.redacted_features),
    }
    values = {field: given[field] for field in masked_fields(request.route, request.update_mask, _ROUTE_FIELDS)}
    wrong = list(check_text(request.route.salt, "route.salt", SALT_LIMIT_CHARS))
    if request.route.feature_failure_policy and not given["feature_failure_policy"]:
        wrong.append(Violation("route.feature_failure_policy", "want DEFAULTS, FALLBACK or REFUSE, got none of them"))
    refuse(wrong + check_route_values(values, "route"))
    variants = values.pop("variants", None)
    return RouteUpdate(request.route.name, variants, values, request.route.salt, request.route.etag)


def _refuse_not_acted_upon(request: pb.UpdateRouteRequest) -> None:
    populated = {field.name for field, _ in request.route.ListFields()}
    for field in _NOT_ACTED_UPON:
        if field in populated or field in request.update_mask.paths:
            raise NotActedUpon(f"route.{field}", "nothing acts upon it")
    for index, rung in enumerate(request.route.fallback.rungs):
        if rung.HasField("cached_max_age"):
            raise NotActedUpon(f"route.fallback.rungs[{index}].cached_max_age", "nothing acts upon it")


def _variant_from_caller(message: route_pb2.Variant) -> Variant:
    variant = variant_from_proto(message)
    # Buckets are ours to say.
    return Variant(variant.name, variant.deployment, variant.weight)
