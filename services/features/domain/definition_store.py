"""What the rules of definitions need of the world: where they are kept, and who depends on them."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.features.domain.catalog import Snapshot, compile_snapshot
from services.features.domain.definition_diff import Change
from services.features.domain.definitions import Definition, Entity, FeatureView
from services.features.domain.signature_fit import Binding


@dataclass(frozen=True, slots=True)
class Definitions:
    """All definitions at one version, by resource name."""

    version: int
    by_name: Mapping[str, Definition]

    @property
    def entities(self) -> dict[str, Entity]:
        """The entities by id, in the order of ids."""
        return {each.id: each for each in self._sorted() if isinstance(each, Entity)}

    @property
    def views(self) -> dict[str, FeatureView]:
        """The views by id, in the order of ids."""
        return {each.id: each for each in self._sorted() if isinstance(each, FeatureView)}

    def compiled(self) -> Snapshot:
        """Return them as requests read them."""
        return compile_snapshot(self.version, self.entities.values(), self.views.values())

    def _sorted(self) -> list[Definition]:
        return [self.by_name[name] for name in sorted(self.by_name)]


class DefinitionTransaction(Protocol):
    """One transaction, while which nobody else changes a definition or learns that a signature fits."""

    @property
    def definitions(self) -> Definitions:
        """The definitions before the transaction."""

    @property
    def now(self) -> datetime:
        """The database's time; it rises from one transaction that changes something to the next."""

    async def store(
        self, put: Collection[Definition], delete: Collection[str], changes: Sequence[Change], source_revision: str
    ) -> Definitions:
        """Store definitions, remove others by name, and record what has changed; returns what there is then."""

    async def recall(self, request_id: str, fingerprint: str) -> bytes | None:
        """Return the answer that was given to this request within the last day; RequestIdReused for another one."""

    async def remember(self, request_id: str, fingerprint: str, answer: bytes) -> None:
        """Keep the answer to a request."""


class DefinitionStore(Protocol):
    """The database of definitions."""

    async def version(self) -> int:
        """Return the version; it rises whenever a definition changes."""

    async def load(self) -> Definitions:
        """Return all definitions."""

    def change(self, principal: str) -> AbstractAsyncContextManager[DefinitionTransaction]:
        """Open a transaction, one at a time among all processes; it commits when the block ends without an error."""


class VersionRegistry(Protocol):
    """The registry, as definitions see it."""

    async def bindings(self, views: Collection[str]) -> Sequence[Binding]:
        """Return what registered versions fetch from these views, by id; raises RegistryUnavailable."""
