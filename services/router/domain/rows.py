"""Rows on their way to an outcome of their own: placed one by one, completed with fetched values, run in blocks.

What the route's first choice cannot answer goes down the route's ladder, rung by rung and each rung once.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

from services.common.call import Call
from services.common.errors import InvalidArgument, ServiceError, Unavailable
from services.router.domain.answer import (
    FALLBACK,
    FEATURES_UNAVAILABLE,
    Answer,
    elapsed_ms,
    new_answer,
)
from services.router.domain.attempt import Attempt, Pending, blocks, together
from services.router.domain.enrichment import FallsBack, FeatureAsk, FeatureRead, FetchedRow, fill
from services.router.domain.failure import FeaturesUnavailable, NoFeaturesInSignature
from services.router.domain.observation import Observation
from services.router.domain.plan import Plan
from services.router.domain.ports import Features, PredictionId, PredictionMetrics
from services.router.domain.reading import Reading
from services.router.domain.routing import Choice, RoutedModel, Target
from services.router.domain.row import Row
from services.router.domain.tensor import Tensor

# With a ladder below it nobody waits long for a version whose worker is being replaced.
_LADDER_HOPE_S: Final = 0.25


class RowSteps(Protocol):
    """The steps of a prediction that rows share with a single one."""

    @property
    def features(self) -> Features:
        """Where fetched values come from."""
        ...

    @property
    def metrics(self) -> PredictionMetrics:
        """Counts what became of predictions."""
        ...

    def id_of(self, row: Row) -> PredictionId:
        """Return a new id for a row, of the time it is asked at."""
        ...

    def choose(self, routed: RoutedModel, version: str, row: Row) -> Choice:
        """Return what answers a row."""
        ...

    def observe(self, choice: Choice, call: Call, started: float) -> Observation:
        """Return the observation of a block of rows."""
        ...

    async def read(
        self, plan: Plan, target: Target, inputs: tuple[Tensor, ...], call: Call, hope_s: float | None = None
    ) -> tuple[tuple[Tensor, ...], list[Reading]]:
        """Run rows and return the output tensors and what they mean."""
        ...


class RowsRun:
    """One call's rows on their way; one instance serves one call."""

    def __init__(self, steps: RowSteps, call: Call, started: float | None = None) -> None:
        self._steps = steps
        self._call = call
        self._started = time.perf_counter() if started is None else started
        self._results: dict[int, Answer | ServiceError] = {}
        self._open: set[Pending] = set()
        self._falling: list[Pending] = []

    async def answer(self, routed: RoutedModel, version: str, rows: Sequence[Row]) -> list[Answer | ServiceError]:
        """Return one result per row, in order; raises when no version of the model can be asked by features."""
        await self._serve([
            found for index, row in enumerate(rows) if (found := self._place(routed, version, index, row)) is not None
        ])  # fmt: skip
        results = [self._results[index] for index in range(len(rows))]
        unfit = [result for result in results if isinstance(result, NoFeaturesInSignature)]
        if unfit and len(unfit) == len(results):
            raise unfit[0]
        return results

    async def answer_one(self, choice: Choice, row: Row) -> Answer:
        """Return the answer to a row whose variant is chosen; raises ServiceError."""
        await self._serve([Pending(0, row, choice, self._steps.id_of(row))])
        result = self._results[0]
        if isinstance(result, ServiceError):
            raise result
        return result

    def _place(self, routed: RoutedModel, version: str, index: int, row: Row) -> Pending | None:
        try:
            choice = self._steps.choose(routed, version, row)
        except ServiceError as error:
            self._results[index] = error
            return None
        return Pending(index, row, choice, self._steps.id_of(row))

    async def _serve(self, rows: Sequence[Pending]) -> None:
        self._open.update(rows)
        try:
            await self._try([(pending, pending.choice) for pending in rows])
            # All rows of a call are of one model and so of one route; one that names a version has no ladder.
            for rung in self._falling[0].choice.rules.ladder if self._falling else ():
                falling, self._falling = self._falling, []
                if isinstance(rung, Target):
                    await self._try_rung(rung, falling)
                else:
                    self._answer_fixed(rung, falling)
            for pending in self._falling:
                self._lose(pending, pending.error)
        except BaseException as error:
            # The caller went, its deadline passed, or we have a defect: what had no outcome has this one.
            for pending in list(self._open):
                self._observe(pending, pending.choice).end(error)
            raise

    async def _try(self, chosen: Sequence[tuple[Pending, Choice]]) -> None:
        attempts = [found for pending, choice in chosen if (found := self._draft(pending, choice)) is not None]
        by_version: dict[str, list[Attempt]] = {}
        for attempt in attempts:
            if attempt.plan.fetched:
                by_version.setdefault(attempt.choice.target.version.id, []).append(attempt)
        await together([self._fetch(group) for group in by_version.values()])
        await together([self._run_block(block) for block in blocks([found for found in attempts if self._fill(found)])])

    async def _try_rung(self, rung: Target, falling: Sequence[Pending]) -> None:
        same = [pending for pending in falling if pending.choice.target.deployment.name == rung.deployment.name]
        self._falling.extend(same)
        others = [pending for pending in falling if pending not in same]
        await self._try([(pending, replace(pending.choice, target=rung)) for pending in others])

    def _draft(self, pending: Pending, choice: Choice) -> Attempt | None:
        features = pending.row.features
        try:
            plan = choice.target.version.features_plan()
            if choice is not pending.choice:
                # Another version may need less than the one that the caller knows of.
                features = {name: value for name, value in features.items() if name in plan.names}
            return Attempt(pending, choice, plan, plan.draft(features))
        except ServiceError as error:
            self._miss(pending, choice, error)
            return None

    async def _fetch(self, attempts: Sequence[Attempt]) -> None:
        """Fetch for rows of one version; who has met a silent service in this call is not kept waiting again."""
        for attempt in attempts:
            attempt.read = FeatureRead(attempt.pending.row.entities, None)
        asking = [attempt for attempt in attempts if not attempt.pending.features_down]
        if not asking:
            return
        plan = asking[0].plan
        asks = [
            FeatureAsk(found.pending.row.entities, plan.request_values(found.draft), found.pending.row.as_of_us)
            for found in asking
        ]
        try:
            rows = await self._steps.features.read(plan.sources, asks, self._call)
        except FeaturesUnavailable:
            for attempt in asking:
                attempt.pending.features_down = True
            return
        self._take(asking, rows)

    def _take(self, attempts: Sequence[Attempt], rows: Sequence[FetchedRow | ServiceError]) -> None:
        statuses = Counter(status for row in rows if isinstance(row, FetchedRow) for status in row.statuses)
        self._steps.metrics.count_values(attempts[0].choice.target.version.model, statuses)
        for attempt, row in zip(attempts, rows, strict=True):
            if isinstance(row, ServiceError):
                attempt.problem = row
            else:
                attempt.read = FeatureRead(attempt.pending.row.entities, row)

    def _fill(self, attempt: Attempt) -> bool:
        """Complete a row with what was fetched; returns whether it can be run."""
        pending, read = attempt.pending, attempt.read
        if not attempt.on_a_rung:
            pending.read = read
        if attempt.problem is not None:
            self._miss(pending, attempt.choice, attempt.problem)
            return False
        fetched = None if read is None else read.fetched
        try:
            attempt.filled = fill(attempt.plan, attempt.draft, fetched, attempt.choice.rules.feature_failure)
        except FallsBack as falls:
            pending.missing = {**pending.missing, **falls.missing}
            self._miss(pending, attempt.choice, falls.error, falls=True)
            return False
        except ServiceError as error:
            self._miss(pending, attempt.choice, error)
            return False
        if attempt.filled.missing:
            pending.missing = {**pending.missing, **attempt.filled.missing}
        return True

    async def _run_block(self, block: Sequence[Attempt]) -> None:
        choice, plan = block[0].choice, block[0].plan
        rows = [(found, found.filled.encoded) for found in block if found.filled is not None]
        seen = self._steps.observe(choice, self._call, self._started)
        for attempt, encoded in rows:
            degraded = attempt.on_a_rung or encoded.defaulted or attempt.pending.features_down
            pending = attempt.pending
            seen.add_row(
                pending.id, attempt.choice.bucket, degraded=degraded, read=attempt.read, missing=pending.missing
            )
        seen.inputs = plan.tensors([encoded for _, encoded in rows])
        hope_s = _LADDER_HOPE_S if choice.rules.ladder else None
        try:
            seen.outputs, readings = await self._steps.read(plan, choice.target, seen.inputs, self._call, hope_s)
        except InvalidArgument as error:
            if len(block) == 1:
                self._fail(block, seen, error)
                return
            # The model refused some of them. Found by halves, they fail alone.
            half = len(block) // 2
            await together([self._run_block(block[:half]), self._run_block(block[half:])])
            return
        except ServiceError as error:
            self._fail(block, seen, error)
            return
        seen.end(None)
        for attempt, reading in zip(block, readings, strict=True):
            self._answer(attempt, reading)

    def _fail(self, block: Sequence[Attempt], seen: Observation, error: ServiceError) -> None:
        """Take note that a block could not be run: its rows go on down the ladder, or all of them have their outcome."""
        falls = isinstance(error, Unavailable)
        if block[0].on_a_rung or (falls and block[0].choice.rules.ladder):
            for attempt in block:
                self._miss(attempt.pending, attempt.choice, error, falls=falls)
            return
        seen.end(error)
        for attempt in block:
            self._open.discard(attempt.pending)
            self._results[attempt.pending.index] = error

    def _answer(self, attempt: Attempt, reading: Reading) -> None:
        assert attempt.filled is not None
        pending = attempt.pending
        answer = new_answer(
            pending.id,
            reading,
            attempt.choice,
            attempt.filled.encoded,
            self._started,
            features_down=pending.features_down,
            on_a_rung=attempt.on_a_rung,
            missing=pending.missing,
        )
        self._settle(pending, answer)

    def _answer_fixed(self, value: float, falling: Sequence[Pending]) -> None:
        """Answer rows with a fixed prediction; a number that is no class of the version chosen answers nobody."""
        for pending in falling:
            reading = pending.choice.target.version.features_plan().reader.fixed(value)
            if reading is None:
                self._falling.append(pending)
                continue
            seen = self._steps.observe(pending.choice, self._call, self._started)
            seen.add_row(pending.id, pending.choice.bucket, degraded=True, missing=pending.missing)
            seen.fixed = True
            seen.end(None)
            degraded = (FEATURES_UNAVAILABLE, FALLBACK) if pending.features_down else (FALLBACK,)
            ms = elapsed_ms(self._started)
            self._settle(
                pending,
                Answer(pending.id, reading, pending.choice, (), degraded, ms, tuple(pending.missing), fixed=True),
            )

    def _settle(self, pending: Pending, answer: Answer) -> None:
        self._open.discard(pending)
        self._results[pending.index] = answer
        if not answer.degraded:
            return
        model = pending.choice.target.version.model
        self._steps.metrics.count_degraded(model, answer.degraded)
        if FALLBACK in answer.degraded:
            self._steps.metrics.count_fallback(model, answer.served_by)

    def _miss(self, pending: Pending, choice: Choice, error: ServiceError, *, falls: bool = False) -> None:
        """Take note that a target did not answer a row: a rung leaves it to the next one, the first choice may."""
        if choice is not pending.choice:
            self._falling.append(pending)
        elif falls and choice.rules.ladder:
            pending.error = error
            self._falling.append(pending)
        else:
            self._lose(pending, error)

    def _lose(self, pending: Pending, error: ServiceError | None) -> None:
        assert error is not None
        self._open.discard(pending)
        self._results[pending.index] = error
        self._observe(pending, pending.choice).end(error)

    def _observe(self, pending: Pending, choice: Choice) -> Observation:
        seen = self._steps.observe(choice, self._call, self._started)
        seen.add_row(pending.id, choice.bucket, read=pending.read, missing=pending.missing)
        return seen
