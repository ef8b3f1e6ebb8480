"""What the domain needs of the world: consistent reads, transactions that change things, and the log of changes."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.common.errors import Violation
from services.registry.domain.audit import AuditEntry, Author, ChainHead
from services.registry.domain.replica import ReplicaReport, ReplicaStatus
from services.registry.domain.resource import FeatureBinding, Model, ModelVersion, Resource, ResourceT, Route


@dataclass(frozen=True, slots=True)
class Selection:
    """Which resources of a kind to list; an empty field selects all. `model` and `model_version` are names."""

    model: str = ""
    model_version: str = ""
    environment: str = ""
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a watcher wants to know of: one environment, or one pool; the other is empty."""

    environment: str = ""
    pool: str = ""


class View(Protocol):
    """One consistent state of everything."""

    @property
    def now(self) -> datetime:
        """The database's time; it never falls from one change to the next."""

    @property
    def epoch(self) -> int:
        """Epoch of the last change."""

    async def find(self, kind: type[ResourceT], name: str) -> ResourceT | None:
        """Return the resource of that name; a version is found by its semantic label too."""

    async def holder(self, name: str) -> str | None:
        """Return the name of the resource that a new one of this name would clash with, case aside."""

    async def list(
        self, kind: type[ResourceT], selection: Selection, after: str = "", limit: int | None = None
    ) -> list[ResourceT]:
        """Return resources in the order of their kind, those after the one named `after`."""

    async def feature_bindings(
        self, views: Collection[str], after: tuple[str, str], limit: int
    ) -> Sequence[FeatureBinding]:
        """Return what versions fetch from the views, from all when there are none, by version and feature.

        Those after the version and feature in `after`.
        """

    async def statuses(self, deployments: Collection[str]) -> Mapping[str, Sequence[ReplicaStatus]]:
        """Return what replicas say of each deployment, under leases that have not run out."""


class Change(View, Protocol):
    """One transaction: all of it becomes visible, logged and audited under one epoch, or nothing does."""

    @property
    def author(self) -> Author:
        """Who makes the change."""

    @property
    def etag(self) -> str:
        """The etag that resources get by this change."""

    @property
    def new_epoch(self) -> int:
        """Epoch after the change; that of before while nothing has changed."""

    async def put(self, resource: Resource) -> None:
        """Store a resource that is new or different."""

    async def delete(self, resource: Resource) -> None:
        """Remove a resource, and what replicas say of it."""

    async def tell(self, resource: Model | ModelVersion, scope: Scope, *, gone: bool = False) -> None:
        """Tell the watchers of `scope` of a version or model that concerns them from now on, or no longer."""

    async def keep_report(self, report: ReplicaReport) -> None:
        """Replace what the replica said before; a draining replica says nothing from now on."""

    async def recall(self, request_id: str, fingerprint: str) -> bytes | None:
        """Return the answer that was given to this request within the last day; RequestIdReused for another one."""

    async def remember(self, request_id: str, fingerprint: str, answer: bytes) -> None:
        """Keep the answer to a request."""


class Store(Protocol):
    """The database."""

    def view(self) -> AbstractAsyncContextManager[View]:
        """Open a consistent read."""

    def change(self, author: Author) -> AbstractAsyncContextManager[Change]:
        """Open a transaction, one at a time; it commits when the block ends without an error."""

    async def route_at(self, name: str, time: datetime) -> Route | None:
        """Return the route as it was, None when there was none."""

    async def audit_entries(self, resource: str, after: int, limit: int) -> list[AuditEntry]:
        """Return entries of the log after a sequence, oldest first; `resource` is a name, empty for all."""

    async def audit_head(self) -> ChainHead:
        """Return where the log ends, as it is written beside the log."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one change did within a scope."""

    epoch: int
    upserted: tuple[Resource, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything within a scope."""

    epoch: int
    resources: tuple[Resource, ...]


class ChangeFeed(Protocol):
    """The log of changes, as watchers read it."""

    @property
    def registry_id(self) -> str:
        """Identity of the database: epochs of another one mean nothing here."""

    async def snapshot(self, scope: Scope) -> Snapshot:
        """Return everything within the scope; ResourceNotFound for an unknown environment."""

    async def deltas(self, scope: Scope, after: int) -> tuple[list[Delta], int]:
        """Return what changed within the scope after an epoch, and the epoch up to which that is complete.

        Raises WatchTokenExpired when those changes are no longer kept, or the epoch has not been reached yet.
        """

    async def wait(self, epoch: int, timeout_s: float) -> None:
        """Return once there is a later epoch, or after the time-out; WatchEnded when the process drains."""


class FeatureGate(Protocol):
    """The features service, as the registry asks it before it deploys."""

    async def check(self, version: ModelVersion) -> tuple[Sequence[Violation], Mapping[str, str]]:
        """Return why a version cannot get its features, one for each, and the digests of their views by view id.

        Raises FeaturesUnavailable.
        """


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """What is stored of some content."""

    digest: str
    size_bytes: int
    received_bytes: int
    complete: bool
    create_time: datetime | None


class PartFile(Protocol):
    """An upload that is under way; it stays behind when the upload is cut off, until it is published or discarded."""

    @property
    def received_bytes(self) -> int:
        """Bytes that are there."""

    async def append(self, chunk: bytes) -> None:
        """Write the next bytes; StorageFull when there is no room, UploadTakenOver when a later stream goes on."""

    async def publish(self) -> None:
        """Check the digest of the whole and make the content complete; DigestMismatch throws away what came."""


class ArtifactStore(Protocol):
    """Content by its digest."""

    async def find(self, digest: str) -> StoredArtifact | None:
        """Return what is stored, complete or not."""

    def upload(self, digest: str, size_bytes: int, offset_bytes: int) -> AbstractAsyncContextManager[PartFile]:
        """Open an upload at an offset: 0 begins anew; WrongOffset when it stopped elsewhere."""

    def read(self, digest: str, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield complete content from an offset on; DigestMismatch before the end of a whole read that is corrupt."""
