"""Where jobs are kept, and who works on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.features.domain.job import Job, JobKind


@dataclass(frozen=True)
class Asked:
    """A request that starts or stops a job, for whoever sends it twice; no id: it cannot be told from another."""

    principal: str
    request_id: str
    fingerprint: str


class JobStore(Protocol):
    """The database of jobs."""

    async def create(self, job: Job, asked: Asked) -> Job:
        """Keep a new job, or return the one that the same request made before; raises NameTaken."""

    async def get(self, kind: JobKind, name: str) -> Job:
        """Return a job; raises ResourceNotFound."""

    async def list(self, kind: JobKind, after: str, count: int) -> Sequence[tuple[str, Job]]:
        """Return jobs of a kind, newest first, with the key that the next page begins after."""

    async def cancel(self, kind: JobKind, name: str, asked: Asked) -> Job:
        """Ask a job to stop; raises JobEnded and ResourceNotFound."""


class JobWatch(Protocol):
    """Whoever works on jobs."""

    def notice(self, name: str) -> None:
        """Look now for a job that is new or has to stop."""


class JobCheck(Protocol):
    """What can be said of a job before it is begun."""

    def check(self, job: Job) -> None:
        """Raise the error that keeps a job from starting: ResourceNotFound, NotMaterializable."""
