"""Deployments and routes in the registry."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
from google.protobuf import field_mask_pb2
from interlock.registry.v1 import deployment_pb2, registry_service_pb2_grpc, route_pb2
from interlock.registry.v1 import registry_service_pb2 as pb

from interlock_sdk.channel import Caller, new_request_id
from interlock_sdk.errors import CallError, DeploymentFailed, DeploymentNotReady

DEFAULT_ENVIRONMENT = "production"

_POLL_S = 0.2


class Deployments:
    """Versions that should be loaded, and what has become of them."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = registry_service_pb2_grpc.RegistryServiceStub(caller.channel)

    async def create(
        self,
        model: str,
        version: str,
        *,
        environment: str = DEFAULT_ENVIRONMENT,
        pool: str = "",
        replicas: int = 0,
        traffic_percent: float | None = None,
        batching: deployment_pb2.BatchingPolicy | None = None,
    ) -> deployment_pb2.Deployment:
        """Asks that a version be loaded and, once READY, be given a share of the traffic. Answers before it is loaded."""
        request = pb.DeployModelRequest(
            model=model,
            version=version,
            environment=environment,
            pool=pool,
            replicas=replicas,
            traffic_percent=traffic_percent,
            batching=batching,
            request_id=new_request_id(),
        )
        return (await self._caller.call(self._stub.DeployModel, request)).deployment

    async def get(self, name: str) -> deployment_pb2.Deployment:
        """Gives a deployment by its name, `deployments/{deployment}`."""
        return (await self._caller.call(self._stub.GetDeployment, pb.GetDeploymentRequest(name=name))).deployment

    async def set_batching(
        self, name: str, policy: deployment_pb2.BatchingPolicy, fields: Sequence[str], *, etag: str = ""
    ) -> pb.UpdateDeploymentResponse:
        """Changes fields of a deployment's batching policy while it serves; one that `policy` does not set gets its default.

        The answer holds the changed deployment, and the epoch from which on replicas follow it. Raises CallError with
        ABORTED when an etag is given and the deployment has changed since it was read.
        """
        request = pb.UpdateDeploymentRequest(
            deployment=deployment_pb2.Deployment(name=name, batching=policy, etag=etag),
            update_mask=field_mask_pb2.FieldMask(paths=[f"batching.{field}" for field in fields]),
            request_id=new_request_id(),
        )
        return await self._caller.call(self._stub.UpdateDeployment, request)

    async def list(self, model: str = "", environment: str = "") -> AsyncIterator[deployment_pb2.Deployment]:
        """Walks deployments by name, of one model and environment or of all."""

        async def fetch(page_token: str) -> pb.ListDeploymentsResponse:
            request = pb.ListDeploymentsRequest(model=model, environment=environment, page_token=page_token)
            return await self._caller.call(self._stub.ListDeployments, request)

        async for page in self._caller.pages(fetch):
            for deployment in page.deployments:
                yield deployment

    async def wait_until_ready(
        self, name: str, *, timeout_s: float, on_state: Callable[[str], None] | None = None
    ) -> deployment_pb2.Deployment:
        """Waits for a replica that serves the deployment; `on_state` hears each state that is seen, such as "LOADING".

        Raises:
            DeploymentFailed: a replica says that it cannot, and none can.
            DeploymentNotReady: the time is over.
        """
        state = "PENDING"
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    deployment = await self.get(name)
                    state = state_word(deployment)
                    if on_state is not None:
                        on_state(state)
                    if deployment.state == deployment_pb2.DEPLOYMENT_STATE_READY:
                        return deployment
                    if deployment.state == deployment_pb2.DEPLOYMENT_STATE_FAILED:
                        raise DeploymentFailed(name, deployment.state_message)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DeploymentNotReady(name, state, timeout_s) from None


class Routes:
    """The traffic policy of each model and environment."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = registry_service_pb2_grpc.RegistryServiceStub(caller.channel)

    async def get(self, model: str, environment: str = DEFAULT_ENVIRONMENT) -> route_pb2.Route | None:
        """Gives a route, or None when nothing of the model has had traffic in the environment."""
        request = pb.GetRouteRequest(name=f"models/{model}/routes/{environment}")
        try:
            return (await self._caller.call(self._stub.GetRoute, request)).route
        except CallError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def list(self, model: str = "-") -> AsyncIterator[route_pb2.Route]:
        """Walks the routes of one model, or of all."""

        async def fetch(page_token: str) -> pb.ListRoutesResponse:
            request = pb.ListRoutesRequest(parent=f"models/{model}", page_token=page_token)
            return await self._caller.call(self._stub.ListRoutes, request)

        async for page in self._caller.pages(fetch):
            for route in page.routes:
                yield route

    async def set_variants(
        self, route: route_pb2.Route, variants: Sequence[route_pb2.Variant]
    ) -> pb.UpdateRouteResponse:
        """Gives a route other variants; weights are basis points and add up to 10,000.

        The answer holds the changed route, and the epoch from which on routers use it. Raises CallError with ABORTED when
        the route has changed since it was read.
        """
        changed = route_pb2.Route(name=route.name, variants=variants, etag=route.etag)
        mask = field_mask_pb2.FieldMask(paths=["variants"])
        request = pb.UpdateRouteRequest(route=changed, update_mask=mask, request_id=new_request_id())
        return await self._caller.call(self._stub.UpdateRoute, request)


def state_word(deployment: deployment_pb2.Deployment) -> str:
    """Gives a deployment's state as one word, for example "READY"; a value that this release does not know as a number."""
    if deployment.state not in deployment_pb2.DeploymentState.values():
        return str(deployment.state)
    return deployment_pb2.DeploymentState.Name(deployment.state).removeprefix("DEPLOYMENT_STATE_")
