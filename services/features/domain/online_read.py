"""Reading features of many views for many rows: what is asked is worked out once, then asked of all in one go."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.common.errors import Violation, echo
from services.common.refusals import InvalidRequest
from services.features.domain.catalog import Catalog, CompiledFeature, Snapshot
from services.features.domain.definitions import Entity
from services.features.domain.failure import INVALID_ENTITY_KEY
from services.features.domain.plain_view import default_of
from services.features.domain.ports import Column, OnlineStore, ReadRow, Reply, Request, Status, ViewReader
from services.features.domain.value_check import WrongValue, canonical_key
from services.features.domain.view_kind import make_reader

FEATURE_LIMIT: Final = 1_000
ROW_LIMIT: Final = 1_000
CELL_LIMIT: Final = 10_000
_PLAN_LIMIT: Final = 1_000
_VIOLATION_LIMIT: Final = 20
# Values that are worked on before other calls get their turn; a usual read has far fewer.
_SLICE_VALUES: Final = 10_000


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What one list of features needs, compiled once and used by every call that asks for the same list."""

    features: tuple[str, ...]
    """`<view>.<feature>` in the order asked, `<view>.*` expanded."""
    readers: tuple[ViewReader, ...]
    """One for each view."""
    views: tuple[str, ...]
    """Ids of the views, in the order of the readers."""
    views_of_features: tuple[str, ...]
    """For each feature its view."""
    places: tuple[tuple[int, int], ...]
    """For each feature the reader and the column of it."""
    defaults: tuple[bytes, ...]
    """For each feature what stands in for a missing value."""
    entities: tuple[Entity, ...]
    """Whose keys decide what is read."""
    known: frozenset[str]
    """All entities that are defined."""
    computes: bool
    """Whether some feature is computed from request values; otherwise nobody looks at these."""

    def row(self, index: int, row: ReadRow, wrong: list[Violation]) -> ReadRow:
        """Return a row with the checked keys of the entities needed; adds what is wrong with it to `wrong`."""
        keys: dict[str, str] = {}
        for entity in self.entities:
            key = row.keys.get(entity.id)
            if not key:
                continue
            try:
                keys[entity.id] = canonical_key(key, entity)
            except WrongValue as error:
                wrong.append(Violation(f"rows[{index}].entities.{entity.id}", str(error)))
        if not self.known.issuperset(row.keys):
            field = f"rows[{index}].entities"
            unknown = sorted(row.keys.keys() - self.known)
            wrong.extend(Violation(field, f"want ids of entities, got {echo(name)}") for name in unknown)
        return ReadRow(keys, row.request_values, index)


