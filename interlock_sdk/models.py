"""Models and their versions in the registry."""

from collections.abc import AsyncIterator

import grpc
from interlock.registry.v1 import model_pb2, model_version_pb2, registry_service_pb2_grpc
from interlock.registry.v1 import registry_service_pb2 as pb

from interlock_sdk.channel import Caller, new_request_id
from interlock_sdk.errors import CallError


class Models:
    """Models by id, and their versions by id, semantic label or alias."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = registry_service_pb2_grpc.RegistryServiceStub(caller.channel)

    async def ensure(self, model: str, *, description: str = "", owner: str = "") -> model_pb2.Model:
        """Creates a model, or gives the one that has the id already, unchanged."""
        wanted = model_pb2.Model(description=description, owner=owner)
        request = pb.CreateModelRequest(model_id=model, model=wanted, request_id=new_request_id())
        try:
            return (await self._caller.call(self._stub.CreateModel, request)).model
        except CallError as error:
            if error.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
        return await self.get(model)

    async def get(self, model: str) -> model_pb2.Model:
        """Gives a model."""
        return (await self._caller.call(self._stub.GetModel, pb.GetModelRequest(name=f"models/{model}"))).model

    async def list(self) -> AsyncIterator[model_pb2.Model]:
        """Walks all models, by name."""

        async def fetch(page_token: str) -> pb.ListModelsResponse:
            return await self._caller.call(self._stub.ListModels, pb.ListModelsRequest(page_token=page_token))

        async for page in self._caller.pages(fetch):
            for model in page.models:
                yield model

    async def register(self, model: str, version: model_version_pb2.ModelVersion) -> model_version_pb2.ModelVersion:
        """Registers an immutable version whose files have been uploaded; the answer carries its name and digest."""
        request = pb.CreateModelVersionRequest(
            parent=f"models/{model}", model_version=version, request_id=new_request_id()
        )
        return (await self._caller.call(self._stub.CreateModelVersion, request)).model_version

    async def version(self, model: str, version: str) -> model_version_pb2.ModelVersion:
        """Gives a version by its id, semantic label or alias."""
        request = pb.GetModelVersionRequest(name=f"models/{model}/versions/{version}")
        return (await self._caller.call(self._stub.GetModelVersion, request)).model_version

    async def versions(self, model: str) -> AsyncIterator[model_version_pb2.ModelVersion]:
        """Walks the versions of a model, newest first."""

        async def fetch(page_token: str) -> pb.ListModelVersionsResponse:
            request = pb.ListModelVersionsRequest(parent=f"models/{model}", page_token=page_token)
            return await self._caller.call(self._stub.ListModelVersions, request)

        async for page in self._caller.pages(fetch):
            for version in page.model_versions:
                yield version

    async def set_alias(self, model: str, alias: str, version: str) -> model_pb2.Model:
        """Points an alias at a version."""
        request = pb.SetModelAliasRequest(
            model=f"models/{model}", alias=alias, version=version, request_id=new_request_id()
        )
        return (await self._caller.call(self._stub.SetModelAlias, request)).model
