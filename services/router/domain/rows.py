"""Many rows in one call: each is placed by itself, rows of one variant travel together, each has its own outcome."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.call import Call
from services.common.errors import ServiceError
from services.router.domain.answer import Answer, Row, new_answer
from services.router.domain.failure import NoFeaturesInSignature
from services.router.domain.observation import Observation
from services.router.domain.plan import EncodedRow, Plan
from services.router.domain.ports import PredictionId
from services.router.domain.reading import Reading
from services.router.domain.routing import Choice, RoutedModel, Target
from services.router.domain.tensor import Tensor


class RowSteps(Protocol):
    """The steps of a prediction that rows share with a single one."""

    @property
    def new_id(self) -> Callable[[], PredictionId]:
        """Makes prediction ids."""
        ...

    def choose(self, routed: RoutedModel, version: str, user_id: str) -> Choice:
        """Return what answers a row."""
        ...

    def observe(self, choice: Choice, call: Call, started: float) -> Observation:
        """Return the observation of a block of rows."""
        ...

    async def read(
        self, plan: Plan, target: Target, inputs: tuple[Tensor, ...], call: Call
    ) -> tuple[tuple[Tensor, ...], list[Reading]]:
        """Run rows and return the output tensors and what they mean."""
        ...


@dataclass(frozen=True, slots=True)
class _Placed:
    index: int
    choice: Choice
    id: PredictionId
    encoded: EncodedRow


class RowsRun:
    """One call's rows on their way; one instance serves one call."""

    def __init__(self, routed: RoutedModel, version: str, steps: RowSteps, call: Call) -> None:
        self._routed = routed
        self._version = version
        self._steps = steps
        self._call = call
        self._started = time.perf_counter()
        self._results: dict[int, Answer | ServiceError] = {}

    async def answer(self, rows: Sequence[Row]) -> list[Answer | ServiceError]:
        """Return one result per row, in order; raises when no version of the model can be asked by features."""
        placed = [found for index, row in enumerate(rows) if (found := self._place(index, row)) is not None]
        await together([self._run_block(block) for block in _blocks(placed)])
        results = [self._results[index] for index in range(len(rows))]
        unfit = [result for result in results if isinstance(result, NoFeaturesInSignature)]
        if unfit and len(unfit) == len(results):
            raise unfit[0]
        return results

    def _place(self, index: int, row: Row) -> _Placed | None:
        try:
            choice = self._steps.choose(self._routed, self._version, row.user_id)
            return _Placed(index, choice, self._steps.new_id(), self._encode(choice, row))
        except ServiceError as error:
            self._results[index] = error
            return None

    def _encode(self, choice: Choice, row: Row) -> EncodedRow:
        try:
            return choice.target.version.features_plan().encode(row.features)
        except ServiceError:
            with self._steps.observe(choice, self._call, self._started) as seen:
                seen.add_row(self._steps.new_id(), choice.bucket)
                raise

    async def _run_block(self, block: Sequence[_Placed]) -> None:
        try:
            readings = await self._read(block)
        except ServiceError as error:
            self._results.update((row.index, error) for row in block)
            return
        for row, reading in zip(block, readings, strict=True):
            self._results[row.index] = new_answer(row.id, reading, row.choice, row.encoded, self._started)

    async def _read(self, block: Sequence[_Placed]) -> list[Reading]:
        choice = block[0].choice
        plan = choice.target.version.features_plan()
        with self._steps.observe(choice, self._call, self._started) as seen:
            for row in block:
                seen.add_row(row.id, row.choice.bucket, degraded=row.encoded.defaulted)
            seen.inputs = plan.tensors([row.encoded for row in block])
            seen.outputs, readings = await self._steps.read(plan, choice.target, seen.inputs, self._call)
        return readings


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


def _blocks(placed: Sequence[_Placed]) -> list[list[_Placed]]:
    """Group rows that one batch may hold: of one variant and way of assignment, not more than the batch takes."""
    groups: dict[tuple[str, str, object], list[_Placed]] = {}
    for row in placed:
        key = (row.choice.target.deployment.name, row.choice.variant, row.choice.assignment)
        groups.setdefault(key, []).append(row)
    return [
        group[first : first + limit]
        for group in groups.values()
        for limit in (group[0].choice.target.deployment.max_batch_size,)
        for first in range(0, len(group), limit)
    ]
