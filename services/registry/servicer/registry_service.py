"""RegistryService: what people and tools ask the registry."""

from interlock.registry.v1 import registry_service_pb2 as pb

from services.common import names
from services.common.call import Call
from services.registry.convert.audit import entry_to_proto
from services.registry.convert.request import (
    alias_of,
    alias_target,
    as_of_time,
    deploy_order,
    deployment_selection,
    deployment_update,
    environment_description,
    model_update,
    model_values,
    new_name,
    route_parent,
    route_update,
)
from services.registry.convert.resource import (
    deployment_with_state,
    environment_to_proto,
    model_to_proto,
    route_to_proto,
    version_to_proto,
)
from services.registry.convert.version_draft import version_draft, with_sizes
from services.registry.domain import catalog, deploying, traffic
from services.registry.domain.log import verify_log
from services.registry.domain.ports import ArtifactStore, Change, FeatureGate, Selection, Store
from services.registry.domain.resource import Deployment, Environment, Model, ModelVersion, Route
from services.registry.domain.traffic import route_as_of
from services.registry.domain.upload import artifact_sizes
from services.registry.servicer.once import once
from services.registry.servicer.page import cut, is_name, is_sequence, is_version_name, page_of

_PREDICT_PATH = "/v1/predict"


class RegistryServicer:
    """One method for each RPC of RegistryService."""

    def __init__(self, store: Store, artifacts: ArtifactStore, features: FeatureGate) -> None:
        self._features = features
        self._store = store
        self._artifacts = artifacts

    async def CreateModel(self, request: pb.CreateModelRequest, call: Call) -> pb.CreateModelResponse:
        """Create a model."""
        name = new_name(names.MODEL, request.model_id, "model_id")
        values = model_values(request.model)

        async def work(change: Change) -> pb.CreateModelResponse:
            return pb.CreateModelResponse(model=model_to_proto(await catalog.create_model(change, name, values)))

        return await once(self._store, request, call, pb.CreateModelResponse, work)

    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """Give a model."""
        names.MODEL.parse(request.name)
        async with self._store.view() as view:
            return pb.GetModelResponse(model=model_to_proto(await catalog.require(view, Model, request.name)))

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """List models by name."""
        page = page_of(request, "models", is_name(names.MODEL))
        async with self._store.view() as view:
            found, token = cut(page, await view.list(Model, Selection(), page.after, page.size + 1))
        return pb.ListModelsResponse(models=map(model_to_proto, found), next_page_token=token)

    async def UpdateModel(self, request: pb.UpdateModelRequest, call: Call) -> pb.UpdateModelResponse:
        """Change a model's description, owner or labels."""
        update = model_update(request)

        async def work(change: Change) -> pb.UpdateModelResponse:
            return pb.UpdateModelResponse(model=model_to_proto(await catalog.update_model(change, update)))

        return await once(self._store, request, call, pb.UpdateModelResponse, work)

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, call: Call
    ) -> pb.CreateModelVersionResponse:
        """Register an immutable version."""
        names.MODEL.parse(request.parent, "parent")
        draft = version_draft(request)
        draft = with_sizes(draft, await artifact_sizes(self._artifacts, [file.digest for file in draft.files]))

        async def work(change: Change) -> pb.CreateModelVersionResponse:
            version = await catalog.create_version(change, request.parent, draft)
            return pb.CreateModelVersionResponse(model_version=version_to_proto(version))

        return await once(self._store, request, call, pb.CreateModelVersionResponse, work)

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, call: Call) -> pb.GetModelVersionResponse:
        """Give a version by its id, semantic label or alias."""
        async with self._store.view() as view:
            version = await catalog.resolve_version(view, request.name)
        return pb.GetModelVersionResponse(model_version=version_to_proto(version))

    async def ListModelVersions(self, request: pb.ListModelVersionsRequest, call: Call) -> pb.ListModelVersionsResponse:
        """List versions of a model, newest first."""
        names.MODEL.parse(request.parent, "parent")
        page = page_of(request, "versions", is_version_name, parent=request.parent)
        async with self._store.view() as view:
            await catalog.require(view, Model, request.parent)
            selection = Selection(model=request.parent)
            found, token = cut(page, await view.list(ModelVersion, selection, page.after, page.size + 1))
        return pb.ListModelVersionsResponse(model_versions=map(version_to_proto, found), next_page_token=token)

    async def SetModelAlias(self, request: pb.SetModelAliasRequest, call: Call) -> pb.SetModelAliasResponse:
        """Point an alias at a version."""
        alias, target = alias_of(request), alias_target(request)

        async def work(change: Change) -> pb.SetModelAliasResponse:
            model = await catalog.set_alias(change, request.model, alias, target)
            return pb.SetModelAliasResponse(model=model_to_proto(model))

        return await once(self._store, request, call, pb.SetModelAliasResponse, work)

    async def DeleteModelAlias(self, request: pb.DeleteModelAliasRequest, call: Call) -> pb.DeleteModelAliasResponse:
        """Remove an alias."""
        alias = alias_of(request)

        async def work(change: Change) -> pb.DeleteModelAliasResponse:
            model = await catalog.delete_alias(change, request.model, alias)
            return pb.DeleteModelAliasResponse(model=model_to_proto(model))

        return await once(self._store, request, call, pb.DeleteModelAliasResponse, work)

    async def CreateEnvironment(self, request: pb.CreateEnvironmentRequest, call: Call) -> pb.CreateEnvironmentResponse:
        """Create an environment."""
        name = new_name(names.ENVIRONMENT, request.environment_id, "environment_id")
        description = environment_description(request)

        async def work(change: Change) -> pb.CreateEnvironmentResponse:
            environment = await catalog.create_environment(change, name, description)
            return pb.CreateEnvironmentResponse(environment=environment_to_proto(environment))

        return await once(self._store, request, call, pb.CreateEnvironmentResponse, work)

    async def GetEnvironment(self, request: pb.GetEnvironmentRequest, call: Call) -> pb.GetEnvironmentResponse:
        """Give an environment."""
        names.ENVIRONMENT.parse(request.name)
        async with self._store.view() as view:
            environment = await catalog.require(view, Environment, request.name)
        return pb.GetEnvironmentResponse(environment=environment_to_proto(environment))

    async def ListEnvironments(self, request: pb.ListEnvironmentsRequest, call: Call) -> pb.ListEnvironmentsResponse:
        """List environments by name."""
        page = page_of(request, "environments", is_name(names.ENVIRONMENT))
        async with self._store.view() as view:
            found, token = cut(page, await view.list(Environment, Selection(), page.after, page.size + 1))
        return pb.ListEnvironmentsResponse(environments=map(environment_to_proto, found), next_page_token=token)

    async def DeployModel(self, request: pb.DeployModelRequest, call: Call) -> pb.DeployModelResponse:
        """Ask that a version be loaded and given a share of the traffic."""
        order, pins = deploy_order(request), None

        async def work(change: Change) -> pb.DeployModelResponse:
            deployment = deployment_with_state(await deploying.deploy(change, order, pins), ())
            return pb.DeployModelResponse(
                deployment_id=deployment.name.rpartition("/")[2],
                status=deployment.state,
                endpoint=_PREDICT_PATH,
                deployment=deployment,
            )

        # Features are asked outside of the transaction, and again only when an alias has moved meanwhile.
        while True:
            try:
                return await once(self._store, request, call, pb.DeployModelResponse, work)
            except deploying.FeatureCheckNeeded as needed:
                pins = await deploying.check_features(self._features, needed.version)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, call: Call) -> pb.GetDeploymentResponse:
        """Give a deployment with its state as it is now."""
        names.DEPLOYMENT.parse(request.name)
        async with self._store.view() as view:
            deployment = await catalog.require(view, Deployment, request.name)
            statuses = await view.statuses([deployment.name])
        return pb.GetDeploymentResponse(deployment=deployment_with_state(deployment, statuses.get(deployment.name, ())))

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, call: Call) -> pb.ListDeploymentsResponse:
        """List deployments by name, with their states."""
        selection = deployment_selection(request)
        filters = {"model": request.model, "environment": request.environment, "pool": request.pool}
        page = page_of(request, "deployments", is_name(names.DEPLOYMENT), **filters)
        async with self._store.view() as view:
            found, token = cut(page, await view.list(Deployment, selection, page.after, page.size + 1))
            statuses = await view.statuses([each.name for each in found])
        messages = [deployment_with_state(each, statuses.get(each.name, ())) for each in found]
        return pb.ListDeploymentsResponse(deployments=messages, next_page_token=token)

    async def UpdateDeployment(self, request: pb.UpdateDeploymentRequest, call: Call) -> pb.UpdateDeploymentResponse:
        """Change the batching policy of a deployment while it serves."""
        update = deployment_update(request)

        async def work(change: Change) -> pb.UpdateDeploymentResponse:
            deployment = await deploying.update_deployment(change, update)
            statuses = await change.statuses([deployment.name])
            message = deployment_with_state(deployment, statuses.get(deployment.name, ()))
            return pb.UpdateDeploymentResponse(deployment=message, epoch=change.new_epoch)

        return await once(self._store, request, call, pb.UpdateDeploymentResponse, work)

    async def DeleteDeployment(self, request: pb.DeleteDeploymentRequest, call: Call) -> pb.DeleteDeploymentResponse:
        """Ask that a version be unloaded."""
        names.DEPLOYMENT.parse(request.name)

        async def work(change: Change) -> pb.DeleteDeploymentResponse:
            await deploying.delete_deployment(change, request.name, request.etag)
            return pb.DeleteDeploymentResponse()

        return await once(self._store, request, call, pb.DeleteDeploymentResponse, work)

    async def GetRoute(self, request: pb.GetRouteRequest, call: Call) -> pb.GetRouteResponse:
        """Give a route as it is, or as it was at a time."""
        names.ROUTE.parse(request.name)
        route = await route_as_of(self._store, request.name, as_of_time(request))
        return pb.GetRouteResponse(route=route_to_proto(route))

    async def ListRoutes(self, request: pb.ListRoutesRequest, call: Call) -> pb.ListRoutesResponse:
        """List routes by name."""
        model = route_parent(request)
        page = page_of(request, "routes", is_name(names.ROUTE), parent=request.parent)
        async with self._store.view() as view:
            if model:
                await catalog.require(view, Model, model)
            found, token = cut(page, await view.list(Route, Selection(model=model), page.after, page.size + 1))
        return pb.ListRoutesResponse(routes=map(route_to_proto, found), next_page_token=token)

    async def UpdateRoute(self, request: pb.UpdateRouteRequest, call: Call) -> pb.UpdateRouteResponse:
        """Change a route's variants and weights."""
        update = route_update(request)

        async def work(change: Change) -> pb.UpdateRouteResponse:
            route = await traffic.update_route(change, update)
            return pb.UpdateRouteResponse(route=route_to_proto(route), epoch=change.new_epoch)

        return await once(self._store, request, call, pb.UpdateRouteResponse, work)

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, call: Call) -> pb.ListAuditEntriesResponse:
        """List entries of the log of changes, oldest first."""
        page = page_of(request, "auditEntries", is_sequence, resource=request.resource)
        found = await self._store.audit_entries(request.resource, int(page.after or "0"), page.size + 1)
        token = page.next_token(str(found[page.size - 1].sequence)) if len(found) > page.size else ""
        return pb.ListAuditEntriesResponse(audit_entries=map(entry_to_proto, found[: page.size]), next_page_token=token)

    async def VerifyAuditLog(self, request: pb.VerifyAuditLogRequest, call: Call) -> pb.VerifyAuditLogResponse:
        """Recompute the chain of the log of changes."""
        verdict = await verify_log(self._store)
        return pb.VerifyAuditLogResponse(
            intact=not verdict.first_broken_sequence,
            first_broken_sequence=verdict.first_broken_sequence,
            entry_count=verdict.entry_count,
            head_hash=verdict.head_hash,
        )
