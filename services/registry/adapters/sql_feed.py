"""The log of changes as watchers read it: by scope, from an epoch on."""

import asyncio
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

import structlog
from sqlalchemy import ColumnElement, RowMapping, Table, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.common.refusals import ResourceNotFound
from services.common.storage_failure import DatabaseUnavailable
from services.common.tasks import to_the_end
from services.registry.adapters.bell import Bell
from services.registry.adapters.row import KINDS, VERSION_KIND, resource_of
from services.registry.adapters.sql_view import read_head
from services.registry.adapters.table import CHANGE, HEAD, RESOURCE
from services.registry.domain.failure import WatchTokenExpired
from services.registry.domain.ports import Delta, Scope, Snapshot
from services.registry.domain.resource import Deployment, Environment, Model, Resource, Route

_LOG: Final = structlog.get_logger(part="feed")
_EPOCHS_A_READ: Final = 200


class SqlChangeFeed:
    """See `ports.ChangeFeed`."""

    def __init__(self, database: Database, bell: Bell, registry_id: str) -> None:
        self._database = database
        self._bell = bell
        self._registry_id = registry_id

    @classmethod
    async def open(cls, database: Database, bell: Bell) -> "SqlChangeFeed":
        """Return the feed of a database that has its identity."""
        async with database.read() as connection:
            head = await read_head(connection)
        bell.ring(head.epoch)
        return cls(database, bell, head.registry_id)

    @property
    def registry_id(self) -> str:
        """Identity of the database."""
        return self._registry_id

    async def snapshot(self, scope: Scope) -> Snapshot:
        """Return everything within the scope; ResourceNotFound for an unknown environment."""
        # Watchers come and go at any moment.
        return await to_the_end(self._snapshot(scope))

    async def _snapshot(self, scope: Scope) -> Snapshot:
        async with self._database.read() as connection:
            head = await read_head(connection)
            await _require_environment(connection, scope)
            rows = (await connection.execute(_everything(scope))).all()
        return Snapshot(head.epoch, tuple(resource_of(kind, body) for kind, body in rows))

    async def deltas(self, scope: Scope, after: int) -> tuple[list[Delta], int]:
        """Return what changed within the scope after an epoch, and the epoch up to which that is complete."""
        return await to_the_end(self._deltas(scope, after))

    async def _deltas(self, scope: Scope, after: int) -> tuple[list[Delta], int]:
        async with self._database.read() as connection:
            head = await read_head(connection)
            if not head.kept_after <= after <= head.epoch:
                raise WatchTokenExpired
            reached = min(head.epoch, after + _EPOCHS_A_READ)
            rows = (await connection.execute(_changes(scope, after, reached))).mappings().all()
        grouped = groupby(rows, key=lambda row: int(row["epoch"]))
        return [_delta(epoch, changes) for epoch, changes in grouped], reached

    async def wait(self, epoch: int, timeout_s: float) -> None:
        """Return once there is a later epoch, or after the time-out; WatchEnded when the process drains."""
        await self._bell.wait(epoch, timeout_s)

    async def poll(self, interval_s: float) -> None:
        """Notice what other processes change, for ever; asks only while somebody watches."""
        while True:
            await asyncio.sleep(interval_s)
            if not self._bell.waiting:
                continue
            try:
                await to_the_end(self._ring())
            except DatabaseUnavailable:
                # Watchers find out for themselves at the next heartbeat.
                _LOG.warning("poll_failed")

    async def _ring(self) -> None:
        async with self._database.read() as connection:
            self._bell.ring(await connection.scalar(select(HEAD.c.epoch)) or 0)


async def _require_environment(connection: AsyncConnection, scope: Scope) -> None:
    if not scope.environment:
        return
    name = f"environments/{scope.environment}"
    query = select(RESOURCE.c.name).where(RESOURCE.c.kind == KINDS[Environment], RESOURCE.c.name == name)
    if await connection.scalar(query) is None:
        raise ResourceNotFound(name)


def _within(table: Table, scope: Scope) -> ColumnElement[bool]:
    if scope.environment:
        return table.c.environment == scope.environment
    return table.c.pool == scope.pool


def _everything(scope: Scope) -> Any:
    deployments = and_(RESOURCE.c.kind == KINDS[Deployment], _within(RESOURCE, scope))
    routes = and_(RESOURCE.c.kind == KINDS[Route], _within(RESOURCE, scope))
    wanted = deployments | routes | RESOURCE.c.name.in_(select(RESOURCE.c.model_version).where(deployments))
    if scope.environment:
        # For their aliases, which only routers resolve.
        models = RESOURCE.c.name.in_(select(RESOURCE.c.model).where(deployments))
        wanted |= and_(RESOURCE.c.kind == KINDS[Model], models)
    return select(RESOURCE.c.kind, RESOURCE.c.body).where(wanted)


def _changes(scope: Scope, after: int, reached: int) -> Any:
    version = and_(CHANGE.c.kind == VERSION_KIND, CHANGE.c.name == RESOURCE.c.name)
    return (
        select(
            CHANGE.c.epoch,
            CHANGE.c.kind,
            CHANGE.c.name,
            CHANGE.c.gone,
            func.coalesce(CHANGE.c.body, RESOURCE.c.body).label("body"),
        )
        .join(RESOURCE, version, isouter=True)
        .where(_within(CHANGE, scope), CHANGE.c.epoch > after, CHANGE.c.epoch <= reached)
        .order_by(CHANGE.c.epoch, CHANGE.c.ordinal)
    )


def _delta(epoch: int, changes: Iterable[RowMapping]) -> Delta:
    """Return one change; of a resource that it stored twice the last form counts."""
    last: dict[str, Resource | None] = {}
    for row in changes:
        last[row["name"]] = None if row["gone"] else resource_of(row["kind"], row["body"])
    upserted = tuple(resource for resource in last.values() if resource is not None)
    return Delta(epoch, upserted, tuple(name for name, resource in last.items() if resource is None))
