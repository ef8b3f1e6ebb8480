"""One consistent state of the database."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.adapters.row import KINDS, sort_key, time_of, typed
from services.registry.adapters.table import FEATURE_BINDING, HEAD, REPORT, RESOURCE
from services.registry.domain.ports import Selection
from services.registry.domain.replica import ReplicaStatus, State
from services.registry.domain.resource import FeatureBinding, ResourceT

_SELECTABLE: Final = ("model", "model_version", "environment", "pool")


class Head:
    """The one row of `head`: where the registry stands."""

    def __init__(self, registry_id: str, epoch: int, time_us: int, kept_after: int) -> None:
        self.registry_id = registry_id
        self.epoch = epoch
        self.time_us = time_us
        self.kept_after = kept_after


async def read_head(connection: AsyncConnection) -> Head:
    """Return where the registry stands, in the state that the connection sees."""
    row = (await connection.execute(select(HEAD))).mappings().one()
    return Head(row["registry_id"], row["epoch"], row["time_us"], row["kept_after"])


class SqlView:
    """Reads on one connection; see `ports.View`."""

    def __init__(self, connection: AsyncConnection, now_us: int, epoch: int) -> None:
        self._connection = connection
        self._now_us = now_us
        self._epoch = epoch

    @property
    def now(self) -> datetime:
        """The database's time."""
        return time_of(self._now_us)

    @property
    def epoch(self) -> int:
        """Epoch of the last change."""
        return self._epoch

    async def find(self, kind: type[ResourceT], name: str) -> ResourceT | None:
        """Return the resource of that name; a version is found by its semantic label too."""
        named = or_(RESOURCE.c.name == name, RESOURCE.c.other_name == name)
        query = select(RESOURCE.c.body).where(RESOURCE.c.kind == KINDS[kind], named)
        body = await self._connection.scalar(query)
        return None if body is None else typed(kind, body)

    async def holder(self, name: str) -> str | None:
        """Return the name of the resource that a new one of this name would clash with, case aside."""
        folded = name.lower()
        clash = or_(RESOURCE.c.folded_name == folded, RESOURCE.c.folded_other_name == folded)
        found: str | None = await self._connection.scalar(select(RESOURCE.c.name).where(clash).limit(1))
        return found

    async def list(
        self, kind: type[ResourceT], selection: Selection, after: str = "", limit: int | None = None
    ) -> list[ResourceT]:
        """Return resources in the order of their kind, those after the one named `after`."""
        query = select(RESOURCE.c.body).where(RESOURCE.c.kind == KINDS[kind])
        for column in _SELECTABLE:
            wanted = getattr(selection, column)
            if wanted:
                query = query.where(RESOURCE.c[column] == wanted)
        if after:
            query = query.where(RESOURCE.c.sort_key > sort_key(kind, after))
        bodies = await self._connection.scalars(query.order_by(RESOURCE.c.sort_key).limit(limit))
        return [typed(kind, body) for body in bodies]

    async def feature_bindings(
        self, views: Collection[str], after: tuple[str, str], limit: int
    ) -> Sequence[FeatureBinding]:
        """Return what versions fetch from the views, from all when there are none, by version and feature."""
        key = tuple_(FEATURE_BINDING.c.model_version, FEATURE_BINDING.c.feature)
        query = select(FEATURE_BINDING).where(key > after).order_by(*key).limit(limit)
        if views:
            query = query.where(FEATURE_BINDING.c.view.in_(views))
        rows = (await self._connection.execute(query)).mappings()
        return [FeatureBinding(row["model_version"], row["feature"], row["view"], row["spec"]) for row in rows]

    async def statuses(self, deployments: Collection[str]) -> Mapping[str, Sequence[ReplicaStatus]]:
        """Return what replicas say of each deployment, under leases that have not run out."""
        query = select(REPORT).where(REPORT.c.deployment.in_(deployments), REPORT.c.expire_us > self._now_us)
        found: dict[str, list[ReplicaStatus]] = defaultdict(list)
        for row in (await self._connection.execute(query.order_by(REPORT.c.replica_id))).mappings():
            status = ReplicaStatus(row["replica_id"], State(row["state"]), row["message"], time_of(row["time_us"]))
            found[row["deployment"]].append(status)
        return found
