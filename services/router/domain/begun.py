"""Requests on their way without a task: what they wait for calls them back."""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.common.call import Call, Pending, Reply
from services.common.errors import ServiceError
from services.router.domain.admission import Admission
from services.router.domain.answer import Answer, new_answer
from services.router.domain.enrichment import FallsBack, FeatureAsk, FeatureRead, FetchedRow, FilledRow, Missing, fill
from services.router.domain.observation import Observation
from services.router.domain.plan import Draft, Plan
from services.router.domain.ports import Features, Inference, Job, PredictionMetrics
from services.router.domain.routing import Choice
from services.router.domain.row import Row
from services.router.domain.tensor import Tensor

AnswerT = TypeVar("AnswerT")


@dataclass(slots=True)
class Begun(Generic[AnswerT]):
    """Who waits for an answer that was begun, and in what form."""

    reply: Reply
    encode: Callable[[AnswerT], bytes]


class Peers(Protocol):
    """Whom a row needs on its way."""

    @property
    def inference(self) -> Inference:
        """Runs versions."""
        ...

    @property
    def features(self) -> Features:
        """Where fetched values come from."""
        ...

    @property
    def metrics(self) -> PredictionMetrics:
        """Counts what became of predictions."""
        ...


class Run(ABC, Generic[AnswerT]):
    """A request that counts as in flight from now on."""

    __slots__ = ("_admission", "_begun", "_seen", "pending")

    def __init__(self, admission: Admission, seen: Observation, begun: Begun[AnswerT]) -> None:
        self._admission = admission
        self._seen = seen
        self._begun = begun
        self.pending: Pending | None = None
        """What is waited for."""
        admission.in_flight += 1

    @abstractmethod
    def _read(self, outputs: tuple[Tensor, ...]) -> AnswerT:
        """Return the answer that a version's outputs make."""

    def take_outputs(self, outputs: tuple[Tensor, ...]) -> None:
        """Answer."""
        try:
            answer = self._read(outputs)
        except Exception as error:  # noqa: BLE001 - others wait for what came with it
            self.fail(error)
            return
        self._seen.outputs = outputs
        self._end(None)
        try:
            body = self._begun.encode(answer)
        except Exception as error:  # noqa: BLE001 - as above
            self._begun.reply.fail(error)
        else:
            self._begun.reply.answer(body)

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        self._end(error)
        self._begun.reply.fail(error)

    def take_back(self) -> None:
        """Forget the request: its caller is gone, or has no time left."""
        if self.pending is not None:
            self.pending.take_back()
        self._end(asyncio.CancelledError())

    def _end(self, error: BaseException | None) -> None:
        # What is waited for knows this object too.
        self.pending = None
        self._admission.in_flight -= 1
        self._seen.end(error)


@dataclass(slots=True)
class RowRequest:
    """One row, read, and what answers it; `started` is of `time.perf_counter()`."""

    choice: Choice
    plan: Plan
    draft: Draft
    row: Row
    call: Call
    started: float


class RowRun(Run[Answer]):
    """One row of a route without a ladder: what it lacks is fetched, then its version runs it."""

    __slots__ = ("_asked", "_features_down", "_filled", "_peers")

    def __init__(
        self, peers: Peers, admission: Admission, seen: Observation, begun: Begun[Answer], asked: RowRequest
    ) -> None:
        super().__init__(admission, seen, begun)
        self._peers = peers
        self._asked = asked
        self._features_down = False
        self._filled: FilledRow | None = None

    def begin(self) -> None:
        """Set out."""
        asked = self._asked
        plan = asked.plan
        if not plan.fetched:
            self._run(None)
            return
        ask = FeatureAsk(asked.row.entities, plan.request_values(asked.draft), asked.row.as_of_us)
        self.pending = self._peers.features.begin(plan.sources, ask, asked.call, self)
        if self.pending is None:
            self.take_row(None)

    def take_row(self, row: FetchedRow | ServiceError | None) -> None:
        """Go on with what was fetched."""
        self.pending = None
        if isinstance(row, ServiceError):
            self._seen.mark_read(FeatureRead(self._asked.row.entities, None), None)
            self.fail(row)
            return
        self._features_down = row is None
        if row is not None:
            self._peers.metrics.count_values(self._asked.choice.target.version.model, Counter(row.statuses))
        self._run(row)

    def _run(self, row: FetchedRow | None) -> None:
        asked, seen = self._asked, self._seen
        try:
            self._filled = self._fill(row)
            encoded = self._filled.encoded
            if encoded.defaulted or self._features_down:
                seen.mark_degraded()
            seen.inputs = asked.plan.tensors((encoded,))
            job = Job(seen.inputs, 1, (asked.plan.reader.output,))
            self.pending = self._peers.inference.begin(asked.choice.target, job, asked.call, self)
        except Exception as error:  # noqa: BLE001 - rows of others were fetched with it
            self.fail(error)

    def _fill(self, row: FetchedRow | None) -> FilledRow:
        asked = self._asked
        missing: Missing = {}
        try:
            filled = fill(asked.plan, asked.draft, row, asked.choice.rules.feature_failure)
            missing = filled.missing
        except FallsBack as falls:
            missing = falls.missing
            # There is nothing to fall to.
            raise falls.error from None
        finally:
            if asked.plan.fetched:
                self._seen.mark_read(FeatureRead(asked.row.entities, row), missing)
        return filled

    def _read(self, outputs: tuple[Tensor, ...]) -> Answer:
        assert self._filled is not None
        asked = self._asked
        answer = new_answer(
            self._seen.ids[0],
            asked.plan.reader.read(outputs, 1)[0],
            asked.choice,
            self._filled.encoded,
            asked.started,
            features_down=self._features_down,
            missing=self._filled.missing,
        )
        if answer.degraded:
            self._peers.metrics.count_degraded(asked.choice.target.version.model, answer.degraded)
        return answer
