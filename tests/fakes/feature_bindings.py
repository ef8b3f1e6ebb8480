"""A registry for the tests of features: it says who fetches what, when a test lets it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from interlock.registry.v1 import control_service_pb2 as pb
from interlock.registry.v1.control_service_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server
from interlock.types.v1.signature_pb2 import FeatureSpec


class FakeBindings(ControlServiceServicer):
    """Knows bindings by version; gives them one a page, so that everybody pages."""

    def __init__(self) -> None:
        self.bindings: list[pb.FeatureBinding] = []
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def bind(self, version: str, **spec: Any) -> None:
        self.bindings.append(pb.FeatureBinding(model_version=version, feature_spec=FeatureSpec(**spec)))

    async def ListFeatureBindings(
        self, request: pb.ListFeatureBindingsRequest, context: Any
    ) -> pb.ListFeatureBindingsResponse:
        self.asked.set()
        await self.may_answer.wait()
        wanted = [each for each in self.bindings if view_of(each) in request.feature_views]
        start = int(request.page_token or "0")
        token = str(start + 1) if start + 1 < len(wanted) else ""
        return pb.ListFeatureBindingsResponse(feature_bindings=wanted[start : start + 1], next_page_token=token)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield

    async def ReportReplica(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


def view_of(binding: pb.FeatureBinding) -> str:
    return binding.feature_spec.source.rpartition(".")[0]


@asynccontextmanager
async def serve_bindings(fake: FakeBindings, address: str) -> AsyncIterator[None]:
    """Serve the fake while the block runs."""
    server = grpc.aio.server()
    add_ControlServiceServicer_to_server(fake, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
