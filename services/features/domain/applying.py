"""Definitions become what somebody wants them to be: all or nothing, and never under a registered version's feet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.common.errors import Violation, echo
from services.common.refusals import EtagMismatch, refuse
from services.features.domain.catalog import CompiledView, compile_view
from services.features.domain.definition_check import check_entity, check_names, check_view, with_conforming_defaults
from services.features.domain.definition_diff import Change, ChangeKind, diff
from services.features.domain.definition_store import Definitions, DefinitionTransaction, VersionRegistry
from services.features.domain.definitions import Definition, Entity, FeatureView
from services.features.domain.failure import INVALID_DEFINITION, DefinitionInUse
from services.features.domain.file_roots import FileRoots
from services.features.domain.signature_fit import hurt_versions

BLOCKING_LIMIT: Final = 1_000
_QUIET: Final = (ChangeKind.UNCHANGED, ChangeKind.DELETED)


@dataclass(frozen=True, slots=True)
class ApplyOrder:
    """What definitions should become, with files under `roots`.

    `wanted` is by path in the request, `wrong` what is wrong with its form already.
    """

    wanted: Mapping[str, Definition]
    delete_missing: bool
    validate_only: bool
    source_revision: str
    roots: FileRoots
    wrong: tuple[Violation, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What has changed, by resource name, and what there is now."""

    changes: tuple[Change, ...]
    definitions: Definitions


async def apply(transaction: DefinitionTransaction, registry: VersionRegistry, order: ApplyOrder) -> Applied:
    """Make the definitions what the order says, or only say what would change.

    Raises InvalidRequest with everything that is wrong, EtagMismatch, DefinitionInUse when a registered version would
    be hurt (not with validate_only), RegistryUnavailable when that cannot be known.
    """
    current = transaction.definitions
    refuse([*order.wrong, *_check(current, order)], INVALID_DEFINITION)
    wanted = {each.name: _sound(each) for each in order.wanted.values()}
    _check_etags(current, wanted)
    after = {**({} if order.delete_missing else current.by_name), **wanted}
    names = sorted(wanted if not order.delete_missing else {*wanted, *current.by_name})
    changes = [diff(current.by_name.get(name), after.get(name)) for name in names]
    changes = await _with_blocking_versions(changes, after, registry)
    if order.validate_only:
        return Applied(tuple(changes), current)
    _refuse_blocked(changes)
    put = [_stamped(transaction, wanted[each.resource]) for each in changes if each.kind not in _QUIET]
    delete = [each.resource for each in changes if each.kind is ChangeKind.DELETED]
    if not put and not delete:
        return Applied(tuple(changes), current)
    return Applied(tuple(changes), await transaction.store(put, delete, changes, order.source_revision))


def _check(current: Definitions, order: ApplyOrder) -> Iterator[Violation]:
    """Yield what is wrong with the definitions wanted: by themselves, beside each other, and after what is there."""
    held = [] if order.delete_missing else list(current.by_name)
    yield from check_names(held, {path: each.name for path, each in order.wanted.items()})
    known = {each.id for each in order.wanted.values() if isinstance(each, Entity)}
    if not order.delete_missing:
        known |= current.entities.keys()
    for path, wanted in order.wanted.items():
        before = current.by_name.get(wanted.name)
        if isinstance(wanted, Entity):
            yield from check_entity(wanted, path)
            if isinstance(before, Entity) and wanted.key_type and wanted.key_type is not before.key_type:
                want = before.key_type.value if before.key_type else "none"
                yield Violation(f"{path}.key_type", f"want {want}, which is set once; got {wanted.key_type.value}")
            continue
        yield from check_view(wanted, order.roots, path)
        for index, entity in enumerate(wanted.entities):
            if entity not in known:
                yield Violation(f"{path}.entities[{index}]", f"want an entity that is defined, got {echo(entity)}")
        if isinstance(before, FeatureView) and wanted.entities != before.entities:
            want = f"want [{', '.join(before.entities)}], which is set once; delete the view first"
            yield Violation(f"{path}.entities", f"{want}; got [{', '.join(wanted.entities)}]")


def _sound(definition: Definition) -> Definition:
    return definition if isinstance(definition, Entity) else with_conforming_defaults(definition)


def _check_etags(current: Definitions, wanted: Mapping[str, Definition]) -> None:
    for name, definition in wanted.items():
        before = current.by_name.get(name)
        etag = before.etag if before else ""
        if definition.etag and definition.etag != etag:
            raise EtagMismatch(name, etag, definition.etag)


async def _with_blocking_versions(
    changes: Sequence[Change], after: Mapping[str, Definition], registry: VersionRegistry
) -> list[Change]:
    """Return the changes with the versions that they would hurt; nobody is asked when nothing breaks."""
    broken = {each.resource: _compiled(after, each.resource) for each in changes if each.broken_features}
    if not broken:
        return list(changes)
    bindings = await registry.bindings([name.partition("/")[2] for name in broken])
    found = []
    for change in changes:
        mine = [each for each in bindings if f"featureViews/{each.view}" == change.resource]
        hurt = hurt_versions(change, mine, broken.get(change.resource))
        found.append(replace(change, blocking_versions=tuple(hurt[:BLOCKING_LIMIT])))
    return found


def _compiled(after: Mapping[str, Definition], name: str) -> CompiledView | None:
    view = after.get(name)
    if not isinstance(view, FeatureView):
        return None
    return compile_view(view, {each.id: each for each in after.values() if isinstance(each, Entity)})


def _refuse_blocked(changes: Sequence[Change]) -> None:
    blocked = {each.resource: each.blocking_versions for each in changes if each.blocking_versions}
    if blocked:
        raise DefinitionInUse(blocked)


def _stamped(transaction: DefinitionTransaction, wanted: Definition) -> Definition:
    before = transaction.definitions.by_name.get(wanted.name)
    return replace(
        wanted,
        create_time=before.create_time if before else transaction.now,
        update_time=transaction.now,
        etag=f"{transaction.definitions.version + 1:x}",
    )
