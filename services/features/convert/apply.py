"""What somebody wants defined, read from the contract; and what that changes, as the contract says it."""

from typing import Any, Final, cast

from interlock.features.v1 import entity_pb2, feature_view_pb2
from interlock.features.v1 import feature_view_service_pb2 as pb

from services.common import names
from services.common.errors import Violation
from services.common.refusals import InvalidRequest
from services.common.stamp import enum_to_proto
from services.common.text_check import check_text
from services.features.convert.definition import entity_from_proto, view_from_proto
from services.features.domain.applying import ApplyOrder
from services.features.domain.definition_diff import Change
from services.features.domain.definitions import Definition
from services.features.domain.file_roots import FileRoots

RESOURCE_LIMIT: Final = 1_000
REVISION_LIMIT_CHARS: Final = 200


def apply_order(request: pb.ApplyFeatureDefinitionsRequest, roots: FileRoots) -> ApplyOrder:
    """Return what a request wants defined; what is wrong with names is told with everything else."""
    count = len(request.entities) + len(request.feature_views)
    if count > RESOURCE_LIMIT:
        raise InvalidRequest([Violation("feature_views", f"want at most {RESOURCE_LIMIT} resources, got {count}")])
    wanted: dict[str, Definition] = {}
    wrong = list(check_text(request.source_revision, "source_revision", REVISION_LIMIT_CHARS))
    for index, entity in enumerate(request.entities):
        path = f"entities[{index}]"
        wrong += _given(names.ENTITY.violation(entity.name, f"{path}.name"))
        wanted[path] = entity_from_proto(_cleaned(entity))
    for index, view in enumerate(request.feature_views):
        path = f"feature_views[{index}]"
        wrong += _given(names.FEATURE_VIEW.violation(view.name, f"{path}.name"))
        for number, name in enumerate(view.entities):
            wrong += _given(names.ENTITY.violation(name, f"{path}.entities[{number}]"))
        wanted[path] = view_from_proto(_cleaned(view))
    return ApplyOrder(
        wanted, request.delete_missing, request.validate_only, request.source_revision, roots, tuple(wrong)
    )


def change_to_proto(change: Change) -> pb.DefinitionChange:
    """Return the contract's change."""
    kind = cast("pb.ChangeKind.ValueType", enum_to_proto(change.kind, pb.ChangeKind, "CHANGE_KIND_"))
    fields = [pb.FieldChange(path=each.path, before=each.before, after=each.after) for each in change.fields]
    return pb.DefinitionChange(
        resource=change.resource, kind=kind, fields=fields, blocking_versions=change.blocking_versions
    )


def _cleaned(message: Any) -> Any:
    """Return the message without what is ours to say."""
    copy: entity_pb2.Entity | feature_view_pb2.FeatureView = type(message)()
    copy.CopyFrom(message)
    copy.ClearField("create_time")
    copy.ClearField("update_time")
    return copy


def _given(wrong: Violation | None) -> list[Violation]:
    return [] if wrong is None else [wrong]
