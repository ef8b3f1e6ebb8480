"""The use cases of the router: predict a row, predict rows, infer tensors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.common.call import Call, Pending
from services.common.errors import ServiceError, Violation
from services.router.domain.admission import Admission
from services.router.domain.answer import Answer, new_answer
from services.router.domain.begun import Begun, RowRequest, RowRun, Run
from services.router.domain.failure import InvalidField, NoConfiguration
from services.router.domain.observation import Observation, code_of
from services.router.domain.plan import Plan
from services.router.domain.ports import EventSink, Features, Inference, Job, NewId, PredictionId, PredictionMetrics
from services.router.domain.reading import Reading
from services.router.domain.routing import Choice, Configuration, RoutedModel, Target
from services.router.domain.row import Row
from services.router.domain.rows import RowsRun
from services.router.domain.tensor import Tensor
from services.router.domain.tensor_check import check_inputs, check_outputs

USER_ID_LIMIT_BYTES: Final = 256
_SECOND_US: Final = 1_000_000


@dataclass(slots=True)
class TensorRequest:
    """Rows as tensors, by the Open Inference Protocol. No outputs named means all.

    `is_typed` tells which outputs the caller wants as typed values (JSON) instead of raw bytes; None means none.
    """

    model: str
    version: str
    user_id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    is_typed: Callable[[str], bool] | None = None


@dataclass(slots=True)
class TensorAnswer:
    """Outputs for all rows, in the order asked, one id per row."""

    outputs: tuple[Tensor, ...]
    choice: Choice
    ids: tuple[PredictionId, ...]


class _TensorRun(Run[TensorAnswer]):
    """Tensors on their way."""

    __slots__ = ("_choice",)

    def __init__(self, admission: Admission, seen: Observation, begun: Begun[TensorAnswer], choice: Choice) -> None:
        super().__init__(admission, seen, begun)
        self._choice = choice

    def _read(self, outputs: tuple[Tensor, ...]) -> TensorAnswer:
        return TensorAnswer(outputs, self._choice, tuple(self._seen.ids))


class RoutingTable:
    """Holds the configuration in force; each one replaces the one before at once and whole."""

    def __init__(self) -> None:
        self._current: Configuration | None = None

    @property
    def applied(self) -> bool:
        """Whether there has been a configuration."""
        return self._current is not None

    @property
    def current(self) -> Configuration:
        """The configuration in force; raises NoConfiguration before the first."""
        if self._current is None:
            raise NoConfiguration
        return self._current

    def apply(self, configuration: Configuration) -> None:
        """Put a configuration into force; a router never goes back to an older epoch."""
        if self._current is None or configuration.epoch >= self._current.epoch:
            self._current = configuration


class Predictor:
    """Answers requests: chooses the version, makes tensors, asks inference, reads the answer, reports the event.

    `clock_tolerance_s`: how far ahead of the clock (`now`, seconds since 1970 UTC) a row may say that it is asked at.
    """

    def __init__(
        self,
        *,
        table: RoutingTable,
        inference: Inference,
        features: Features,
        events: EventSink,
        metrics: PredictionMetrics,
        admission: Admission,
        new_id: NewId,
        clock_tolerance_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.table = table
        self.inference = inference
        self.features = features
        self.metrics = metrics
        self._events = events
        self._admission = admission
        self._new_id = new_id
        self._clock_tolerance_s = clock_tolerance_s
        self._now = now

    async def predict(self, model: str, version: str, row: Row, call: Call) -> Answer:
        """Answer one row, or raise ServiceError."""
        started = time.perf_counter()
        with self._admission:
            choice = self.choose(self._routed(model, version, call), version, row)
            plan = choice.target.version.plan
            if choice.rules.ladder or not (plan is None or plan.plain):
                return await RowsRun(self, call, started).answer_one(choice, row)
            with self.observe(choice, call, started) as seen:
                seen.add_row(self.id_of(row), choice.bucket)
                plan = choice.target.version.features_plan()
                encoded = plan.encode(row.features)
                if encoded.defaulted:
                    seen.mark_degraded()
                seen.inputs = plan.tensors((encoded,))
                seen.outputs, readings = await self.read(plan, choice.target, seen.inputs, call)
                answer = new_answer(seen.ids[0], readings[0], choice, encoded, started)
            if answer.degraded:
                self.metrics.count_degraded(choice.target.version.model, answer.degraded)
            return answer

    async def predict_rows(
        self, model: str, version: str, rows: Sequence[Row], call: Call
    ) -> list[Answer | ServiceError]:
        """Answer each row by itself, in order; raise ServiceError for what concerns all of them."""
        with self._admission:
            return await RowsRun(self, call).answer(self._routed(model, version, call), version, rows)

    def check(self, model: str, version: str, call: Call) -> None:
        """Raise ServiceError when no row at all can be answered: the model or the version is unknown."""
        self._routed(model, version, call)

    async def infer(self, request: TensorRequest, call: Call) -> TensorAnswer:
        """Answer tensors with tensors, or raise ServiceError."""
        started = time.perf_counter()
        with self._admission:
            routed = self._routed(request.model, request.version, call)
            _check_user(request.user_id)
            choice = routed.choose(request.user_id, request.version)
            with self.observe(choice, call, started) as seen:
                seen.add_row(self._new_id(), choice.bucket)
                signature = choice.target.version.signature
                inputs, rows = check_inputs(signature, request.inputs)
                if request.outputs or request.is_typed is not None:
                    check_outputs(signature, request.outputs, request.is_typed)
                for _ in range(rows - 1):
                    seen.add_row(self._new_id(), choice.bucket)
                seen.inputs = inputs
                seen.outputs = await self.inference.infer(choice.target, Job(inputs, rows, request.outputs), call)
                return TensorAnswer(seen.outputs, choice, tuple(seen.ids))

    def begin_predict(self, model: str, version: str, row: Row, call: Call, begun: Begun[Answer]) -> Pending | None:
        """Set out to answer one row without a task; None, before anything was done, for what `predict` must look at."""
        started = time.perf_counter()
        if self._admission.full:
            return None
        try:
            choice = self.choose(self.table.current.model(model), version, row)
            plan = choice.target.version.plan
            if plan is None or choice.rules.ladder:
                return None
            draft = plan.draft(row.features)
        except ServiceError:
            return None
        seen = self.observe(choice, call, started)
        seen.add_row(self.id_of(row), choice.bucket)
        asked = RowRequest(choice, plan, draft, row, call, started)
        run = RowRun(self, self._admission, seen, begun, asked)
        run.begin()
        return run

    def begin_infer(self, request: TensorRequest, call: Call, begun: Begun[TensorAnswer]) -> Pending | None:
        """Set out to answer tensors without a task; None, before anything was done, for what `infer` must look at."""
        started = time.perf_counter()
        if self._admission.full or request.outputs or request.user_id:
            return None
        try:
            choice = self.table.current.model(request.model).choose("", request.version)
            inputs, rows = check_inputs(choice.target.version.signature, request.inputs)
        except ServiceError:
            return None
        seen = self.observe(choice, call, started)
        for _ in range(rows):
            seen.add_row(self._new_id(), choice.bucket)
        seen.inputs = inputs

        run = _TensorRun(self._admission, seen, begun, choice)
        run.pending = self.inference.begin(choice.target, Job(inputs, rows), call, run)
        return run

    def may_fall(self, model: str, version: str) -> bool:
        """Whether a row may be answered by another than the route's first choice, which `begin_predict` never does."""
        try:
            return not version and bool(self.table.current.model(model).rules.ladder)
        except ServiceError:
            return False

    def is_ready(self, target: Target) -> bool:
        """Whether some replica can run the target's version now."""
        return self.inference.is_ready(target)

    def id_of(self, row: Row) -> PredictionId:
        """Return a new id for a row, of the time it is asked at."""
        if row.as_of_us is None:
            return self._new_id()
        return self._new_id(nanoseconds=row.as_of_us * 1_000)

    def choose(self, routed: RoutedModel, version: str, row: Row) -> Choice:
        """Return what answers a row; raises ServiceError."""
        if row.as_of_us is not None:
            self._check_as_of(row.as_of_us)
        _check_user(row.user_id)
        return routed.choose(row.user_id, version)

    def observe(self, choice: Choice, call: Call, started: float) -> Observation:
        """Return the observation of a block of rows; `started` is of `time.perf_counter()`."""
        return Observation(choice, call, started, events=self._events, metrics=self.metrics)

    async def read(
        self, plan: Plan, target: Target, inputs: tuple[Tensor, ...], call: Call, hope_s: float | None = None
    ) -> tuple[tuple[Tensor, ...], list[Reading]]:
        """Run rows and return the output tensors and what they mean."""
        rows = inputs[0].shape[0]
        outputs = await self.inference.infer(target, Job(inputs, rows, (plan.reader.output,)), call, hope_s)
        return outputs, plan.reader.read(outputs, rows)

    def _check_as_of(self, as_of_us: int) -> None:
        latest_us = int((self._now() + self._clock_tolerance_s) * _SECOND_US)
        if 0 <= as_of_us <= latest_us:
            return
        got = "one before it" if as_of_us < 0 else f"one that is {as_of_us / _SECOND_US - self._now():.0f} s ahead"
        want = f"want a time from 1970 on, at most {self._clock_tolerance_s:g} s ahead of the router's clock"
        raise InvalidField([Violation("as_of_time", f"{want}, got {got}")])

    def _routed(self, model: str, version: str, call: Call) -> RoutedModel:
        try:
            routed = self.table.current.model(model)
            if version:
                routed.pinned(version)
        except ServiceError as error:
            self.metrics.observe(None, code_of(error, call), 1, 0.0)
            raise
        return routed


def _check_user(user_id: str) -> None:
    # The shortest texts cannot be too long in UTF-8 either.
    if len(user_id) > USER_ID_LIMIT_BYTES // 4 and len(user_id.encode()) > USER_ID_LIMIT_BYTES:
        want = f"want at most {USER_ID_LIMIT_BYTES} bytes, got {len(user_id.encode())}"
        raise InvalidField([Violation("user_id", want)])
