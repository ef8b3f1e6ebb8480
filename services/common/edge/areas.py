"""Which services stand behind the edge, and what of each is public."""

from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.common.edge.config import Area, Upstream
from services.common.edge.settings import EdgeSettings
from services.common.http_rules import rules_of_set, services_of

ROUTER: Final = "router"
OPEN_INFERENCE: Final = "inference.GRPCInferenceService"
# Public too: it streams both ways, for which REST has no form.
_STREAMS: Final = frozenset({"interlock.features.v1.OfflineFeatureService"})


def area_services(
    area: str, settings: EdgeSettings, descriptors: FileDescriptorSet, hot: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Return the public services of an area, sorted.

    Public is what has a REST path, itself or through its HttpBody twin, or is in _STREAMS: internal RPCs carry none. The router and
    whoever has a door of its own are public as a whole, with the Open Inference Protocol. The setting `edge_services`
    goes before.
    """
    if area in settings.edge_services:
        return tuple(sorted(settings.edge_services[area]))
    prefix = f"interlock.{area}."
    known = services_of(descriptors)
    if area == ROUTER or hot:
        own = {name for name in known if name.startswith(prefix)}
        facade = {OPEN_INFERENCE} & set(known)
        return tuple(sorted(own | facade | {name.split("/")[0] for name in hot}))
    rules = [rule for rule in rules_of_set(descriptors) if rule.service.startswith(prefix)]
    spoken_for = {(_package(rule.service), rule.method) for rule in rules if rule.twin}
    typed = {name for name in known if any((_package(name), rpc.name) in spoken_for for rpc in known[name].method)}
    streams = {name for name in known if name.startswith(prefix) and name in _STREAMS}
    return tuple(sorted({rule.service for rule in rules} | typed | streams))


def _package(service: str) -> str:
    return service.rpartition(".")[0]


def edge_areas(router: Area, settings: EdgeSettings, descriptors: FileDescriptorSet) -> tuple[Area, ...]:
    """Return the router's area, the default, and those of the other services that have something public."""
    peers = {
        "registry": settings.registry_address,
        "features": settings.features_address,
        "monitor": settings.monitor_address,
    }
    others = (
        Area(Upstream(name, address), services)
        for name, address in peers.items()
        if (services := area_services(name, settings, descriptors))
    )
    return (router, *others)
