"""This process as a member of its pool: the versions that the registry wants here, and what has become of them."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from services.common.tasks import spawn
from services.inference.domain.failure import VersionNotLoaded
from services.inference.domain.instance import HostParts
from services.inference.domain.model_host import ModelHost
from services.inference.domain.version import BatchingPolicy, DeploymentSpec, Desired, LoadState, VersionKey

_NOTHING: Final = Desired({}, {}, 0)


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """What this replica says of one deployment."""

    deployment: str
    state: LoadState
    message: str


class Replica:
    """All versions of this process. `on_ready` hears of each version that begins or stops to answer, None = gone."""

    def __init__(
        self, replica_id: str, pool: str, parts: HostParts, on_ready: Callable[[VersionKey, bool | None], None]
    ) -> None:
        self.replica_id = replica_id
        self.pool = pool
        self.draining = False
        self.hosts: dict[VersionKey, ModelHost] = {}
        self._parts = parts
        self._on_ready = on_ready
        self._desired = _NOTHING
        self.configured = False
        """Whether the registry's wishes are known, be it from disk."""
        self._changed = asyncio.Event()
        self._newest_of: dict[str, ModelHost] = {}
        """By model; until the next change."""
        self._listeners: set[Callable[[], None]] = set()
        self._unloads: set[asyncio.Task[None]] = set()

    @property
    def epoch(self) -> int:
        """Epoch of the configuration that is applied."""
        return self._desired.epoch

    @property
    def settled(self) -> bool:
        """Whether a configuration is known and each of its versions was READY or failed once.

        This is what readiness waits for. A version that cannot be loaded must not keep the others from serving.
        """
        return self.configured and all(host.tried for host in self.hosts.values())

    def changed(self) -> asyncio.Event:
        """Return the event that the next change sets; take it before reading the state."""
        return self._changed

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` on every change while the block runs."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def apply(self, desired: Desired) -> None:
        """Load what is new, let go what is not wanted any more."""
        if self.draining:
            return
        self._desired = desired
        self.configured = True
        wanted = _wanted(desired)
        for key, host in self.hosts.items():
            if host.state is LoadState.UNLOADING:
                continue
            if key in wanted and host.spec == desired.versions[key]:
                host.set_policy(wanted[key])
            else:
                self._unload(host)
        for key, policy in wanted.items():
            if key not in self.hosts:
                self._load(key, policy)
        self._notify()

    def find(self, model: str, version: str) -> ModelHost:
        """Return the host of a version; an empty version means the highest READY one of the model, else the highest.

        Raises `VersionNotLoaded`.
        """
        host = self.hosts.get(VersionKey(model, version)) if version else self._newest(model)
        if host is None:
            raise VersionNotLoaded(model, version)
        return host

    def find_ready(self, model: str, version: str) -> ModelHost:
        """Return the host of a version that answers; raises like `find`, or what the version says meanwhile."""
        host = self.find(model, version)
        host.check_ready()
        return host

    def statuses(self) -> list[DeploymentStatus]:
        """Return what to report of each deployment of the pool."""
        return [self._status(self._desired.deployments[name]) for name in sorted(self._desired.deployments)]

    def drain(self) -> None:
        """Begin to leave: streams end once their items are answered, watchers are told.

        Single calls are still answered. They come until the listener is closed, and refusing them before that would
        fail callers who could not know.
        """
        self.draining = True
        self._notify()

    async def close(self) -> None:
        """End every process."""
        self.draining = True
        for task in self._unloads:
            task.cancel()
        await asyncio.gather(*self._unloads, return_exceptions=True)
        await asyncio.gather(*(host.close() for host in self.hosts.values()))

    def _load(self, key: VersionKey, policy: BatchingPolicy) -> None:
        host = ModelHost(self._desired.versions[key], policy, self._parts, self._host_changed)
        self.hosts[key] = host
        self._on_ready(key, False)
        host.start()

    def _unload(self, host: ModelHost) -> None:
        task = spawn(self._finish_unload(host), name=f"unload {host.key}")
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _finish_unload(self, host: ModelHost) -> None:
        await host.unload()
        self.hosts.pop(host.key, None)
        self._newest_of.clear()
        self._parts.observer.forget(host.key)
        self._on_ready(host.key, None)
        if not self.draining:
            # It may have been wanted again meanwhile, or under the same name with other content.
            self.apply(self._desired)

    def _host_changed(self, host: ModelHost) -> None:
        self._on_ready(host.key, host.ready)
        self._notify()

    def _newest(self, model: str) -> ModelHost | None:
        found = self._newest_of.get(model)
        if found is not None:
            return found
        known = [host for key, host in self.hosts.items() if key.model == model]
        ready = [host for host in known if host.ready]
        newest = max(ready or known, key=lambda host: _number(host.key.version), default=None)
        if newest is not None:
            self._newest_of[model] = newest
        return newest

    def _is_ready(self, key: VersionKey) -> bool:
        host = self.hosts.get(key)
        return host is not None and host.ready

    def _status(self, deployment: DeploymentSpec) -> DeploymentStatus:
        if deployment.defect:
            return DeploymentStatus(deployment.name, LoadState.FAILED, deployment.defect)
        host = self.hosts.get(deployment.key)
        if host is None:
            return DeploymentStatus(deployment.name, LoadState.FETCHING, "the version is not known here yet")
        return DeploymentStatus(deployment.name, host.state, host.message)

    def _notify(self) -> None:
        self._newest_of.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in tuple(self._listeners):
            listener()


def _wanted(desired: Desired) -> Mapping[VersionKey, BatchingPolicy]:
    """Return the versions to hold. Two deployments of one version share it; the first by name gives the policy."""
    wanted: dict[VersionKey, BatchingPolicy] = {}
    for name in sorted(desired.deployments):
        deployment = desired.deployments[name]
        if deployment.key in desired.versions and not deployment.defect:
            wanted.setdefault(deployment.key, deployment.batching)
    return wanted


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() else 0


def sorted_hosts(hosts: Iterable[ModelHost]) -> list[ModelHost]:
    """Return the hosts by model, then by version as a number."""
    return sorted(hosts, key=lambda host: (host.key.model, _number(host.key.version)))
