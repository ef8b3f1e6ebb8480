"""The route table of the edge, derived from the contract: which path goes where, and what is switched off on it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto

from services.common.http_rules import PLAIN_SEGMENT, HttpRule, rules_of_set, services_of

# Served by every service, described by no file of ours; the edge answers them for the router.
COMMON_UNARY_SERVICES: Final = ("grpc.health.v1.Health",)
COMMON_STREAMS: Final = (
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


class RouteKind(StrEnum):
    """What a route carries; the template switches filters and time limits by it."""

    HOT_GRPC = "hot_grpc"
    HOT_REST = "hot_rest"
    GRPC = "grpc"
    GRPC_STREAM = "grpc_stream"
    REST = "rest"
    REST_STREAM = "rest_stream"


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the table; the first match wins. `match` is Envoy's own path specifier and its value."""

    kind: RouteKind
    match: tuple[str, str]
    cluster: str
    verb: str = ""
    """Only this HTTP method, any when empty."""
    grpc_only: bool = False
    """Only requests that are gRPC, whatever their path."""

    @property
    def hot(self) -> bool:
        """Whether Python inside Envoy answers it."""
        return self.kind in (RouteKind.HOT_GRPC, RouteKind.HOT_REST)

    @property
    def streams(self) -> bool:
        """Whether it has an idle time-out instead of a cap."""
        return self.kind in (RouteKind.GRPC_STREAM, RouteKind.REST_STREAM)

    @property
    def rest(self) -> bool:
        """Whether its bodies are buffered and limited by the edge."""
        return self.kind in (RouteKind.HOT_REST, RouteKind.REST)


@dataclass(frozen=True, slots=True)
class PublicArea:
    """The public services of one process and the cluster that reaches it."""

    cluster: str
    services: tuple[str, ...]


class RouteConflict(ValueError):
    """Two areas claim the same path, or a hot method is not in the descriptor set."""


def route_table(
    descriptors: FileDescriptorSet, areas: Iterable[PublicArea], hot: frozenset[str] = frozenset()
) -> tuple[Route, ...]:
    """Return the whole table; the first area is the default and takes every path that nobody claims.

    `hot` holds full method names (`package.Service/Method`), empty when no Python runs inside. Raises `RouteConflict`.
    """
    known = services_of(descriptors)
    areas = tuple(areas)
    _check(areas, known, hot)
    rules = rules_of_set(descriptors)
    default = areas[0].cluster
    return (
        *_hot_routes(rules, hot, default),
        *(route for area in areas for route in _grpc_routes(area, known)),
        *_common_routes(default),
        *_rest_routes(areas, rules),
        # A stream to nowhere must be refused when it begins, not buffered until it ends.
        Route(RouteKind.GRPC, ("prefix", "/"), default, grpc_only=True),
        Route(RouteKind.REST, ("prefix", "/"), default),
    )


def _check(areas: tuple[PublicArea, ...], known: Mapping[str, ServiceDescriptorProto], hot: frozenset[str]) -> None:
    wanted = {name for area in areas for name in area.services} | {name.split("/")[0] for name in hot}
    missing = sorted(wanted - set(known))
    if missing:
        raise RouteConflict(f"services in no descriptor: {', '.join(missing)}; run `make gen`")


def _hot_routes(rules: Iterable[HttpRule], hot: frozenset[str], cluster: str) -> Iterator[Route]:
    for name in sorted(hot):
        yield Route(RouteKind.HOT_GRPC, ("path", f"/{name}"), cluster, grpc_only=True)
        # The same for gRPC-Web, which is no gRPC to Envoy's matcher.
        yield Route(RouteKind.HOT_GRPC, ("path", f"/{name}"), cluster)
    for rule in rules:
        if rule.twin and f"{rule.service}/{rule.method}" in hot:
            match = ("safe_regex", rule.template.regex(PLAIN_SEGMENT))
            yield Route(RouteKind.HOT_REST, match, cluster, verb=rule.verb)


def _grpc_routes(area: PublicArea, known: Mapping[str, ServiceDescriptorProto]) -> Iterator[Route]:
    for name in area.services:
        for method in known[name].method:
            if _streams(method):
                yield Route(RouteKind.GRPC_STREAM, ("path", f"/{name}/{method.name}"), area.cluster)
        yield Route(RouteKind.GRPC, ("prefix", f"/{name}/"), area.cluster)


def _streams(method: MethodDescriptorProto) -> bool:
    return method.client_streaming or method.server_streaming


def _common_routes(cluster: str) -> Iterator[Route]:
    for path in COMMON_STREAMS:
        yield Route(RouteKind.GRPC_STREAM, ("path", path), cluster)
    for name in COMMON_UNARY_SERVICES:
        yield Route(RouteKind.GRPC, ("prefix", f"/{name}/"), cluster)


def _rest_routes(areas: tuple[PublicArea, ...], rules: tuple[HttpRule, ...]) -> Iterator[Route]:
    """Streams by their exact path, then everything by the literal head of its path, longest first."""
    owner = {service: area.cluster for area in areas for service in area.services}
    for rule in rules:
        if rule.service in owner and (rule.client_streaming or rule.server_streaming):
            match = ("safe_regex", rule.template.regex())
            yield Route(RouteKind.REST_STREAM, match, owner[rule.service], verb=rule.verb)
    for head, cluster in sorted(_heads(rules, owner).items(), key=lambda item: -len(item[0])):
        # A custom verb (`/v1/models:search`) is not a path segment, so the prefix match does not cover it.
        yield Route(RouteKind.REST, ("path_separated_prefix", head), cluster)
        yield Route(RouteKind.REST, ("prefix", f"{head}:"), cluster)


def _heads(rules: Iterable[HttpRule], owner: Mapping[str, str]) -> dict[str, str]:
    clusters: defaultdict[str, set[str]] = defaultdict(set)
    for rule in rules:
        if rule.service in owner:
            clusters[rule.template.head].add(owner[rule.service])
    for head, claimants in clusters.items():
        if len(claimants) > 1:
            raise RouteConflict(f"the REST path {head} is claimed by {', '.join(sorted(claimants))}")
    return {head: next(iter(claimants)) for head, claimants in clusters.items()}
