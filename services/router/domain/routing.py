"""The routing configuration in memory: immutable, compiled from what the registry pushed, looked up by name."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from services.common.wording import did_you_mean
from services.router.domain.assignment import BUCKETS, NO_BUCKET, Bucketing, owners
from services.router.domain.enrichment import FeatureFailurePolicy
from services.router.domain.failure import ModelNotFound, NoFeaturesInSignature, NoReplicaReady, VersionNotFound
from services.router.domain.feature import UnsupportedSignature
from services.router.domain.plan import Plan, compile_plan
from services.router.domain.signature import Signature

DEFAULT_MAX_BATCH_SIZE: Final = 64

# A draw of traffic is no secret; it only has to be even.
draw_bucket: Callable[[], int] = lambda: int(random.random() * BUCKETS)  # noqa: E731, S311


class Assignment(Enum):
    """How a variant was chosen."""

    STICKY = "sticky"
    PER_REQUEST = "per_request"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A model version: what it takes and gives, and its plan; `plan_problem` says why there is none."""

    model: str
    id: str
    signature: Signature
    runtime: str = ""
    semantic: str = ""
    plan: Plan | None = None
    plan_problem: str = ""

    def features_plan(self) -> Plan:
        """Return the plan; raises NoFeaturesInSignature where Predict cannot serve the version."""
        if self.plan is None:
            raise NoFeaturesInSignature(self.model, self.id, self.plan_problem)
        return self.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A version that a pool of replicas should hold."""

    name: str
    model: str
    version: str
    pool: str
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE


@dataclass(frozen=True, slots=True)
class Variant:
    """One arm of a route: a deployment and the buckets that it owns, as inclusive ranges."""

    name: str
    deployment: str
    buckets: tuple[tuple[int, int], ...]
    weight_basis_points: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """The traffic policy of a model; `fallback` lists deployments by name and fixed predictions as numbers."""

    model: str
    salt: str
    variants: tuple[Variant, ...]
    fallback: tuple[str | float, ...] = ()
    feature_failure: FeatureFailurePolicy = FeatureFailurePolicy.SIGNATURE
    redacted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request may go: a version through one of its deployments."""

    version: Version
    deployment: Deployment


@dataclass(frozen=True, slots=True)
class Rules:
    """What a route says beside who answers: what answers instead, and what never leaves the router.

    A rung of the ladder is another target, or the class index or number that is answered without a model.
    """

    ladder: tuple[Target | float, ...] = ()
    feature_failure: FeatureFailurePolicy = FeatureFailurePolicy.SIGNATURE
    redacted: frozenset[str] = frozenset()


NO_RULES: Final = Rules()


# Made for each request; a frozen one costs twice the time.
@dataclass(slots=True)
class Choice:
    """What was chosen for one request, and how."""

    target: Target
    variant: str
    assignment: Assignment
    bucket: int
    epoch: int
    rules: Rules = NO_RULES


@dataclass(frozen=True, slots=True)
class _Arm:
    name: str
    target: Target | None
    weight_basis_points: int


@dataclass(slots=True)
class RoutedModel:
    """Everything that this router knows of one model."""

    id: str
    epoch: int
    targets: dict[str, Target] = field(default_factory=dict)
    """By version id."""
    labels: dict[str, str] = field(default_factory=dict)
    """Version ids by semantic label and by alias."""
    arms: tuple[_Arm, ...] = ()
    bucketing: Bucketing | None = None
    owners: bytes = b""
    rules: Rules = NO_RULES
    pinned_rules: Rules = NO_RULES
    """Without the ladder: who names a version wants that one or none."""

    def choose(self, user_id: str, version: str, draw: Callable[[], int] = draw_bucket) -> Choice:
        """Return what answers: the pinned version, else the variant that owns the user's (or a drawn) bucket."""
        if version:
            return Choice(self.pinned(version), "", Assignment.PINNED, NO_BUCKET, self.epoch, self.pinned_rules)
        if self.bucketing is None:
            raise ModelNotFound(self.id, " (it is deployed without a share of the traffic: pin a version)")
        bucket = self.bucketing.bucket_of(user_id) if user_id else draw()
        arm = self.arms[self.owners[bucket]]
        if arm.target is None:
            raise NoReplicaReady(self.id, arm.name)
        if user_id:
            return Choice(arm.target, arm.name, Assignment.STICKY, bucket, self.epoch, self.rules)
        return Choice(arm.target, arm.name, Assignment.PER_REQUEST, NO_BUCKET, self.epoch, self.rules)

    def pinned(self, version: str) -> Target:
        """Return the deployed version of that id, semantic label or alias."""
        target = self.targets.get(self.labels.get(version, version))
        if target is None:
            raise VersionNotFound(self.id, version, sorted(self.targets, key=_numeric))
        return target

    def routed(self) -> tuple[Target, ...]:
        """Return what has a share of the traffic, the largest share first; all deployed versions without a route."""
        arms = sorted(self.arms, key=lambda arm: -arm.weight_basis_points)
        shares = tuple(arm.target for arm in arms if arm.target is not None and arm.weight_basis_points)
        return shares or self.deployed()

    def deployed(self) -> tuple[Target, ...]:
        """Return every deployed version, by ascending id."""
        return tuple(self.targets[version] for version in sorted(self.targets, key=_numeric))


