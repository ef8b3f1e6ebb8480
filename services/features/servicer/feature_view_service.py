"""FeatureViewService: definitions are applied as a whole, shown, and compared with what models fetch."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from interlock.features.v1 import feature_view_service_pb2 as pb

from services.common import names
from services.common.call import Call
from services.common.pagination import Page, parse_page
from services.common.refusals import ResourceNotFound, request_id_of
from services.features.convert.apply import apply_order, change_to_proto
from services.features.convert.definition import entity_to_proto, view_to_proto
from services.features.convert.signature import bindings_of, misfit_to_proto
from services.features.domain.applying import apply
from services.features.domain.catalog import Catalog, CompiledView
from services.features.domain.definition_store import DefinitionStore, DefinitionTransaction, VersionRegistry
from services.features.domain.definitions import Definition
from services.features.domain.file_roots import FileRoots
from services.features.domain.signature_fit import check_bindings

_DefinitionT = TypeVar("_DefinitionT", bound=Definition)
ViewDeleted = Callable[[Sequence[CompiledView]], Awaitable[None]]


class FeatureViewServicer:
    """One method for each RPC of FeatureViewService; `on_deleted` hears of the views that have gone."""

    def __init__(
        self,
        store: DefinitionStore,
        catalog: Catalog,
        registry: VersionRegistry,
        roots: FileRoots,
        on_deleted: ViewDeleted,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._registry = registry
        self._roots = roots
        self._on_deleted = on_deleted

    async def ApplyFeatureDefinitions(
        self, request: pb.ApplyFeatureDefinitionsRequest, call: Call
    ) -> pb.ApplyFeatureDefinitionsResponse:
        """Make the definitions what the request says, or only show what would change."""
        request_id, order = request_id_of(request.request_id), apply_order(request, self._roots)
        async with self._store.change(call.principal) as transaction:
            known = await _recall(transaction, request_id, request)
            if known is not None:
                return pb.ApplyFeatureDefinitionsResponse.FromString(known)
            applied = await apply(transaction, self._registry, order)
            answer = pb.ApplyFeatureDefinitionsResponse(
                changes=map(change_to_proto, applied.changes), applied=not order.validate_only
            )
            if request_id:
                await transaction.remember(request_id, _fingerprint(request), answer.SerializeToString())
            before = transaction.definitions.compiled()
        after = applied.definitions.compiled()
        self._catalog.replace(after)
        gone = [view for view in before.views.values() if view.id not in after.views]
        if gone:
            await self._on_deleted(gone)
        return answer

    async def GetEntity(self, request: pb.GetEntityRequest, call: Call) -> pb.GetEntityResponse:
        """Give an entity."""
        (entity_id,) = names.ENTITY.parse(request.name)
        entity = (await self._store.load()).entities.get(entity_id)
        if entity is None:
            raise ResourceNotFound(request.name)
        return pb.GetEntityResponse(entity=entity_to_proto(entity))

    async def ListEntities(self, request: pb.ListEntitiesRequest, call: Call) -> pb.ListEntitiesResponse:
        """List entities by name."""
        page = parse_page(request.page_size, request.page_token, {"kind": "entities"})
        found, token = _cut(page, list((await self._store.load()).entities.values()))
        return pb.ListEntitiesResponse(entities=map(entity_to_proto, found), next_page_token=token)

    async def GetFeatureView(self, request: pb.GetFeatureViewRequest, call: Call) -> pb.GetFeatureViewResponse:
        """Give a feature view."""
        (view_id,) = names.FEATURE_VIEW.parse(request.name)
        view = (await self._store.load()).views.get(view_id)
        if view is None:
            raise ResourceNotFound(request.name)
        return pb.GetFeatureViewResponse(feature_view=view_to_proto(view))

    async def ListFeatureViews(self, request: pb.ListFeatureViewsRequest, call: Call) -> pb.ListFeatureViewsResponse:
        """List feature views by name, all or those of an entity."""
        wanted = names.ENTITY.parse(request.entity, "entity")[0] if request.entity else ""
        page = parse_page(request.page_size, request.page_token, {"kind": "featureViews", "entity": request.entity})
        views = (await self._store.load()).views.values()
        found, token = _cut(page, [view for view in views if not wanted or wanted in view.entities])
        return pb.ListFeatureViewsResponse(feature_views=map(view_to_proto, found), next_page_token=token)

    async def CheckSignature(self, request: pb.CheckSignatureRequest, call: Call) -> pb.CheckSignatureResponse:
        """Tell whether every fetched feature is there as the signature wants it."""
        bindings, request_features = bindings_of(request.signature)
        # In a transaction of its own: an apply that has asked the registry already is finished before we answer.
        async with self._store.change(call.principal) as transaction:
            snapshot = transaction.definitions.compiled()
        misfits = check_bindings(bindings, request_features, snapshot)
        used = {binding.view for binding in bindings} & snapshot.views.keys()
        return pb.CheckSignatureResponse(
            violations=map(misfit_to_proto, misfits), view_digests={view: snapshot.views[view].digest for view in used}
        )


def _cut(page: Page, items: Sequence[_DefinitionT]) -> tuple[Sequence[_DefinitionT], str]:
    """Return the items of a page, from all in their order, and the token of the next."""
    rest = [item for item in items if item.name > page.after]
    return rest[: page.size], page.next_token(rest[page.size - 1].name) if len(rest) > page.size else ""


async def _recall(
    transaction: DefinitionTransaction, request_id: str, request: pb.ApplyFeatureDefinitionsRequest
) -> bytes | None:
    return await transaction.recall(request_id, _fingerprint(request)) if request_id else None


def _fingerprint(request: pb.ApplyFeatureDefinitionsRequest) -> str:
    body = pb.ApplyFeatureDefinitionsRequest()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
