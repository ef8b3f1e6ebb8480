"""Where a version runs, as its policy says: in a process of its own, in one that it shares, or in none."""

from services.inference.adapters.shared_process import SharedProcesses
from services.inference.adapters.worker_process import WorkerLauncher, WorkerLimits
from services.inference.domain.ports import ModelProcess, OnResult
from services.inference.domain.version import BatchingPolicy, Placement, VersionSpec


class ModelLauncher:
    """Starts model processes with the limits of the settings."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._own = WorkerLauncher(limits)
        self._shared = SharedProcesses(limits)

    async def start(self, spec: VersionSpec, policy: BatchingPolicy, on_result: OnResult) -> ModelProcess:
        """Start an empty process for a version, or none. Raises `LoadFailure` when the machine cannot."""
        if policy.placement is Placement.INLINE:
            from services.inference.adapters.inline_model import InlineModel  # noqa: PLC0415 - the runtime is large

            return InlineModel(spec, self._limits.intra_op_threads, on_result)
        if policy.placement is Placement.SHARED and self._shared.welcomes(spec.key):
            return await self._shared.start(spec, on_result)
        return await self._own.start(spec, on_result)
