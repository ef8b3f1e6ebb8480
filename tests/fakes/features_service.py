"""The real features service in this process, over a real Unix socket, and definitions for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from interlock.features.v1 import feature_view_service_pb2 as pb
from interlock.features.v1.entity_pb2 import Entity
from interlock.features.v1.feature_view_pb2 import Feature, FeatureView, PushSource
from interlock.features.v1.feature_view_service_pb2_grpc import FeatureViewServiceStub
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_DOUBLE, FEATURE_TYPE_INT64, FEATURE_TYPE_STRING

from services.common.server import Serving, serving
from services.features.app import build
from services.features.settings import Settings
from tests.fakes.ports import free_offset
from tests.fakes.registry_service import short_folder


@dataclass
class Features:
    """A running features service and a client of its definitions."""

    serving: Serving[Settings]
    address: str
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.views = FeatureViewServiceStub(self.channel)

    async def apply(self, *definitions: Entity | FeatureView, **fields: Any) -> pb.ApplyFeatureDefinitionsResponse:
        return await self.views.ApplyFeatureDefinitions(apply_request(*definitions, **fields))

    async def view(self, view_id: str = "carrier_delays") -> FeatureView:
        return (await self.views.GetFeatureView(pb.GetFeatureViewRequest(name=f"featureViews/{view_id}"))).feature_view

    async def names(self) -> list[str]:
        """The names of all definitions."""
        entities = await self.views.ListEntities(pb.ListEntitiesRequest())
        views = await self.views.ListFeatureViews(pb.ListFeatureViewsRequest())
        return [*(each.name for each in entities.entities), *(each.name for each in views.feature_views)]


@asynccontextmanager
async def running_features(
    state_dir: Path, *, tcp: bool = False, address: str = "", **settings: Any
) -> AsyncIterator[Features]:
    """Run features on a Unix socket of its own while the block runs, with a client on it."""
    values = {"drain_delay_s": 0, "drain_grace_s": 2, "definition_poll_s": 0.05, **settings}
    # A test's files lie beside the state folder, if not in it.
    values.setdefault("features_file_roots", [f"file://{state_dir.parent}"])
    found = Settings(state_dir=state_dir, port_offset=free_offset(), **values)
    with short_folder() as folder:
        address = address or (found.address_of("features") if tcp else f"unix:{folder / 'features.sock'}")
        async with (
            serving("features", found, build, [address]) as running,
            grpc.aio.insecure_channel(address) as channel,
        ):
            yield Features(running, address, channel)


def apply_request(*definitions: Entity | FeatureView, **fields: Any) -> pb.ApplyFeatureDefinitionsRequest:
    return pb.ApplyFeatureDefinitionsRequest(
        entities=[each for each in definitions if isinstance(each, Entity)],
        feature_views=[each for each in definitions if isinstance(each, FeatureView)],
        **fields,
    )


def hours(count: float) -> Duration:
    found = Duration()
    found.FromTimedelta(timedelta(hours=count))
    return found


def an_entity(entity_id: str = "carrier", **fields: Any) -> Entity:
    return Entity(**{"name": f"entities/{entity_id}", "key_type": FEATURE_TYPE_STRING, **fields})


def a_view(view_id: str = "carrier_delays", **fields: Any) -> FeatureView:
    """A pushed view of carriers: the mean delay of at most 36 hours ago, and a count that may be as old as it likes."""
    values: dict[str, Any] = {
        "name": f"featureViews/{view_id}",
        "entities": ["entities/carrier"],
        "features": [
            Feature(name="delay_mean", type=FEATURE_TYPE_DOUBLE, max_age=hours(36), description="Minutes"),
            Feature(name="flight_count", type=FEATURE_TYPE_INT64),
        ],
        "owner": "ops@example.org",
        **fields,
    }
    if not {"push_source", "batch_source", "on_demand_source", "aggregate_source"} & fields.keys():
        values["push_source"] = PushSource()
    return FeatureView(**values)
