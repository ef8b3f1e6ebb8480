"""Whether feature views give what a model version fetches: one question at deploy, another before a view changes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.common.duration_text import format_duration
from services.common.errors import echo
from services.features.domain.catalog import ANY_AGE_US, CompiledFeature, CompiledView, Snapshot
from services.features.domain.definition_diff import Break, Change, inputs_of
from services.features.domain.definitions import FeatureType, OnDemandSource

_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Binding:
    """What a version fetches: `source` is `<view>.<feature>`; `max_age` None: as old as the view allows."""

    name: str
    source: str
    type: FeatureType | None
    nullable: bool
    max_age: timedelta | None
    model_version: str = ""

    @property
    def view(self) -> str:
        """Id of the view."""
        return self.source.rpartition(".")[0]

    @property
    def feature(self) -> str:
        """Name of the feature in the view."""
        return self.source.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Misfit:
    """What is wrong with one binding, with want and got; `is_missing`: there is no such view or feature."""

    binding: Binding
    message: str
    is_missing: bool = False


def check_bindings(
    bindings: Iterable[Binding], request_features: Mapping[str, FeatureType | None], snapshot: Snapshot
) -> list[Misfit]:
    """Return why bindings are not satisfied, at most one for each.

    `request_features` are the features that come with a request, and so may be inputs of those on demand.
    """
    misfits = (_check(binding, snapshot.views.get(binding.view), request_features) for binding in bindings)
    return [misfit for misfit in misfits if misfit is not None]


def hurt_versions(change: Change, bindings: Iterable[Binding], after: CompiledView | None) -> list[str]:
    """Return the versions that a change of a view would hurt, sorted; `after` is the view as it would be.

    What may become null or stale sooner hurts only those that did not reckon with it; what goes or becomes something
    else hurts everybody who fetches it.
    """
    hurt = {each.model_version for each in bindings if _is_hurt(each, change.broken_features.get(each.feature), after)}
    return sorted(hurt)


def _is_hurt(binding: Binding, breaks: frozenset[Break] | None, after: CompiledView | None) -> bool:
    feature = after.features.get(binding.feature) if after else None
    if not breaks:
        return False
    if feature is None or breaks - {Break.NULLABLE, Break.MAX_AGE}:
        return True
    return (Break.NULLABLE in breaks and not binding.nullable) or (
        Break.MAX_AGE in breaks and (binding.max_age is None or _is_stale_too_soon(binding, feature))
    )


def _check(
    binding: Binding, view: CompiledView | None, request_features: Mapping[str, FeatureType | None]
) -> Misfit | None:
    if view is None:
        return Misfit(binding, f"want a feature view called {echo(binding.view)}, got none", is_missing=True)
    feature = view.features.get(binding.feature)
    if feature is None:
        want = f"want a feature called {echo(binding.feature)} in the view {binding.view}, got none"
        return Misfit(binding, want, is_missing=True)
    wrong = list(_differences(binding, feature))
    if isinstance(view.definition.source, OnDemandSource):
        wrong += _input_differences(view.definition.source, binding.feature, request_features)
    return Misfit(binding, "; ".join(wrong)) if wrong else None


def _differences(binding: Binding, feature: CompiledFeature) -> Iterator[str]:
    spec = feature.spec
    if spec.is_list or not _takes(binding.type, spec.type):
        yield f"want {_type_name(binding.type)}, got {'a list of ' if spec.is_list else ''}{_type_name(spec.type)}"
    if spec.nullable and not binding.nullable:
        yield "want a feature that is never null, got one that may be"
    if _is_stale_too_soon(binding, feature):
        want = format_duration(binding.max_age or timedelta())
        got = format_duration(feature.max_age_us * _MICROSECOND)
        yield f"want values that are good up to an age of {want}, got ones that are stale after {got}"


def _is_stale_too_soon(binding: Binding, feature: CompiledFeature) -> bool:
    """Without a maximum age of its own a version takes the view's."""
    if binding.max_age is None or feature.max_age_us == ANY_AGE_US:
        return False
    return feature.max_age_us * _MICROSECOND < binding.max_age


def _input_differences(
    source: OnDemandSource, feature: str, request_features: Mapping[str, FeatureType | None]
) -> Iterator[str]:
    """The request's features are all that a computation on demand has."""
    used = inputs_of(source, feature)
    for field in used:
        if field.name not in request_features:
            yield f"want its input {echo(field.name)} among the signature's features of the request, got none"
        elif not _takes(field.type, request_features[field.name]):
            got = _type_name(request_features[field.name])
            yield f"want its input {echo(field.name)} to be {_type_name(field.type)} in the signature, got {got}"


def _takes(wanted: FeatureType | None, given: FeatureType | None) -> bool:
    """A whole number is a number."""
    return wanted == given or (wanted, given) == (FeatureType.DOUBLE, FeatureType.INT64)


def _type_name(type_: FeatureType | None) -> str:
    return "no type" if type_ is None else type_.value
