"""The registry as the monitor meets it: versions, which never change, so one answer is enough."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
import structlog
from interlock.registry.v1 import registry_service_pb2 as registry_pb
from interlock.registry.v1 import registry_service_pb2_grpc as registry_rpc

from services.common.names import MODEL, VERSION
from services.common.refusals import ResourceNotFound
from services.monitor.convert.version import version_from_proto
from services.monitor.domain.failure import RegistryUnavailable
from services.monitor.domain.version_info import VersionInfo

if TYPE_CHECKING:
    from interlock.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

_LOG: Final = structlog.get_logger(part="registry")
_SERVICE: Final = "interlock.registry.v1.RegistryService"
IDEMPOTENT: Final = (f"{_SERVICE}/GetModelVersion", f"{_SERVICE}/ListModelVersions")
_TIMEOUT_S: Final = 1.0
_ABSENCE_S: Final = 3.0
"""How long an unknown version, or a registry that does not answer, is believed to stay so."""
_VERSION_LIMIT: Final = 1_000
_ABSENT_LIMIT: Final = 10_000
_RECENT_VERSIONS: Final = 20
_MISSING: Final = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
_Key = tuple[str, str]
_ValueT = TypeVar("_ValueT")


class RegistryVersions:
    """See `ports.Versions`; remembers the versions that were used last."""

    def __init__(self, channel: grpc.aio.Channel, clock: Callable[[], float] = time.monotonic) -> None:
        self._stub: RegistryServiceAsyncStub = registry_rpc.RegistryServiceStub(channel)
        self._clock = clock
        self._known: OrderedDict[_Key, VersionInfo] = OrderedDict()
        self._absent_until: OrderedDict[_Key, float] = OrderedDict()
        self._away_until = float("-inf")
        self._asking: dict[_Key, asyncio.Lock] = {}

    async def get(self, model: str, version: str) -> VersionInfo | None:
        """Return the version; None when it is unknown or the registry does not answer."""
        try:
            return await self.find(model, version)
        except (ResourceNotFound, RegistryUnavailable):
            return None

    async def find(self, model: str, version: str) -> VersionInfo:
        """Return the version by id, semantic label or alias; raises ResourceNotFound or RegistryUnavailable."""
        key = (model, version)
        found = self._remembered(key)
        if found is not None:
            return found
        lock = self._asking.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                return self._remembered(key) or await self._ask(key)
        finally:
            if not lock.locked():
                self._asking.pop(key, None)

    async def recent(self, model: str) -> list[VersionInfo]:
        """Return the newest versions of a model, at most 20; raises ResourceNotFound or RegistryUnavailable."""
        name = MODEL.format(model)
        request = registry_pb.ListModelVersionsRequest(parent=name, page_size=_RECENT_VERSIONS)
        try:
            answer = await self._stub.ListModelVersions(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, name) from None
        return [version_from_proto(message) for message in answer.model_versions]

    def _remembered(self, key: _Key) -> VersionInfo | None:
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
            return found
        now = self._clock()
        if now < self._absent_until.get(key, now):
            raise ResourceNotFound(VERSION.format(*key))
        if now < self._away_until:
            raise RegistryUnavailable
        return None

    async def _ask(self, key: _Key) -> VersionInfo:
        name = VERSION.format(*key)
        request = registry_pb.GetModelVersionRequest(name=name)
        try:
            answer = await self._stub.GetModelVersion(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            failure = self._failure(error, name)
            if isinstance(failure, ResourceNotFound):
                _remember(self._absent_until, key, self._clock() + _ABSENCE_S, _ABSENT_LIMIT)
            raise failure from None
        found = version_from_proto(answer.model_version)
        # Not under the name that was asked for: an alias may point elsewhere tomorrow.
        _remember(self._known, (found.model, found.version), found, _VERSION_LIMIT)
        return found

    def _failure(self, error: grpc.aio.AioRpcError, name: str) -> ResourceNotFound | RegistryUnavailable:
        if error.code() in _MISSING:
            return ResourceNotFound(name)
        _LOG.warning("registry_does_not_answer", code=error.code().name, text=error.details())
        self._away_until = self._clock() + _ABSENCE_S
        return RegistryUnavailable()


def _remember(memory: "OrderedDict[_Key, _ValueT]", key: _Key, value: _ValueT, limit: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > limit:
        memory.popitem(last=False)
