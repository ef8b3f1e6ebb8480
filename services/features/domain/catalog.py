"""The definitions as every request reads them: compiled once, in memory, replaced as a whole.

Whoever keeps something compiled from a snapshot (a read plan, an expression) keeps it beside that snapshot and drops it
when `Catalog.current` is another one; snapshots never change.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from services.common.refusals import ResourceNotFound
from services.features.domain.definitions import NEVER, Entity, Feature, FeatureView

ANY_AGE_US: Final = -1
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class CompiledFeature:
    """One feature, ready to be read: `index` is its place in the view, `max_age_us` ANY_AGE_US when it has none."""

    view: str
    spec: Feature
    index: int
    max_age_us: int

    @property
    def reference(self) -> str:
        """`<view>.<feature>`."""
        return f"{self.view}.{self.spec.name}"


@dataclass(frozen=True, slots=True)
class CompiledView:
    """One view, ready to be read; `entities` are in the order in which their keys identify a row.

    `generation` differs between two views that had the same id one after the other: keys of stores begin with both.
    `retention_us` is None when rows are kept for good.
    """

    definition: FeatureView
    entities: tuple[Entity, ...]
    features: Mapping[str, CompiledFeature]
    digest: str
    generation: int
    retention_us: int | None
    allowed_lateness_us: int

    @property
    def id(self) -> str:
        """Id of the view."""
        return self.definition.id


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All definitions at one version; `version` rises with every apply that changes something."""

    version: int = 0
    entities: Mapping[str, Entity] = field(default_factory=dict)
    views: Mapping[str, CompiledView] = field(default_factory=dict)

    def view(self, view_id: str) -> CompiledView:
        """Return a view; raises ResourceNotFound."""
        found = self.views.get(view_id)
        if found is None:
            raise ResourceNotFound(f"featureViews/{view_id}")
        return found

    def expand(self, references: Sequence[str]) -> list[CompiledFeature]:
        """Return the features of `<view>.<feature>` and `<view>.*`, in order; ResourceNotFound names an unknown one.

        A view's id may hold dots, a feature's name may not.
        """
        found: list[CompiledFeature] = []
        for reference in references:
            view_id, _, name = reference.rpartition(".")
            view = self.view(view_id)
            if name == "*":
                found.extend(view.features.values())
            elif name in view.features:
                found.append(view.features[name])
            else:
                raise ResourceNotFound(reference)
        return found


class Catalog:
    """Holds the newest snapshot; readers take `current` once for each request and keep to it."""

    def __init__(self) -> None:
        self._current = Snapshot()

    @property
    def current(self) -> Snapshot:
        """The newest snapshot."""
        return self._current

    def replace(self, snapshot: Snapshot) -> None:
        """Take a snapshot that is newer than the current one; an older one is left aside."""
        if snapshot.version > self._current.version:
            self._current = snapshot


def compile_snapshot(version: int, entities: Iterable[Entity], views: Iterable[FeatureView]) -> Snapshot:
    """Return a snapshot of definitions that are sound together."""
    by_id = {entity.id: entity for entity in entities}
    return Snapshot(version, by_id, {view.id: compile_view(view, by_id) for view in views})


def compile_view(view: FeatureView, entities: Mapping[str, Entity]) -> CompiledView:
    """Return a view ready to be read; `entities` holds at least its own, by id."""
    features = {
        feature.name: CompiledFeature(view.id, feature, index, _max_age_us(view.max_age_of(feature)))
        for index, feature in enumerate(view.features)
    }
    return CompiledView(
        definition=view,
        entities=tuple(entities[entity] for entity in view.entities),
        features=features,
        digest=view.digest(),
        generation=(view.create_time - NEVER) // _MICROSECOND,
        retention_us=None if view.retention is None else view.retention // _MICROSECOND,
        allowed_lateness_us=view.allowed_lateness // _MICROSECOND,
    )


def _max_age_us(max_age: timedelta | None) -> int:
    return ANY_AGE_US if max_age is None else max_age // _MICROSECOND
