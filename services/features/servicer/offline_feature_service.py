"""OfflineFeatureService: values as they were known then, for rows that somebody sends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Protocol

from interlock.features.v1 import offline_feature_service_pb2 as pb

from services.common.call import Call
from services.common.errors import DRAINING, Unavailable
from services.features.convert.join import CHUNK_LIMIT_BYTES, chunk_from_proto, order_from_proto
from services.features.domain.catalog import Catalog
from services.features.domain.failure import JoinTooLarge, too_quiet
from services.features.domain.point_in_time import JoinPlan

_MEBIBYTE: Final = 1024 * 1024


class StreamJoiner(Protocol):
    """Joins rows that stand in a file."""

    def folder(self) -> Any:
        """Open a folder for one join."""

    def rows_file(self, folder: Path) -> Path:
        """Return where the rows have to be put, as an Arrow stream."""

    async def join(self, folder: Path, plan: JoinPlan) -> Path:
        """Return where the rows with the features are."""


class OfflineFeatureServicer:
    """One method for each RPC of OfflineFeatureService."""

    def __init__(self, catalog: Catalog, joiner: StreamJoiner, *, limit_mib: int, idle_timeout_s: float) -> None:
        self._catalog = catalog
        self._joiner = joiner
        self._limit_mib = limit_mib
        self._idle_timeout_s = idle_timeout_s
        self._at_work: set[asyncio.Timeout] = set()

    def drain(self) -> None:
        """End what is received or joined now; what is sent already goes on."""
        for scope in self._at_work:
            scope.reschedule(asyncio.get_running_loop().time())

    async def JoinFeatures(
        self, requests: AsyncIterator[pb.JoinFeaturesRequest], call: Call
    ) -> AsyncIterator[pb.JoinFeaturesResponse]:
        """Join features to the rows of the caller."""
        async with self._joiner.folder() as folder:
            joined = await self._join(requests, folder)
            with await asyncio.to_thread(joined.open, "rb") as file:
                while chunk := await asyncio.to_thread(file.read, CHUNK_LIMIT_BYTES):
                    yield pb.JoinFeaturesResponse(arrow_stream=chunk)

    async def _join(self, requests: AsyncIterator[pb.JoinFeaturesRequest], folder: Path) -> Path:
        scope = asyncio.timeout(None)
        self._at_work.add(scope)
        try:
            async with scope:
                plan = order_from_proto(await self._next(requests)).plan(self._catalog.current)
                await self._receive(requests, self._joiner.rows_file(folder))
                return await self._joiner.join(folder, plan)
        except TimeoutError:
            raise Unavailable("the service drains; ask another one, or this one in a while", reason=DRAINING) from None
        finally:
            self._at_work.discard(scope)

    async def _receive(self, requests: AsyncIterator[pb.JoinFeaturesRequest], path: Path) -> None:
        size_bytes = 0
        with await asyncio.to_thread(path.open, "wb") as file:
            while (message := await self._next(requests)) is not None:
                chunk = chunk_from_proto(message)
                size_bytes += len(chunk)
                if size_bytes > self._limit_mib * _MEBIBYTE:
                    raise JoinTooLarge(self._limit_mib)
                await asyncio.to_thread(file.write, chunk)

    async def _next(self, requests: AsyncIterator[pb.JoinFeaturesRequest]) -> pb.JoinFeaturesRequest | None:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await anext(requests, None)
        except TimeoutError:
            raise too_quiet(self._idle_timeout_s) from None
