"""Putting fetched values into a row, and what happens where there is none: the policies of signature and route."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from services.common.errors import ServiceError, Violation
from services.router.domain.failure import FeaturesMissing, FeaturesUnavailable, InvalidFeatures
from services.router.domain.feature import RowNotes
from services.router.domain.plan import Draft, EncodedRow, FetchedFeature, Plan
from services.router.domain.signature import MissingPolicy


class FeatureStatus(Enum):
    """How good a fetched value is."""

    PRESENT = "present"
    STALE = "stale"
    MISSING = "missing"


class MissingReason(Enum):
    """Why a fetched feature had no usable value."""

    ABSENT = "absent"
    STALE = "stale"
    UNAVAILABLE = "unavailable"


Missing = Mapping[str, MissingReason]
"""Fetched features that had no usable value, by name."""


class FeatureFailurePolicy(Enum):
    """What happens when the features service does not answer; SIGNATURE leaves it to each feature."""

    SIGNATURE = "signature"
    DEFAULTS = "defaults"
    FALLBACK = "fallback"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class FeatureAsk:
    """What one row's features are read for: keys by entity, request values that on-demand features are computed from."""

    entities: Mapping[str, str]
    values: Mapping[str, object]
    as_of_us: int | None = None


@dataclass(frozen=True, slots=True)
class FetchedRow:
    """What the features service knows for one row; an entry for each source asked, in that order.

    Ages in milliseconds, times in microseconds since 1970-01-01 UTC; -1 and 0 where nothing is known.
    """

    values: tuple[object, ...]
    statuses: tuple[FeatureStatus, ...]
    ages_ms: tuple[int, ...]
    event_times_us: tuple[int, ...]
    read_time_us: int


@dataclass(frozen=True, slots=True)
class FeatureRead:
    """What is remembered of a row's fetch: for which keys, and what came; None when the service did not answer."""

    entities: Mapping[str, str]
    fetched: FetchedRow | None


@dataclass(slots=True)
class FilledRow:
    """A row that is ready for the model, and the names of its fetched features that had no usable value."""

    encoded: EncodedRow
    missing: Missing = field(default_factory=dict)


class FallsBack(Exception):
    """The route's fallback is to answer; `error` is what the caller gets when it does not.

    `missing` names the fetched features that had no usable value.
    """

    def __init__(self, error: ServiceError, missing: Missing) -> None:
        super().__init__(error.message)
        self.error = error
        self.missing = missing


def fill(plan: Plan, draft: Draft, fetched: FetchedRow | None, on_failure: FeatureFailurePolicy) -> FilledRow:
    """Return the row with its fetched values; `fetched` is None when the features service did not answer.

    Raises FeaturesMissing or FeaturesUnavailable where a policy refuses, FallsBack where one leaves it to the route's
    fallback, and InvalidFeatures for a fetched value that the signature does not allow. Refusal goes before fallback.
    """
    if plan.plain:
        return FilledRow(plan.pack(draft))
    gaps = list(_gaps(plan, fetched))
    missing = {gap.feature.spec.name: gap.reason for gap in gaps}
    policies = {gap: _policy(gap.feature, None if fetched is not None else on_failure) for gap in gaps}
    for policy in (MissingPolicy.REFUSE, MissingPolicy.FALLBACK):
        found = [gap.violation() for gap in gaps if policies[gap] is policy]
        if found:
            error = FeaturesUnavailable(found) if fetched is None else FeaturesMissing(found)
            if policy is MissingPolicy.REFUSE:
                raise error
            raise FallsBack(error, missing)
    if draft.notes.falling:
        raise FallsBack(InvalidFeatures([_absent(name) for name in draft.notes.falling]), missing)
    _put(plan, draft, fetched, missing)
    return FilledRow(plan.pack(draft), missing)


@dataclass(frozen=True, slots=True, eq=False)
class _Gap:
    feature: FetchedFeature
    reason: MissingReason
    why: str

    def violation(self) -> Violation:
        spec = self.feature.spec
        return Violation(f"features.{spec.name}", f"want a value of {spec.source}, got {self.why}")


def _gaps(plan: Plan, fetched: FetchedRow | None) -> Iterator[_Gap]:
    for index, feature in enumerate(plan.fetched):
        if fetched is None:
            yield _Gap(feature, MissingReason.UNAVAILABLE, "no answer from the features service")
            continue
        status, age_s, limit_s = fetched.statuses[index], fetched.ages_ms[index] / 1e3, feature.spec.max_age_s
        if status is FeatureStatus.MISSING:
            yield _Gap(feature, MissingReason.ABSENT, "none: nothing is known for these keys")
        elif status is FeatureStatus.STALE:
            yield _Gap(feature, MissingReason.STALE, f"one that is too old for its view: {age_s:g} s")
        elif limit_s is not None and age_s > limit_s:
            yield _Gap(feature, MissingReason.STALE, f"one that is {age_s:g} s old, over {limit_s:g} s")
        elif fetched.values[index] is None and not feature.spec.nullable:
            yield _Gap(feature, MissingReason.ABSENT, "null")


def _policy(feature: FetchedFeature, on_failure: FeatureFailurePolicy | None) -> MissingPolicy:
    """Return what to do without a value; `on_failure` is None when the features service did answer."""
    if on_failure is FeatureFailurePolicy.REFUSE:
        return MissingPolicy.REFUSE
    if on_failure is FeatureFailurePolicy.FALLBACK:
        return MissingPolicy.FALLBACK
    policy = MissingPolicy.DEFAULT if on_failure is FeatureFailurePolicy.DEFAULTS else feature.spec.missing
    # A feature without a declared default has nothing that could stand in.
    return MissingPolicy.REFUSE if policy is MissingPolicy.DEFAULT and feature.reader.default is None else policy


def _put(plan: Plan, draft: Draft, fetched: FetchedRow | None, missing: Missing) -> None:
    """Fill the free columns of a draft: with what was fetched, or the declared default."""
    violations: list[Violation] = []
    for index, feature in enumerate(plan.fetched):
        tensor, column = feature.place
        if fetched is None or feature.spec.name in missing:
            draft.notes.defaulted = True
            draft.columns[tensor][column] = feature.reader.default
            continue
        notes = RowNotes(flagged=draft.notes.flagged)
        draft.columns[tensor][column] = feature.reader.read(fetched.values[index], notes)
        violations += [
            Violation(found.field, f"{found.description} from {feature.spec.source}") for found in notes.violations
        ]
    if violations:
        raise InvalidFeatures(violations)


def _absent(name: str) -> Violation:
    return Violation(f"features.{name}", "want a value, got nothing, and no fallback answered")
