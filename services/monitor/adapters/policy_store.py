"""Policies in the database: every change is kept, for windows keep the policy that they began with."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.common.refusals import EtagMismatch
from services.monitor.adapters.table import ANALYSIS_WINDOW, POLICY
from services.monitor.domain.policy import DAY_US, FairnessGroup, MonitoringPolicy, PolicyBook, Revision, Slice

_FIELDS: Final = (
    "window_us",
    "log_basis_points",
    "log_retention_us",
    "label_retention_us",
    "positive_label",
    "false_discovery_rate",
)


class PolicyStore:
    """Keeps the database and the book of policies in memory alike."""

    def __init__(self, database: Database, book: PolicyBook) -> None:
        self._database = database
        self.book = book

    async def load(self) -> None:
        """Read all policies; called at the start, and now and then, for another monitor may have changed one."""
        async with self._database.read() as connection:
            rows = (await connection.execute(select(POLICY).order_by(POLICY.c.model, POLICY.c.revision))).mappings()
            revisions: dict[str, list[Revision]] = {}
            for row in rows:
                revisions.setdefault(row["model"], []).append(Revision(row["from_us"], _policy(row)))
        self.book.replace(revisions)

    async def change(
        self,
        model: str,
        etag: str,
        request_id: str,
        apply: Callable[[MonitoringPolicy], MonitoringPolicy],
    ) -> MonitoringPolicy:
        """Change a policy and return it; raises EtagMismatch, and whatever `apply` raises.

        The same request_id within a day changes nothing and gives what it gave.
        """
        async with self._database.write() as connection:
            known = await self._answered(connection, model, request_id)
            if known is not None:
                return known
            current = await self._current(connection, model)
            if etag not in ("", current.policy.etag):
                raise EtagMismatch(f"monitoringPolicies/{model}", current.policy.etag, etag)
            wanted = apply(current.policy)
            if wanted == current.policy:
                return wanted
            from_us = current.from_us
            if wanted.window_form != current.policy.window_form:
                from_us = await self._next_window(connection, model)
            values = {
                "model": model,
                "revision": int(current.policy.etag) + 1,
                "from_us": from_us,
                "update_us": await self._database.now_us(connection),
                "etag": str(int(current.policy.etag) + 1),
                "request_id": request_id,
                "body": _body(wanted),
            }
            await connection.execute(insert(POLICY).values(values))
        changed = _policy(values)
        self.book.put(model, Revision(from_us, changed))
        return changed

    async def page(self, after: str, size: int) -> list[MonitoringPolicy]:
        """Return policies that were ever changed, by model, after a model."""
        newest = select(POLICY.c.model, func.max(POLICY.c.revision).label("revision")).group_by(POLICY.c.model)
        last = newest.where(POLICY.c.model > after).order_by(POLICY.c.model).limit(size).subquery()
        query = select(POLICY).join(last, (POLICY.c.model == last.c.model) & (POLICY.c.revision == last.c.revision))
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(POLICY.c.model))).mappings().all()
        return [_policy(row) for row in rows]

    async def _answered(self, connection: AsyncConnection, model: str, request_id: str) -> MonitoringPolicy | None:
        if not request_id:
            return None
        since_us = await self._database.now_us(connection) - DAY_US
        query = select(POLICY).where(
            POLICY.c.request_id == request_id, POLICY.c.model == model, POLICY.c.update_us >= since_us
        )
        row = (await connection.execute(query)).mappings().first()
        return None if row is None else _policy(row)

    async def _current(self, connection: AsyncConnection, model: str) -> Revision:
        query = select(POLICY).where(POLICY.c.model == model).order_by(POLICY.c.revision.desc()).limit(1)
        row = (await connection.execute(query)).mappings().first()
        return Revision(0, MonitoringPolicy(model)) if row is None else Revision(row["from_us"], _policy(row))

    async def _next_window(self, connection: AsyncConnection, model: str) -> int:
        """Return when the newest window of a model ends; prediction time is what counts, not the clock."""
        query = select(func.max(ANALYSIS_WINDOW.c.end_us)).where(ANALYSIS_WINDOW.c.model == model)
        return await connection.scalar(query) or 0


def _body(policy: MonitoringPolicy) -> str:
    return json.dumps(
        {
            **{name: getattr(policy, name) for name in _FIELDS},
            "slices": [[s.name, s.feature, list(s.values), s.minimum, s.maximum] for s in policy.slices],
            "fairness_groups": [[g.feature, g.reference, g.minimum_count] for g in policy.fairness_groups],
            "minimum_effects": dict(policy.minimum_effects),
        }
    )


def _policy(row: Mapping[Any, Any]) -> MonitoringPolicy:
    body = json.loads(row["body"])
    return MonitoringPolicy(
        model=row["model"],
        slices=tuple(Slice(name, feature, tuple(vs), low, high) for name, feature, vs, low, high in body["slices"]),
        fairness_groups=tuple(FairnessGroup(*group) for group in body["fairness_groups"]),
        minimum_effects=body["minimum_effects"],
        update_us=row["update_us"],
        etag=row["etag"],
        **{name: body[name] for name in _FIELDS},
    )
