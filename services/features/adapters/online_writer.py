"""Rows into the online store, whatever kind their view is of."""

from collections.abc import Callable, Sequence
from typing import Final

from services.features.adapters.redis_store import RedisStore
from services.features.domain.ports import Outcome, Row, ScriptCall, ViewWriter

# A round trip that keeps neither this process nor Redis from serving reads for long.
_AT_A_TIME: Final = 250


class RedisOnlineWriter:
    """See `ports.OnlineWriter`."""

    def __init__(self, store: RedisStore, clock_us: Callable[[], int]) -> None:
        self._store = store
        self._clock_us = clock_us

    def check(self) -> None:
        """See `ports.OnlineWriter`."""
        self._store.check()

    async def write(self, writer: ViewWriter, rows: Sequence[Row]) -> Sequence[Outcome]:
        """See `ports.OnlineWriter`."""
        outcomes: list[Outcome] = []
        for start in range(0, len(rows), _AT_A_TIME):
            outcomes += await self._write(writer, rows[start : start + _AT_A_TIME])
        return outcomes

    async def _write(self, writer: ViewWriter, rows: Sequence[Row]) -> Sequence[Outcome]:
        now_us = self._clock_us()
        calls = [writer.write(row, now_us) for row in rows]
        asked = [call for call in calls if isinstance(call, ScriptCall)]
        replies = iter(await self._store.write(asked) if asked else ())
        return [writer.outcome(next(replies)) if isinstance(call, ScriptCall) else call for call in calls]
