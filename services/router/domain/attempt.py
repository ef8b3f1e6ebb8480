"""A row on its way to an outcome, its tries, and how tries are run side by side."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import ServiceError
from services.router.domain.enrichment import FeatureRead, FilledRow, Missing
from services.router.domain.plan import Draft, Plan
from services.router.domain.ports import PredictionId
from services.router.domain.routing import Choice
from services.router.domain.row import Row


@dataclass(slots=True, eq=False)
class Pending:
    """A row without an outcome; `choice` is the route's, `error` what the row gets when no rung answers it."""

    index: int
    row: Row
    choice: Choice
    id: PredictionId
    error: ServiceError | None = None
    missing: Missing = field(default_factory=dict)
    features_down: bool = False
    read: FeatureRead | None = None
    """What was fetched for the first choice."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One row's try with one target: the route's choice, or a rung of the ladder."""

    pending: Pending
    choice: Choice
    plan: Plan
    draft: Draft
    read: FeatureRead | None = None
    problem: ServiceError | None = None
    """What is wrong with the row's keys."""
    filled: FilledRow | None = None

    @property
    def on_a_rung(self) -> bool:
        """Whether the route's own choice has been tried before."""
        return self.choice is not self.pending.choice


async def together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines side by side; the first failure cancels the others and is raised. One alone needs no task."""
    if len(work) == 1:
        await work[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def blocks(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """Group rows that one batch may hold: of one variant and way of assignment, not more than the batch takes."""
    groups: dict[tuple[str, str, object], list[Attempt]] = {}
    for attempt in attempts:
        key = (attempt.choice.target.deployment.name, attempt.choice.variant, attempt.choice.assignment)
        groups.setdefault(key, []).append(attempt)
    return [
        group[first : first + limit]
        for group in groups.values()
        for limit in (group[0].choice.target.deployment.max_batch_size,)
        for first in range(0, len(group), limit)
    ]
