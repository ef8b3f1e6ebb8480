"""What the registry pushes, as the domain's configuration."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import structlog
from interlock.registry.v1 import deployment_pb2, model_version_pb2, route_pb2

from services.common.errors import ServiceError
from services.common.names import DEPLOYMENT, MODEL, ROUTE, VERSION
from services.common.watch import Configuration as WatchedConfiguration
from services.common.watch import RegistryWatch
from services.router.convert.signature import signature_from_proto
from services.router.domain.enrichment import FeatureFailurePolicy
from services.router.domain.prediction import RoutingTable
from services.router.domain.routing import (
    DEFAULT_MAX_BATCH_SIZE,
    Configuration,
    Deployment,
    Route,
    Variant,
    Version,
    build_configuration,
    new_version,
)

_LOG: Final = structlog.get_logger("routes")
# The names that clients of the Open Inference Protocol know runtimes by.
_PLATFORMS: Final = {model_version_pb2.RUNTIME_ONNX: "onnx_onnxv1"}
_FEATURE_FAILURE: Final = {
    route_pb2.FEATURE_FAILURE_POLICY_DEFAULTS: FeatureFailurePolicy.DEFAULTS,
    route_pb2.FEATURE_FAILURE_POLICY_FALLBACK: FeatureFailurePolicy.FALLBACK,
    route_pb2.FEATURE_FAILURE_POLICY_REFUSE: FeatureFailurePolicy.REFUSE,
}


class RoutesFollower:
    """Puts every configuration that the registry pushes into force.

    Versions are immutable: each is compiled once, when it first appears.
    """

    def __init__(self, table: RoutingTable, on_applied: Callable[[], None]) -> None:
        self._table = table
        self._on_applied = on_applied
        self._versions: dict[tuple[str, str], Version] = {}
        """By name and digest: a registry that was set up anew gives old names to new versions."""

    async def follow(self, watch: RegistryWatch) -> None:
        """Apply what is known now, and then every change."""
        async for watched in watch.changes():
            self.apply(watched)

    def apply(self, watched: WatchedConfiguration) -> None:
        """Put a configuration into force; one that makes no sense is logged, and the one before stays."""
        try:
            configuration = self._build(watched)
        except (ValueError, ServiceError) as error:
            _LOG.error("configuration_refused", epoch=watched.epoch, error=str(error))
            return
        self._table.apply(configuration)
        _LOG.info("configuration_applied", epoch=watched.epoch, models=len(configuration.models))
        self._on_applied()

    def _build(self, watched: WatchedConfiguration) -> Configuration:
        return build_configuration(
            watched.epoch,
            versions=self._compiled(watched.model_versions()),
            deployments=[_deployment(found) for found in watched.deployments().values()],
            routes=[_route(found) for found in watched.routes().values()],
            aliases=_aliases(watched),
        )

    def _compiled(self, wanted: Mapping[str, model_version_pb2.ModelVersion]) -> Iterable[Version]:
        compiled: dict[tuple[str, str], Version] = {}
        for name, version in wanted.items():
            key = (name, version.digest)
            try:
                compiled[key] = self._versions.get(key) or _version(version)
            except (ValueError, ServiceError) as error:
                # One version from a newer registry must not keep the others from being served.
                _LOG.error("version_refused", version=name, error=str(error))
        self._versions = compiled
        return compiled.values()


def _version(version: model_version_pb2.ModelVersion) -> Version:
    model, version_id = VERSION.parse(version.name)
    return new_version(
        model=model,
        version=version_id,
        signature=signature_from_proto(version.signature),
        runtime=_PLATFORMS.get(version.runtime, ""),
        semantic=version.semantic_version,
    )


def _deployment(deployment: deployment_pb2.Deployment) -> Deployment:
    DEPLOYMENT.parse(deployment.name)
    model, version = VERSION.parse(deployment.model_version, "model_version")
    return Deployment(
        name=deployment.name,
        model=model,
        version=version,
        pool=deployment.pool,
        max_batch_size=deployment.batching.max_batch_size or DEFAULT_MAX_BATCH_SIZE,
    )


def _route(route: route_pb2.Route) -> Route:
    model, _ = ROUTE.parse(route.name)
    variants = tuple(
        Variant(
            variant.name,
            variant.deployment,
            tuple((found.first, found.last) for found in variant.buckets),
            variant.weight_basis_points,
        )
        for variant in route.variants
    )
    return Route(
        model,
        route.salt or route.name,
        variants,
        fallback=tuple(_rungs(route.fallback)),
        feature_failure=_FEATURE_FAILURE.get(route.feature_failure_policy, FeatureFailurePolicy.SIGNATURE),
        redacted=frozenset(route.redacted_features),
    )


def _rungs(ladder: route_pb2.FallbackLadder) -> Iterator[str | float]:
    for rung in ladder.rungs:
        kind = rung.WhichOneof("rung")
        if kind == "deployment":
            yield rung.deployment
        elif kind == "static_prediction":
            yield rung.static_prediction


def _aliases(watched: WatchedConfiguration) -> dict[str, Mapping[str, str]]:
    models = (found.model for found in watched.resources.values() if found.HasField("model"))
    return {MODEL.parse(model.name)[0]: dict(model.aliases) for model in models}
