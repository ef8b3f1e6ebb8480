"""A registry for the router's tests: the watch stream over real gRPC, and the resources to push."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NoReturn

import grpc
from interlock.registry.v1 import control_service_pb2 as registry_pb
from interlock.registry.v1 import control_service_pb2_grpc as registry_rpc
from interlock.registry.v1.deployment_pb2 import Deployment
from interlock.registry.v1.model_pb2 import Model
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, ModelVersion
from interlock.registry.v1.route_pb2 import BucketRange, Route, Variant
from interlock.types.v1.signature_pb2 import Signature

_HEARTBEAT_S = 5.0

Resource = registry_pb.WatchedResource


def version_of(model: str, version: int, signature: Signature, semantic: str = "") -> Resource:
    name = f"models/{model}/versions/{version}"
    digest = hashlib.sha256(signature.SerializeToString(deterministic=True)).hexdigest()
    found = ModelVersion(name=name, signature=signature, semantic_version=semantic, runtime=RUNTIME_ONNX, digest=digest)
    return Resource(model_version=found)


def deployment_of(model: str, version: int, *, pool: str = "default", max_batch_size: int = 0) -> Resource:
    found = Deployment(
        name=f"deployments/{model}-{version}",
        model_version=f"models/{model}/versions/{version}",
        environment="production",
        pool=pool,
    )
    if max_batch_size:
        found.batching.max_batch_size = max_batch_size
    return Resource(deployment=found)


def route_of(model: str, shares: Sequence[tuple[int, int]], salt: str = "pepper") -> Resource:
    """A route whose versions have the given shares, in hundredths of a percent; neighbouring buckets each."""
    variants = []
    first = 0
    for version, share in shares:
        buckets = [BucketRange(first=first, last=first + share - 1)] if share else []
        variants.append(
            Variant(
                name=str(version),
                deployment=f"deployments/{model}-{version}",
                weight_basis_points=share,
                buckets=buckets,
            )
        )
        first += share
    return Resource(route=Route(name=f"models/{model}/routes/production", variants=variants, salt=salt))


def model_of(model: str, aliases: dict[str, str]) -> Resource:
    return Resource(model=Model(name=f"models/{model}", aliases=aliases))


def served(model: str, signature: Signature, versions: Sequence[int] = (1,), max_batch_size: int = 0) -> list[Resource]:
    """A model with some versions deployed and all traffic on the first."""
    found = [version_of(model, version, signature, f"1.0.{version}") for version in versions]
    found += [deployment_of(model, version, max_batch_size=max_batch_size) for version in versions]
    return [*found, route_of(model, [(version, 10_000 if version == versions[0] else 0) for version in versions])]


class FakeControl(registry_rpc.ControlServiceServicer):
    """Pushes what tests publish."""

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        self.epoch = 1
        self.resources = list(resources)
        self.watchers = 0
        self.requests: list[registry_pb.WatchRequest] = []
        self._changed = asyncio.Event()

    def publish(self, resources: Iterable[Resource]) -> None:
        self.resources = list(resources)
        self.epoch += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(self, request: registry_pb.WatchRequest, context: Any) -> AsyncIterator[registry_pb.WatchResponse]:
        self.requests.append(request)
        self.watchers += 1
        try:
            while True:
                changed = self._changed
                snapshot = registry_pb.WatchSnapshot(resources=self.resources)
                yield registry_pb.WatchResponse(epoch=self.epoch, resume_token=str(self.epoch), snapshot=snapshot)
                while not changed.is_set():
                    heartbeat = registry_pb.WatchHeartbeat()
                    yield registry_pb.WatchResponse(epoch=self.epoch, resume_token=str(self.epoch), heartbeat=heartbeat)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), _HEARTBEAT_S)
        finally:
            self.watchers -= 1

    async def ReportReplica(self, request: registry_pb.ReportReplicaRequest, context: Any) -> NoReturn:
        raise AssertionError("a router reports no replica")

    async def ListFeatureBindings(self, request: registry_pb.ListFeatureBindingsRequest, context: Any) -> NoReturn:
        raise AssertionError("a router asks for no bindings")


async def serve_control(fake: FakeControl, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    registry_rpc.add_ControlServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port
