"""Definitions of entities and feature views in the features service."""

from collections.abc import AsyncIterator, Sequence

from interlock.features.v1 import entity_pb2, feature_view_pb2, feature_view_service_pb2_grpc
from interlock.features.v1 import feature_view_service_pb2 as pb

from interlock_sdk.channel import Caller, new_request_id

APPLY_TIMEOUT_S = 10.0


class FeatureViews:
    """Entities and feature views by id; they are changed as a whole."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = feature_view_service_pb2_grpc.FeatureViewServiceStub(caller.channel)

    async def apply(
        self,
        entities: Sequence[entity_pb2.Entity],
        feature_views: Sequence[feature_view_pb2.FeatureView],
        *,
        delete_missing: bool = False,
        validate_only: bool = False,
        source_revision: str = "",
    ) -> pb.ApplyFeatureDefinitionsResponse:
        """Makes the definitions what is given, all or nothing; with `validate_only` it only says what would change."""
        request = pb.ApplyFeatureDefinitionsRequest(
            entities=entities,
            feature_views=feature_views,
            delete_missing=delete_missing,
            validate_only=validate_only,
            source_revision=source_revision,
            request_id=new_request_id(),
        )
        return await self._caller.call(self._stub.ApplyFeatureDefinitions, request, timeout_s=APPLY_TIMEOUT_S)

    async def get(self, view: str) -> feature_view_pb2.FeatureView:
        """Gives a feature view."""
        request = pb.GetFeatureViewRequest(name=f"featureViews/{view}")
        return (await self._caller.call(self._stub.GetFeatureView, request)).feature_view

    async def list(self) -> AsyncIterator[feature_view_pb2.FeatureView]:
        """Walks all feature views, by name."""

        async def fetch(page_token: str) -> pb.ListFeatureViewsResponse:
            request = pb.ListFeatureViewsRequest(page_token=page_token)
            return await self._caller.call(self._stub.ListFeatureViews, request)

        async for page in self._caller.pages(fetch):
            for view in page.feature_views:
                yield view

    async def entities(self) -> AsyncIterator[entity_pb2.Entity]:
        """Walks all entities, by name."""

        async def fetch(page_token: str) -> pb.ListEntitiesResponse:
            return await self._caller.call(self._stub.ListEntities, pb.ListEntitiesRequest(page_token=page_token))

        async for page in self._caller.pages(fetch):
            for entity in page.entities:
                yield entity
