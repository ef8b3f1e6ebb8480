"""Models, versions, aliases and environments: what there is, whether or not it serves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from services.common import names
from services.common.refusals import EtagMismatch, ResourceNotFound
from services.registry.domain.failure import ResourceExists
from services.registry.domain.ports import Change, Scope, Selection, View
from services.registry.domain.resource import (
    FIRST_ENVIRONMENTS,
    Deployment,
    Environment,
    Model,
    ModelVersion,
    ResourceT,
)
from services.registry.domain.version import VersionDraft, is_alias

MODEL_FIELDS = ("description", "owner", "labels")


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """What should change of a model: values by field name. An empty etag means: whatever the model is now."""

    name: str
    values: Mapping[str, Any]
    etag: str = ""


async def require(view: View, kind: type[ResourceT], name: str) -> ResourceT:
    """Return the resource of that name; raises ResourceNotFound."""
    found = await view.find(kind, name)
    if found is None:
        raise ResourceNotFound(name)
    return found


async def refuse_clash(view: View, name: str) -> None:
    """Raise ResourceExists when the name is taken, also by one that differs in case only."""
    holder = await view.holder(name)
    if holder is not None:
        raise ResourceExists(name, holder)


def check_etag(name: str, current: str, given: str) -> None:
    """Raise EtagMismatch when an etag was given and is not the current one."""
    if given and given != current:
        raise EtagMismatch(name, current, given)


async def create_model(change: Change, name: str, values: Mapping[str, Any]) -> Model:
    """Create a model; `values` are its description, owner and labels."""
    await refuse_clash(change, name)
    model = Model(name=name, create_time=change.now, update_time=change.now, etag=change.etag, **values)
    await change.put(model)
    return model


async def update_model(change: Change, update: ModelUpdate) -> Model:
    """Change what the update names; an update that changes nothing leaves the etag as it is."""
    model = await require(change, Model, update.name)
    check_etag(model.name, model.etag, update.etag)
    if replace(model, **update.values) == model:
        return model
    return await _put_model(change, model, **update.values)


async def create_version(change: Change, model_name: str, draft: VersionDraft) -> ModelVersion:
    """Register a version under the next id of its model; its semantic label must be free."""
    model = await require(change, Model, model_name)
    version_id = str(int(model.latest_version or "0") + 1)
    if draft.semantic_version:
        await refuse_clash(change, f"{model.name}/versions/{draft.semantic_version}")
    version = ModelVersion(
        name=f"{model.name}/versions/{version_id}",
        semantic_version=draft.semantic_version,
        digest=draft.digest(),
        fetched_features=draft.fetched_features,
        creator=change.author.principal,
        create_time=change.now,
        document=draft.document,
    )
    await change.put(version)
    await _put_model(change, model, latest_version=version_id)
    return version


async def resolve_version(view: View, name: str) -> ModelVersion:
    """Return the version that a name means; its last part is an id, a semantic label or an alias."""
    model_id, reference = names.VERSION.parse(name)
    if not is_alias(reference):
        return await require(view, ModelVersion, name)
    model = await require(view, Model, names.MODEL.format(model_id))
    if reference not in model.aliases:
        raise ResourceNotFound(name)
    return await require(view, ModelVersion, f"{model.name}/versions/{model.aliases[reference]}")


async def set_alias(change: Change, model_name: str, alias: str, reference: str) -> Model:
    """Point an alias at a version, given by id or semantic label."""
    model = await require(change, Model, model_name)
    version = await require(change, ModelVersion, f"{model_name}/versions/{reference}")
    for other in model.aliases:
        if other != alias and other.lower() == alias.lower():
            raise ResourceExists(f"{model_name}/versions/{alias}", f"{model_name}/versions/{other}")
    if model.aliases.get(alias) == version.version_id:
        return model
    return await _put_aliases(change, model, {**model.aliases, alias: version.version_id})


async def delete_alias(change: Change, model_name: str, alias: str) -> Model:
    """Remove an alias."""
    model = await require(change, Model, model_name)
    if alias not in model.aliases:
        raise ResourceNotFound(f"{model_name}/versions/{alias}")
    kept = {other: version for other, version in model.aliases.items() if other != alias}
    return await _put_aliases(change, model, kept)


async def create_environment(change: Change, name: str, description: str) -> Environment:
    """Create an environment."""
    await refuse_clash(change, name)
    environment = Environment(name=name, description=description, create_time=change.now)
    await change.put(environment)
    return environment


async def create_first_environments(change: Change) -> None:
    """Create the environments that exist from the start, in a registry that has seen no change yet."""
    if change.epoch:
        return
    for environment, description in FIRST_ENVIRONMENTS.items():
        await create_environment(change, names.ENVIRONMENT.format(environment), description)


async def _put_aliases(change: Change, model: Model, aliases: Mapping[str, str]) -> Model:
    """Store new aliases and tell the routers of every environment in which the model is deployed."""
    changed = await _put_model(change, model, aliases=aliases)
    deployments = await change.list(Deployment, Selection(model=model.name))
    for environment in sorted({deployment.environment for deployment in deployments}):
        await change.tell(changed, Scope(environment=environment))
    return changed


async def _put_model(change: Change, model: Model, **values: Any) -> Model:
    changed = replace(model, **values, update_time=change.now, etag=change.etag)
    await change.put(changed)
    return changed
