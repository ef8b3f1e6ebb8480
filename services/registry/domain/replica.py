"""What replicas say of a deployment, and the state that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

MESSAGE_LIMIT_CHARS: Final = 2_000
DEFAULT_LEASE: Final = timedelta(seconds=15)
SHORTEST_LEASE: Final = timedelta(seconds=1)
LONGEST_LEASE: Final = timedelta(minutes=5)


class State(Enum):
    """State of a deployment, or what one replica says of it; the values are stored."""

    PENDING = "PENDING"
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What one replica says of one deployment, under a lease that has not run out."""

    replica_id: str
    state: State
    message: str
    report_time: datetime


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One report of a replica: what it says of each deployment, by name, for as long as the lease lasts."""

    replica_id: str
    pool: str
    lease: timedelta
    states: dict[str, tuple[State, str]]
    draining: bool = False


def derive_state(statuses: Sequence[ReplicaStatus]) -> tuple[State, str]:
    """Return the state of a deployment and why, from what its replicas say under running leases.

    READY: one is ready. FAILED: none is, and one says why. LOADING: some are at it. PENDING: nobody has taken it up.
    """
    ready = sum(status.state is State.READY for status in statuses)
    if ready:
        return State.READY, f"{ready} of {len(statuses)} replicas are ready"
    for status in statuses:
        if status.state is State.FAILED:
            return State.FAILED, f"replica {status.replica_id}: {status.message}"
    if any(status.state is State.LOADING for status in statuses):
        return State.LOADING, f"0 of {len(statuses)} replicas are ready, some are loading it"
    return State.PENDING, "no replica has taken it up"
