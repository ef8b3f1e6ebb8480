"""A features service for the registry's tests: it says of a signature what a test told it to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.rpc.code_pb2 import FAILED_PRECONDITION
from google.rpc.status_pb2 import Status
from interlock.features.v1 import feature_view_service_pb2 as pb
from interlock.features.v1.feature_view_service_pb2_grpc import (
    FeatureViewServiceServicer,
    add_FeatureViewServiceServicer_to_server,
)


class FakeFeatureViews(FeatureViewServiceServicer):
    """Knows every view by a digest that is its id twice, unless a feature is in `wrong`, with what is wrong with it."""

    def __init__(self) -> None:
        self.wrong: dict[str, str] = {}
        self.asked = 0

    async def CheckSignature(self, request: pb.CheckSignatureRequest, context: Any) -> pb.CheckSignatureResponse:
        self.asked += 1
        answer = pb.CheckSignatureResponse()
        for feature in request.signature.features:
            view = feature.source.rpartition(".")[0]
            if view:
                answer.view_digests[view] = view * 2
            if feature.name in self.wrong:
                error = Status(code=FAILED_PRECONDITION, message=self.wrong[feature.name])
                answer.violations.add(feature=feature.name, source=feature.source, error=error)
        return answer

    async def ApplyFeatureDefinitions(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def GetEntity(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def ListEntities(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def GetFeatureView(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def ListFeatureViews(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def serve_feature_views(fake: FakeFeatureViews, address: str) -> AsyncIterator[None]:
    """Serve the fake while the block runs."""
    server = grpc.aio.server()
    add_FeatureViewServiceServicer_to_server(fake, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
