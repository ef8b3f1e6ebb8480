"""Rows into the online store, whatever kind their view is of."""

from collections.abc import Callable, Sequence

from services.features.adapters.redis_store import RedisStore
from services.features.domain.ports import Outcome, Row, ScriptCall, ViewWriter


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
        now_us = self._clock_us()
        calls = [writer.write(row, now_us) for row in rows]
        asked = [call for call in calls if isinstance(call, ScriptCall)]
        replies = iter(await self._store.write(asked) if asked else ())
        return [writer.outcome(next(replies)) if isinstance(call, ScriptCall) else call for call in calls]