class ReadPlans:
    """Compiled reads by the features asked for; they hold for one snapshot of the definitions."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._snapshot = catalog.current
        self._plans: OrderedDict[tuple[str, ...], ReadPlan] = OrderedDict()

    def find(self, references: Sequence[str]) -> ReadPlan:
        """Return the plan of a list of features; raises ResourceNotFound or InvalidRequest."""
        snapshot = self._catalog.current
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._plans.clear()
        asked = tuple(references)
        plan = self._plans.get(asked)
        if plan is None:
            plan = self._plans[asked] = _compile(snapshot, asked)
            if len(self._plans) > _PLAN_LIMIT:
                self._plans.popitem(last=False)
        return plan


class FeatureReader:
    """Reads by plan from the online store."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store

    async def read(self, plan: ReadPlan, rows: Sequence[ReadRow], as_of_us: int) -> Sequence[Column]:
        """Return one column for each feature of the plan, in its order.

        Raises InvalidRequest for wrong keys, OnlineStoreUnavailable and StoreBusy.
        """
        checked = _check_rows(plan, rows)
        size = max(1, _SLICE_VALUES // len(plan.features))
        slices = [_Slice(plan, checked[start : start + size], as_of_us) for start in range(0, len(checked), size)]
        requests = slices[0].requests if len(slices) == 1 else [each for part in slices for each in part.requests]
        replies = await self._store.read(requests) if requests else ()
        if len(slices) == 1:
            return slices[0].columns(replies)
        parts = []
        start = 0
        for part in slices:
            parts.append(part.columns(replies[start : start + len(part.requests)]))
            start += len(part.requests)
            await asyncio.sleep(0)
        return [_join(columns) for columns in zip(*parts, strict=True)]


class _Slice:
    """Some rows of a read: what is asked for them, and the columns that the replies make."""

    __slots__ = ("_as_of_us", "_asked", "_plan", "_rows", "requests")

    def __init__(self, plan: ReadPlan, rows: Sequence[ReadRow], as_of_us: int) -> None:
        self._plan = plan
        self._rows = rows
        self._as_of_us = as_of_us
        self.requests: list[Request] = []
        # For each reader: its rows, where its requests end, and the places of its rows unless it has them all.
        self._asked: list[tuple[Sequence[ReadRow], int, Sequence[int] | None]] = []
        whole = all(len(row.keys) == len(plan.entities) for row in rows)
        for reader in plan.readers:
            known = None if whole else [i for i, row in enumerate(rows) if row.keys.keys() >= set(reader.entities)]
            own = rows if known is None else [rows[i] for i in known]
            self.requests.extend(reader.ask(own, as_of_us))
            self._asked.append((own, len(self.requests), known))

    def columns(self, replies: Sequence[Reply]) -> Sequence[Column]:
        """Return a column for each feature of the plan."""
        found = []
        start = 0
        for reader, (rows, end, _) in zip(self._plan.readers, self._asked, strict=True):
            found.append(reader.answer(rows, replies[start:end], self._as_of_us))
            start = end
        return [
            self._spread(found[reader][column], self._asked[reader][2], default)
            for (reader, column), default in zip(self._plan.places, self._plan.defaults, strict=True)
        ]

    def _spread(self, column: Column, known: Sequence[int] | None, default: bytes) -> Column:
        """Return a column for all rows: a row without a key of the view's entities has the value MISSING."""
        if known is None:
            return column
        count = len(self._rows)
        spread = Column([default] * count, [int(Status.MISSING)] * count, [-1] * count, [0] * count, [0] * count)
        for source, place in enumerate(known):
            spread.values[place] = column.values[source]
            spread.statuses[place] = column.statuses[source]
            spread.ages_ms[place] = column.ages_ms[source]
            spread.event_times_us[place] = column.event_times_us[source]
            spread.known_ats_us[place] = column.known_ats_us[source]
        return spread


def check_row_count(count: int) -> None:
    """Raise InvalidRequest when a read has no rows, or too many."""
    if not 0 < count <= ROW_LIMIT:
        raise InvalidRequest([Violation("rows", f"want 1 to {ROW_LIMIT} rows, got {count}")])


def _compile(snapshot: Snapshot, asked: tuple[str, ...]) -> ReadPlan:
    if not 0 < len(asked) <= FEATURE_LIMIT:
        raise InvalidRequest([Violation("features", f"want 1 to {FEATURE_LIMIT} features, got {len(asked)}")])
    features = snapshot.expand(asked)
    if len(features) > FEATURE_LIMIT:
        raise InvalidRequest([Violation("features", f"want at most {FEATURE_LIMIT} features, got {len(features)}")])
    by_view: dict[str, dict[str, CompiledFeature]] = {}
    for feature in features:
        by_view.setdefault(feature.view, {})[feature.spec.name] = feature
    readers = [make_reader(snapshot.view(view), list(found.values())) for view, found in by_view.items()]
    place = {
        (view, name): (index, column)
        for index, (view, found) in enumerate(by_view.items())
        for column, name in enumerate(found)
    }
    return ReadPlan(
        features=tuple(feature.reference for feature in features),
        readers=tuple(readers),
        views=tuple(by_view),
        views_of_features=tuple(feature.view for feature in features),
        places=tuple(place[feature.view, feature.spec.name] for feature in features),
        defaults=tuple(default_of(feature.spec) for feature in features),
        entities=_entities(snapshot.entities, readers),
        known=frozenset(snapshot.entities),
        computes=not all(reader.entities for reader in readers),
    )


def _entities(known: Mapping[str, Entity], readers: Sequence[ViewReader]) -> tuple[Entity, ...]:
    needed = dict.fromkeys(entity for reader in readers for entity in reader.entities)
    return tuple(known[entity] for entity in needed)


def _check_rows(plan: ReadPlan, rows: Sequence[ReadRow]) -> Sequence[ReadRow]:
    if len(rows) * len(plan.views) > CELL_LIMIT:
        got = f"{len(rows)} rows times {len(plan.views)} views"
        raise InvalidRequest([Violation("rows", f"want at most {CELL_LIMIT} rows times views, got {got}")])
    wrong: list[Violation] = []
    checked = [plan.row(index, row, wrong) for index, row in enumerate(rows)]
    if wrong:
        raise InvalidRequest(wrong[:_VIOLATION_LIMIT], INVALID_ENTITY_KEY)
    return checked


def _join(parts: Sequence[Column]) -> Column:
    joined = Column([], [], [], [], [])
    for part in parts:
        joined.values.extend(part.values)
        joined.statuses.extend(part.statuses)
        joined.ages_ms.extend(part.ages_ms)
        joined.event_times_us.extend(part.event_times_us)
        joined.known_ats_us.extend(part.known_ats_us)
    return joined
