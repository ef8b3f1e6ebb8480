"""What the monitor's rules need from outside."""

from dataclasses import dataclass
from typing import Protocol

from services.monitor.domain.columns import LabelBatch, PredictionColumns
from services.monitor.domain.version_info import VersionInfo

DAY_S = 24 * 3600.0


class Versions(Protocol):
    """Tells signatures."""

    async def get(self, model: str, version: str) -> VersionInfo | None:
        """Return the version, from memory after the first time; None when it is unknown or the registry does not answer.

        Never takes longer than a second, and does not ask for the same version again within a few seconds.
        """


class PredictionSink(Protocol):
    """Takes predictions.

    A queue of fixed size stands before each sink: what it cannot keep up with is dropped there and counted. So a sink
    may take its time; it must not keep more than it is bounded to.
    """

    async def take(self, columns: PredictionColumns) -> None:
        """Take one batch; called by one task, in order."""


class LabelSink(Protocol):
    """Takes labels that were joined with their predictions."""

    async def take_labels(self, batch: LabelBatch) -> None:
        """Take a batch as a whole, durably, before returning.

        A batch whose number is not above that of the last one taken changes nothing: after a crash it comes again.
        Raises ServiceError to be given the batch again later.
        """


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """How a model's predictions are logged."""

    log_basis_points: int = 10_000
    """Share of predictions that are logged, in hundredths of a percent."""
    log_retention_s: float = 30 * DAY_S
    label_retention_s: float = 30 * DAY_S
    """How long after a prediction its label may come."""


class LogPolicies(Protocol):
    """Tells policies; from memory, for it is asked for every batch."""

    def of_model(self, model: str) -> LogPolicy:
        """Return the policy in force, or the default."""
