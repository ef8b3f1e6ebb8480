"""One transaction: every resource that it stores is logged for watchers and audited under the same epoch."""

import hashlib
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.adapters.row import KINDS, VERSION_KIND, audit_row, body_of, resource_row
from services.registry.adapters.sql_view import SqlView
from services.registry.adapters.table import ANSWER, AUDIT, CHANGE, FEATURE_BINDING, HEAD, REPORT, RESOURCE
from services.registry.convert.resource import bindings_of
from services.registry.domain.audit import AuditEntry, Author, ChainHead, seal
from services.registry.domain.failure import RequestIdReused
from services.registry.domain.ports import Scope
from services.registry.domain.replica import ReplicaReport
from services.registry.domain.resource import Model, ModelVersion, Resource

ANSWER_WINDOW: Final = timedelta(hours=24)
_MICROSECOND: Final = timedelta(microseconds=1)


class SqlChange(SqlView):
    """Changes on one connection that holds the lock of all writers; see `ports.Change`."""

    def __init__(
        self, connection: AsyncConnection, now_us: int, epoch: int, *, author: Author, chain: ChainHead
    ) -> None:
        super().__init__(connection, now_us, epoch)
        self._author = author
        self._chain = chain
        self._ordinal = 0

    @property
    def author(self) -> Author:
        """Who makes the change."""
        return self._author

    @property
    def new_epoch(self) -> int:
        """Epoch after the change; that of before when nothing changed."""
        return self._epoch + (self._ordinal > 0)

    @property
    def etag(self) -> str:
        """The etag that resources get by this change: their epoch, for no two changes share one."""
        return f"{self._epoch + 1:x}"

    async def put(self, resource: Resource) -> None:
        """Store a resource that is new or different."""
        before = await self._body(resource.name)
        body = body_of(resource)
        columns = resource_row(resource, body)
        if before is None:
            await self._connection.execute(insert(RESOURCE).values(columns))
            await self._bind_features(resource)
        else:
            await self._connection.execute(update(RESOURCE).where(RESOURCE.c.name == resource.name).values(columns))
        await self._log(resource, columns["environment"], columns["pool"], body)
        await self._audit(resource.name, before, body)

    async def delete(self, resource: Resource) -> None:
        """Remove a resource, and what replicas say of it."""
        before = await self._body(resource.name)
        columns = resource_row(resource, b"")
        await self._connection.execute(delete(RESOURCE).where(RESOURCE.c.name == resource.name))
        await self._connection.execute(delete(REPORT).where(REPORT.c.deployment == resource.name))
        await self._log(resource, columns["environment"], columns["pool"], None)
        await self._audit(resource.name, before, None)

    async def tell(self, resource: Model | ModelVersion, scope: Scope, *, gone: bool = False) -> None:
        """Tell the watchers of `scope` of a version or model that concerns them from now on, or no longer."""
        await self._log(resource, scope.environment, scope.pool, None if gone else body_of(resource))

    async def keep_report(self, report: ReplicaReport) -> None:
        """Replace what the replica said before; a draining replica says nothing from now on."""
        await self._connection.execute(delete(REPORT).where(REPORT.c.replica_id == report.replica_id))
        if report.draining or not report.states:
            return
        common = {
            "replica_id": report.replica_id,
            "time_us": self._now_us,
            "expire_us": self._now_us + report.lease // _MICROSECOND,
        }
        rows = [
            {**common, "deployment": name, "state": state.value, "message": message}
            for name, (state, message) in report.states.items()
        ]
        await self._connection.execute(insert(REPORT), rows)

    async def recall(self, request_id: str, fingerprint: str) -> bytes | None:
        """Return the answer that was given to this request within the last day; RequestIdReused for another one."""
        query = select(ANSWER).where(*self._answer_key(request_id))
        row = (await self._connection.execute(query)).mappings().one_or_none()
        if row is None or row["time_us"] <= self._now_us - ANSWER_WINDOW // _MICROSECOND:
            return None
        if row["fingerprint"] != fingerprint:
            raise RequestIdReused(request_id)
        answer: bytes = row["body"]
        return answer

    async def remember(self, request_id: str, fingerprint: str, answer: bytes) -> None:
        """Keep the answer to a request; one that is a day old makes room."""
        await self._connection.execute(delete(ANSWER).where(*self._answer_key(request_id)))
        values = {
            "principal": self._author.principal,
            "request_id": request_id,
            "fingerprint": fingerprint,
            "body": answer,
            "time_us": self._now_us,
        }
        await self._connection.execute(insert(ANSWER).values(values))

    async def finish(self) -> None:
        """Write where the registry stands now, if anything changed."""
        if not self._ordinal:
            return
        values = {
            "epoch": self.new_epoch,
            "time_us": self._now_us,
            "audit_sequence": self._chain.sequence,
            "audit_hash": self._chain.hash,
        }
        await self._connection.execute(update(HEAD).values(values))

    async def _bind_features(self, resource: Resource) -> None:
        if isinstance(resource, ModelVersion) and (bindings := bindings_of(resource)):
            await self._connection.execute(insert(FEATURE_BINDING), [asdict(binding) for binding in bindings])

    async def _body(self, name: str) -> bytes | None:
        body: bytes | None = await self._connection.scalar(select(RESOURCE.c.body).where(RESOURCE.c.name == name))
        return body

    def _answer_key(self, request_id: str) -> tuple[Any, Any]:
        return ANSWER.c.principal == self._author.principal, ANSWER.c.request_id == request_id

    async def _log(self, resource: Resource, environment: str, pool: str, body: bytes | None) -> None:
        self._ordinal += 1
        kind = KINDS[type(resource)]
        values = {
            "epoch": self._epoch + 1,
            "ordinal": self._ordinal,
            "time_us": self._now_us,
            "kind": kind,
            "name": resource.name,
            "environment": environment,
            "pool": pool,
            "gone": body is None,
            "body": None if kind == VERSION_KIND else body,
        }
        await self._connection.execute(insert(CHANGE).values(values))

    async def _audit(self, name: str, before: bytes | None, after: bytes | None) -> None:
        entry = seal(
            AuditEntry(
                sequence=self._chain.sequence + 1,
                time=self.now,
                author=self._author,
                resource=name,
                before_digest=_digest(before),
                after_digest=_digest(after),
                previous_hash=self._chain.hash,
            )
        )
        await self._connection.execute(insert(AUDIT).values(audit_row(entry)))
        self._chain = ChainHead(entry.sequence, entry.hash)


def _digest(body: bytes | None) -> str:
    return "" if body is None else hashlib.sha256(body).hexdigest()
