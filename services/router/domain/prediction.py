"""The use cases of the router: predict a row, predict rows, infer tensors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.common.call import Call
from services.common.errors import ServiceError, Violation
from services.router.domain.admission import Admission
from services.router.domain.answer import Answer, Row, new_answer
from services.router.domain.failure import InvalidField, NoConfiguration
from services.router.domain.observation import Observation, code_of
from services.router.domain.plan import Plan
from services.router.domain.ports import EventSink, Inference, Job, PredictionId, PredictionMetrics
from services.router.domain.reading import Reading
from services.router.domain.routing import Choice, Configuration, RoutedModel, Target
from services.router.domain.rows import RowsRun
from services.router.domain.tensor import Tensor
from services.router.domain.tensor_check import check_inputs, check_outputs

USER_ID_LIMIT_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """Rows as tensors, by the Open Inference Protocol. No outputs named means all.

    `is_typed` tells which outputs the caller wants as typed values (JSON) instead of raw bytes.
    """

    model: str
    version: str
    user_id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    is_typed: Callable[[str], bool] = lambda _: False


@dataclass(frozen=True, slots=True)
class TensorAnswer:
    """Outputs for all rows, in the order asked, one id per row."""

    outputs: tuple[Tensor, ...]
    choice: Choice
    ids: tuple[PredictionId, ...]


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
    """Answers requests: chooses the version, makes tensors, asks inference, reads the answer, reports the event."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        inference: Inference,
        events: EventSink,
        metrics: PredictionMetrics,
        admission: Admission,
        new_id: Callable[[], PredictionId],
    ) -> None:
        self.table = table
        self._inference = inference
        self._events = events
        self._metrics = metrics
        self._admission = admission
        self.new_id = new_id

    async def predict(self, model: str, version: str, row: Row, call: Call) -> Answer:
        """Answer one row, or raise ServiceError."""
        started = time.perf_counter()
        with self._admission.enter():
            choice = self.choose(self._routed(model, version, call), version, row.user_id)
            with self.observe(choice, call, started) as seen:
                seen.add_row(self.new_id(), choice.bucket)
                plan = choice.target.version.features_plan()
                encoded = plan.encode(row.features)
                if encoded.defaulted:
                    seen.mark_degraded()
                seen.inputs = plan.tensors((encoded,))
                seen.outputs, readings = await self.read(plan, choice.target, seen.inputs, call)
                return new_answer(seen.ids[0], readings[0], choice, encoded, started)

    async def predict_rows(
        self, model: str, version: str, rows: Sequence[Row], call: Call
    ) -> list[Answer | ServiceError]:
        """Answer each row by itself, in order; raise ServiceError for what concerns all of them."""
        with self._admission.enter():
            run = RowsRun(self._routed(model, version, call), version, self, call)
            return await run.answer(rows)

    async def infer(self, request: TensorRequest, call: Call) -> TensorAnswer:
        """Answer tensors with tensors, or raise ServiceError."""
        started = time.perf_counter()
        with self._admission.enter():
            choice = self.choose(self._routed(request.model, request.version, call), request.version, request.user_id)
            with self.observe(choice, call, started) as seen:
                seen.add_row(self.new_id(), choice.bucket)
                signature = choice.target.version.signature
                inputs, rows = check_inputs(signature, request.inputs)
                check_outputs(signature, request.outputs, request.is_typed)
                for _ in range(rows - 1):
                    seen.add_row(self.new_id(), choice.bucket)
                seen.inputs = inputs
                seen.outputs = await self._inference.infer(choice.target, Job(inputs, rows, request.outputs), call)
                return TensorAnswer(seen.outputs, choice, tuple(seen.ids))

    def is_ready(self, target: Target) -> bool:
        """Whether some replica can run the target's version now."""
        return self._inference.is_ready(target)

    def choose(self, routed: RoutedModel, version: str, user_id: str) -> Choice:
        """Return what answers a row; raises ServiceError."""
        if len(user_id) > USER_ID_LIMIT_BYTES or len(user_id.encode()) > USER_ID_LIMIT_BYTES:
            want = f"want at most {USER_ID_LIMIT_BYTES} bytes, got {len(user_id.encode())}"
            raise InvalidField([Violation("user_id", want)])
        return routed.choose(user_id, version)

    def observe(self, choice: Choice, call: Call, started: float) -> Observation:
        """Return the observation of a block of rows; `started` is of `time.perf_counter()`."""
        return Observation(choice, call, started, events=self._events, metrics=self._metrics)

    async def read(
        self, plan: Plan, target: Target, inputs: tuple[Tensor, ...], call: Call
    ) -> tuple[tuple[Tensor, ...], list[Reading]]:
        """Run rows and return the output tensors and what they mean."""
        rows = inputs[0].shape[0]
        outputs = await self._inference.infer(target, Job(inputs, rows, (plan.reader.output,)), call)
        return outputs, plan.reader.read(outputs, rows)

    def _routed(self, model: str, version: str, call: Call) -> RoutedModel:
        try:
            routed = self.table.current.model(model)
            if version:
                routed.pinned(version)
        except ServiceError as error:
            self._metrics.observe(None, code_of(error, call), 1, 0.0)
            raise
        return routed
