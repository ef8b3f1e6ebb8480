"""A small, trusted model in the front end's own process: the batch costs no hop, and nothing protects from the model.

Runs are made on the event loop, one a turn of it: nobody else is served meanwhile, which is why only models of very short
batches come here. It is loaded in a thread of its own, at low priority.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from services.inference.adapters.batch_answer import batch_answer
from services.inference.adapters.load_plan import LoadPlan, LoadRefused, LocalFile
from services.inference.adapters.onnx_model import OnnxModel
from services.inference.adapters.rehearsal import Golden, rehearse, warm
from services.inference.adapters.run_batch import run_batch
from services.inference.adapters.values import array_from_bytes
from services.inference.domain.frame import Failure, FrameTensor, RunFailure
from services.inference.domain.item import BatchAnswer
from services.inference.domain.ports import LoadFailure, LoadReport, ModelBundle, OnResult, WorkerExit
from services.inference.domain.version import BatchingPolicy, VersionSpec

_LOADING_NICENESS = 10


class InlineModel:
    """A model as a `ModelProcess` that is none."""

    memory_bytes = 0
    """Its memory is the front end's."""

    def __init__(self, spec: VersionSpec, threads: int, on_result: OnResult) -> None:
        self._spec = spec
        self._threads = threads
        self._on_result = on_result
        self._model: OnnxModel | None = None
        self._interrupted: set[int] = set()
        self._loader = ThreadPoolExecutor(1, "inline-load", initializer=_step_back)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[WorkerExit] = self._loop.create_future()

    @property
    def pid(self) -> int:
        """The front end's own."""
        return os.getpid()

    async def load(self, spec: VersionSpec, bundle: ModelBundle, batching: BatchingPolicy) -> LoadReport:
        """Load, warm and check the version. Raises `LoadFailure`."""
        work = self._loop.run_in_executor(self._loader, _load, spec, bundle, batching.sizes(), self._threads)
        self._model, measured = await work
        return LoadReport(measured=measured, memory_bytes=0)

    async def warm(self, sizes: Sequence[int]) -> None:
        """Warm more batch sizes. Raises `LoadFailure`."""
        if self._model is None:
            raise LoadFailure("there is nothing to warm")
        await self._loop.run_in_executor(self._loader, warm, self._model, _golden(self._spec), sizes)

    def run(self, ident: int, outputs: Sequence[int], tensors: Sequence[FrameTensor], traceparent: str) -> None:
        """Run a batch in the next turn of the loop."""
        self._loop.call_soon(self._run, ident, outputs, tensors)

    def interrupt(self, ident: int) -> None:
        """Do not begin with a batch; one that runs is over before anybody could ask."""
        self._interrupted.add(ident)

    def kill(self) -> None:
        """Nothing can hang here that would let this be called."""

    def limit_memory(self, limit_bytes: int) -> None:
        """Its memory is not told apart from the front end's."""

    async def outgrown(self) -> None:
        """Wait for ever."""
        await self._loop.create_future()

    async def ended(self) -> WorkerExit:
        """Wait until it is let go."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Let the model go."""
        self._model = None
        self._loader.shutdown(wait=False, cancel_futures=True)
        if not self._ended.done():
            self._ended.set_result(WorkerExit(0, 0, 0, (), time.time(), "was let go"))

    def _run(self, ident: int, outputs: Sequence[int], tensors: Sequence[FrameTensor]) -> None:
        if self._model is None:
            return
        if ident in self._interrupted:
            self._interrupted.discard(ident)
            self._on_result(ident, RunFailure(Failure.INTERRUPTED, ""))
            return
        self._on_result(ident, self._result(self._model, outputs, tensors))
        self._interrupted.discard(ident)

    def _result(
        self, model: OnnxModel, outputs: Sequence[int], tensors: Sequence[FrameTensor]
    ) -> BatchAnswer | RunFailure:
        joined = [
            FrameTensor(
                tensor.datatype, tensor.shape, (b"".join(tensor.parts),) if len(tensor.parts) > 1 else tensor.parts
            )
            for tensor in tensors
        ]
        done = run_batch(model, outputs, joined)
        if isinstance(done, RunFailure):
            return done
        answers, compute_ns = done
        specs = [self._spec.outputs[position] for position in outputs]
        return batch_answer(specs, answers, tensors[0].shape[0], compute_ns / 1e9)


def _step_back() -> None:
    """Lower the priority of this thread alone; nobody needs a right for that."""
    os.setpriority(os.PRIO_PROCESS, 0, _LOADING_NICENESS)


def _load(
    spec: VersionSpec, bundle: ModelBundle, sizes: Sequence[int], threads: int
) -> tuple[OnnxModel, tuple[tuple[int, float], ...]]:
    files = tuple(LocalFile(file.path, bundle.paths[file.path], file.digest) for file in spec.files)
    plan = LoadPlan(files, spec.inputs, spec.outputs, tuple(sizes), threads, 0)
    try:
        model = OnnxModel(plan)
        return model, tuple(rehearse(model, _golden(spec), sizes))
    except LoadRefused as refused:
        raise LoadFailure(refused.message, corrupt_digest=refused.corrupt_digest) from None
    except MemoryError:
        raise LoadFailure("the model needs more memory than there is") from None


def _golden(spec: VersionSpec) -> list[Golden]:
    return [
        Golden(
            inputs={each.name: array_from_bytes(each.datatype, each.shape, each.data) for each in row.inputs},
            outputs={each.name: array_from_bytes(each.datatype, each.shape, each.data) for each in row.outputs},
            absolute=row.absolute_tolerance,
            relative=row.relative_tolerance,
        )
        for row in spec.golden_rows
    ]