class Configuration:
    """One epoch of what the registry pushed."""

    def __init__(self, epoch: int, models: Mapping[str, RoutedModel]) -> None:
        self.epoch = epoch
        self.models = models

    def model(self, name: str) -> RoutedModel:
        """Return a model by its bare id; raises ModelNotFound with the nearest name."""
        found = self.models.get(name)
        if found is None:
            raise ModelNotFound(name, did_you_mean(name, self.models))
        return found


def new_version(*, model: str, version: str, signature: Signature, runtime: str = "", semantic: str = "") -> Version:
    """Return a version with its plan compiled, or with the reason why it has none."""
    plan, problem = None, ""
    try:
        plan = compile_plan(signature)
    except UnsupportedSignature as unsupported:
        problem = str(unsupported)
    return Version(
        model=model, id=version, signature=signature, runtime=runtime, semantic=semantic, plan=plan,
        plan_problem=problem,
    )  # fmt: skip


def build_configuration(
    epoch: int,
    *,
    versions: Iterable[Version],
    deployments: Iterable[Deployment],
    routes: Iterable[Route],
    aliases: Mapping[str, Mapping[str, str]] | None = None,
) -> Configuration:
    """Return the configuration of an epoch; raises `ValueError` for a route that does not own every bucket once.

    `aliases` are version ids by alias, by model id. A version that is not deployed is left out.
    """
    known = {(version.model, version.id): version for version in versions}
    targets = {
        deployment.name: Target(known[deployment.model, deployment.version], deployment)
        for deployment in sorted(deployments, key=lambda found: found.name)
        if (deployment.model, deployment.version) in known
    }
    models = {model: _model(model, epoch, found) for model, found in _by_model(targets.values()).items()}
    for model in models.values():
        model.labels.update((aliases or {}).get(model.id, {}))
    for route in routes:
        _add_route(models.setdefault(route.model, RoutedModel(route.model, epoch)), route, targets)
    return Configuration(epoch, models)


def _by_model(targets: Iterable[Target]) -> Mapping[str, list[Target]]:
    found: defaultdict[str, list[Target]] = defaultdict(list)
    for target in targets:
        found[target.version.model].append(target)
    return found


def _model(model: str, epoch: int, targets: Sequence[Target]) -> RoutedModel:
    routed = RoutedModel(model, epoch)
    for target in targets:
        routed.targets.setdefault(target.version.id, target)
        if target.version.semantic:
            routed.labels[target.version.semantic] = target.version.id
    return routed


def _add_route(model: RoutedModel, route: Route, targets: Mapping[str, Target]) -> None:
    model.owners = owners([variant.buckets for variant in route.variants])
    model.bucketing = Bucketing(route.salt)
    model.arms = tuple(
        _Arm(variant.name, targets.get(variant.deployment), variant.weight_basis_points) for variant in route.variants
    )
    rungs = [rung if isinstance(rung, float) else targets.get(rung) for rung in route.fallback]
    # A rung whose deployment is not there, or another model's, cannot answer; the next one may.
    ladder = tuple(
        rung for rung in rungs if isinstance(rung, float) or (rung is not None and rung.version.model == model.id)
    )
    model.rules = Rules(ladder, route.feature_failure, route.redacted)
    model.pinned_rules = Rules((), route.feature_failure, route.redacted)
    # A version in several deployments is pinned through the one that the route uses.
    model.targets.update((arm.target.version.id, arm.target) for arm in reversed(model.arms) if arm.target)


def _numeric(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdecimal() else (0, version)
