"""How a model is watched, and which policy holds for which prediction."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from services.monitor.domain.ports import LogPolicy
from services.monitor.domain.version_info import Scalar, VersionInfo

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
DEFAULT_MINIMUM_COUNT: Final = 100
DEFAULT_EFFECTS: Final[Mapping[str, float]] = {"psi": 0.1, "jensen_shannon": 0.1, "kolmogorov_smirnov": 0.1}
_BASIS_POINTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the traffic: where a feature has one of some values, or lies in [minimum, maximum)."""

    name: str
    feature: str
    values: tuple[Scalar, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class FairnessGroup:
    """A feature whose values are compared."""

    feature: str
    reference: Scalar | None = None
    """Value that the others are compared with; None = the largest group."""
    minimum_count: int = DEFAULT_MINIMUM_COUNT


@dataclass(frozen=True, slots=True)
class MonitoringPolicy:
    """How one model is watched; without anything said, everything has its default."""

    model: str
    window_us: int = HOUR_US
    slices: tuple[Slice, ...] = ()
    fairness_groups: tuple[FairnessGroup, ...] = ()
    log_basis_points: int = _BASIS_POINTS
    log_retention_us: int = 30 * DAY_US
    label_retention_us: int = 30 * DAY_US
    positive_label: str = ""
    """Empty: the last label of the signature."""
    false_discovery_rate: float = 0.01
    minimum_effects: Mapping[str, float] = field(default_factory=dict)
    """Smallest drift worth an alarm by statistic; what is not named has its default."""
    update_us: int = 0
    """When it was last changed; 0 = never."""
    etag: str = "0"

    def minimum_effect(self, statistic: str) -> float | None:
        """Return the smallest drift worth an alarm; None where no size by itself is worth one."""
        return self.minimum_effects.get(statistic, DEFAULT_EFFECTS.get(statistic))

    @property
    def window_form(self) -> tuple[object, ...]:
        """What windows are made by; a change holds from the next window on."""
        return (self.window_us, self.slices, self.fairness_groups, self.positive_label)


@dataclass(frozen=True, slots=True)
class Revision:
    """One state of a policy, and from which prediction time on windows are made by it."""

    from_us: int
    policy: MonitoringPolicy


class PolicyBook:
    """All policies that were ever changed, in memory; see `ports.LogPolicies`."""

    def __init__(self) -> None:
        self._revisions: dict[str, tuple[Revision, ...]] = {}

    def replace(self, revisions: Mapping[str, Sequence[Revision]]) -> None:
        """Take what the database has: for each model its revisions, oldest first."""
        self._revisions = {model: tuple(found) for model, found in revisions.items()}

    def put(self, model: str, revision: Revision) -> None:
        """Add a revision after all others of its model."""
        self._revisions[model] = (*self._revisions.get(model, ()), revision)

    def current(self, model: str) -> MonitoringPolicy:
        """Return the policy of a model, or the default."""
        found = self._revisions.get(model)
        return found[-1].policy if found else MonitoringPolicy(model)

    def revisions(self, model: str) -> tuple[Revision, ...]:
        """Return the revisions that still decide about some prediction time, by rising time; the first from 0 on."""
        decisive: list[Revision] = []
        for revision in (Revision(0, MonitoringPolicy(model)), *self._revisions.get(model, ())):
            while decisive and decisive[-1].from_us >= revision.from_us:
                decisive.pop()
            decisive.append(revision)
        return tuple(decisive)

    def at(self, model: str, time_us: int) -> MonitoringPolicy:
        """Return the policy by which the window of a prediction is made."""
        found = self.revisions(model)
        return found[max(0, bisect.bisect_right(found, time_us, key=lambda r: r.from_us) - 1)].policy

    def of_model(self, model: str) -> LogPolicy:
        """Return how a model's predictions are logged."""
        policy = self.current(model)
        return LogPolicy(
            policy.log_basis_points, policy.log_retention_us / SECOND_US, policy.label_retention_us / SECOND_US
        )


class Policies(Protocol):
    """Keeps policies."""

    async def change(
        self, model: str, etag: str, request_id: str, apply: Callable[[MonitoringPolicy], MonitoringPolicy]
    ) -> MonitoringPolicy:
        """Change a policy and return it; raises EtagMismatch, and whatever `apply` raises.

        The same request_id within a day changes nothing and gives what it gave.
        """

    async def page(self, after: str, size: int) -> list[MonitoringPolicy]:
        """Return policies that were ever changed, by model, after a model."""


class ModelVersions(Protocol):
    """Tells the newest versions of a model."""

    async def recent(self, model: str) -> list[VersionInfo]:
        """Return them; raises ResourceNotFound for an unknown model, RegistryUnavailable."""
