"""Takes predictions into windows: what is new is gathered in memory and added to the database every few seconds.

Memory holds what came since the last time only, so an event that is days late is no special case, and a crash costs what
the log can give back: with every addition goes the receive time up to which everything is in.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import numpy as np
import structlog

from services.common.errors import ServiceError
from services.common.refusals import ResourceNotFound
from services.monitor.domain.batch_view import BatchView
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.column_form import VersionForm, form_of, form_of_unnamed
from services.monitor.domain.columns import Bools, PredictionColumns
from services.monitor.domain.failure import RegistryUnavailable
from services.monitor.domain.naming import named
from services.monitor.domain.policy import PolicyBook
from services.monitor.domain.subset import subset
from services.monitor.domain.version_info import VersionInfo
from services.monitor.domain.window import WindowKey, WindowSketch
from services.monitor.domain.window_ports import Replay, VersionFinder, WindowStore
from services.monitor.domain.windowing import add_part, parts, stretches, window_key

PART: Final = "windows"
_LOG: Final = structlog.get_logger(part=PART)
_FORM_LIMIT: Final = 1_000


class WindowIntake:
    """A `PredictionSink`. Bounded in sketches, and in predictions that wait for a version that nobody knows yet."""

    def __init__(
        self,
        store: WindowStore,
        versions: VersionFinder,
        book: PolicyBook,
        drops: Drops,
        *,
        position: str,
        sketch_limit: int,
        feature_limit: int,
        waiting_limit_rows: int,
        retention_s: float,
        clock_tolerance_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._versions = versions
        self._book = book
        self._drops = drops
        # Its value is the receive time, microseconds, up to which what came in is in windows.
        self._position = position
        self._sketch_limit = sketch_limit
        self._feature_limit = feature_limit
        self._waiting_limit_rows = waiting_limit_rows
        self._retention_us = int(retention_s * 1e6)
        self._tolerance_us = int(clock_tolerance_s * 1e6)
        self._clock = clock
        self._open: dict[WindowKey, WindowSketch] = {}
        self._sketches = 0
        """Sketches in the open windows, at most."""
        self._taken_us = 0
        self._started_us = int(clock() * 1e6)
        self._forms: OrderedDict[tuple[str, str], VersionForm] = OrderedDict()
        self._waiting: deque[PredictionColumns] = deque()
        self._waiting_rows = 0
        self._restored = asyncio.Event()
        self._adding = asyncio.Lock()
        self._flushing = asyncio.Lock()

    async def take(self, columns: PredictionColumns) -> None:
        """Add predictions to their windows; those of a version that is not known yet wait."""
        # What a crash took comes first, for then one receive time says what is in.
        await self._restored.wait()
        if columns.version:
            info = columns.info or await self._find(columns)
            if info is not None:
                await self._add(columns if columns.info else named(columns, info), info)
        self._taken_us = max(self._taken_us, columns.receive_time_us)

    async def run(self, interval_s: float, replay: Replay) -> None:
        """Take from the log what a crash has cost, then add to the database every few seconds, for good."""
        try:
            await self._restore(replay)
        except Exception as error:  # noqa: BLE001 - new predictions are taken whatever is wrong with old ones
            _LOG.error("windows_not_restored", exc_info=error)
        finally:
            self._restored.set()
        while True:
            await asyncio.sleep(interval_s)
            await self._retry_waiting()
            await self._try_flush()

    async def position_us(self) -> int:
        """Return the receive time up to which what came in is in the database."""
        return await self._store.position(self._position)

    async def flush(self) -> None:
        """Add everything to the database now; raises ServiceError, and keeps what could not be added."""
        async with self._flushing:
            async with self._adding:
                added, self._open = self._open, {}
                sketches, self._sketches = self._sketches, 0
                taken_us = self._taken_us
            if not added:
                return
            adding = asyncio.ensure_future(self._store.add(added, {self._position: taken_us} if taken_us else {}))
            try:
                # Whoever is cancelled here must know whether it was added, or it would be added twice.
                await asyncio.shield(adding)
            except BaseException:
                await asyncio.wait((adding,))
                if adding.cancelled() or adding.exception() is not None:
                    async with self._adding:
                        await asyncio.to_thread(self._put_back, added)
                        self._sketches += sketches
                raise

    @asynccontextmanager
    async def settled(self) -> AsyncIterator[None]:
        """Flush, and take nothing while the block runs."""
        await self.flush()
        async with self._adding:
            yield

    async def _restore(self, replay: Replay) -> None:
        count = 0
        # What comes in from now on comes through `take`, also when it is in a file before files are looked for.
        async for piece, until_us in replay.between(await self.position_us(), self._started_us):
            for columns in piece:
                if columns.info is not None:
                    await self._add(columns, columns.info)
                    count += columns.count
            self._taken_us = max(self._taken_us, until_us)
            await self.flush()
        if count:
            _LOG.info("windows_restored", predictions=count)

    async def _find(self, columns: PredictionColumns) -> VersionInfo | None:
        try:
            return await self._versions.find(columns.model, columns.version)
        except ResourceNotFound:
            self._drops.add(PART, "unknown_version", columns.count)
        except RegistryUnavailable:
            self._wait(columns)
        return None

    def _wait(self, columns: PredictionColumns) -> None:
        if self._waiting_rows + columns.count > self._waiting_limit_rows:
            self._drops.add(PART, "registry_away", columns.count)
            return
        self._waiting.append(columns)
        self._waiting_rows += columns.count

    async def _retry_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            columns = self._waiting.popleft()
            self._waiting_rows -= columns.count
            try:
                await self.take(columns)
            except Exception as error:  # noqa: BLE001 - as with those that need not wait: one batch stops no other
                _LOG.error("waiting_not_added", model=columns.model, version=columns.version, exc_info=error)
                self._drops.add(PART, "failed", columns.count)

    async def _add(self, columns: PredictionColumns, info: VersionInfo) -> None:
        async with self._adding:
            await asyncio.to_thread(self._add_now, columns, info)
        if 2 * self._sketches >= self._sketch_limit:
            # Early enough that one batch of many windows still fits.
            await self._try_flush()

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except ServiceError as error:
            _LOG.warning("windows_not_added", reason=error.reason, windows=len(self._open))
        except Exception as error:  # noqa: BLE001 - what is new goes on being taken, and this is tried again
            _LOG.error("windows_not_added", windows=len(self._open), exc_info=error)

    def _add_now(self, columns: PredictionColumns, info: VersionInfo) -> None:
        fits = self._in_time(columns)
        if not fits.all():
            self._drops.add(PART, "out_of_range", int(columns.count - fits.sum()))
            columns = subset(columns, fits)
        view = BatchView(columns, info, self._form(columns, info))
        for stretch in stretches(columns.model, columns.prediction_time_us, self._book):
            for slice_name, part in parts(view, stretch):
                window = self._window(window_key(view, slice_name, stretch), view.form)
                if window is not None:
                    add_part(window, view, part, stretch.policy)
                elif not slice_name:
                    self._drops.add(PART, "too_many", columns.count if part.positions is None else part.positions.size)

    def _in_time(self, columns: PredictionColumns) -> Bools:
        now_us = int(self._clock() * 1e6)
        times = columns.prediction_time_us
        found: Bools = (times > now_us - self._retention_us) & (times <= now_us + self._tolerance_us)
        return np.asarray(found)

    def _form(self, columns: PredictionColumns, info: VersionInfo) -> VersionForm:
        if not info.features:
            return form_of_unnamed(columns, self._feature_limit)
        key = (info.model, info.version)
        found = self._forms.get(key)
        if found is None:
            found = self._forms[key] = form_of(info, self._feature_limit)
            if found.left_out:
                _LOG.warning("features_left_out", version=info.name, count=found.left_out)
            if len(self._forms) > _FORM_LIMIT:
                self._forms.popitem(last=False)
        return found

    def _window(self, key: WindowKey, form: VersionForm) -> WindowSketch | None:
        """Return the window, None when there is no room for it; a first one there always is."""
        found = self._open.get(key)
        size = len(form.features) + len(form.outputs) + 1
        if found is None and (not self._open or self._sketches + size <= self._sketch_limit):
            found = self._open[key] = WindowSketch()
            self._sketches += size
        return found

    def _put_back(self, added: dict[WindowKey, WindowSketch]) -> None:
        for key, window in added.items():
            newer = self._open.get(key)
            if newer is not None:
                window.merge(newer)
            self._open[key] = window
