"""The online store on Redis: reads that share round trips, writes, and what happens when Redis does not answer."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from services.common.breaker import AsyncBreaker, CircuitOpen
from services.common.tasks import spawn
from services.features.adapters.metrics import StoreMetrics
from services.features.adapters.redis_link import Link
from services.features.domain.catalog import CompiledView
from services.features.domain.failure import OnlineStoreUnavailable, QueueFull
from services.features.domain.online_key import KeySpace
from services.features.domain.ports import Reply, Request, ScriptCall

# Arguments of commands: a feature of a row is one of them.
ROUND_TRIP_ARGUMENTS: Final = 10_000
_DEADLINE_ARGUMENTS: Final = 2_500
WAITING_ARGUMENTS: Final = 200_000
_LANES: Final = 2
_LONGEST_GATHERING_S: Final = 0.001
_WRITE_LANES: Final = 2
_WRITE_REQUESTS: Final = 1_000
# A refused or lost connection is enough to know that Redis is gone; of slow round trips it takes two in a row.
_FAILURES_IN_A_ROW: Final = 2
_TOO_SLOW: Final = "it takes too long"
_LOG: Final = structlog.get_logger(part="online_store")


class _Asked:
    """Requests of one caller that wait for a round trip, or a part of them."""

    __slots__ = ("cost", "future", "requests")

    def __init__(self, requests: Sequence[Request], cost: int) -> None:
        self.requests = requests
        self.cost = cost
        self.future: asyncio.Future[Sequence[Reply]] = asyncio.get_running_loop().create_future()


class RedisStore:
    """See `ports.OnlineStore`.

    When reads leave follows the router's rule: at once when half of the reads in flight wait here, after a millisecond at
    the latest; so a lone read never waits, and under load the round trips get fewer and larger, up to a size. A caller
    waits for `read_deadline_s` and no longer; as often as long for a read that is so many times larger than usual ones.
    While Redis is known not to answer nobody waits: whether it does again is found out in the background.
    """

    def __init__(
        self,
        link: Link,
        *,
        read_deadline_s: float,
        write_deadline_s: float,
        metrics: StoreMetrics,
        on_back: Callable[[], None],
    ) -> None:
        """`on_back` is called when Redis answers again after it did not."""
        self._link = link
        self._read_deadline_s = read_deadline_s
        self._write_deadline_s = write_deadline_s
        self._metrics = metrics
        self._on_back = on_back
        self._gone = False
        self._why = ""
        self._breaker = AsyncBreaker(
            "online-store",
            _failures,
            lambda: self._link.exchange([(b"EXISTS", b"f")], self._read_deadline_s),
            failures_in_a_row=_FAILURES_IN_A_ROW,
            on_state=self._heard,
        )
        self._waiting: deque[_Asked] = deque()
        self._waiting_cost = 0
        self._in_flight = 0
        self._leaves_at: asyncio.TimerHandle | None = None
        self._busy_lanes = 0
        self._write_lanes = asyncio.Semaphore(_WRITE_LANES)

    async def close(self) -> None:
        """End what runs in the background."""
        await self._breaker.close()

    def check(self) -> None:
        """Raise OnlineStoreUnavailable while Redis is known not to answer."""
        if self._breaker.refuses:
            raise OnlineStoreUnavailable(self._why)

    async def read(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """See `ports.OnlineStore`."""
        self.check()
        cut = _cut(requests)
        self._admit(sum(cost for _, cost in cut))
        self._in_flight += 1
        parts = [self._ask(part, cost) for part, cost in cut]
        self._leave_if_due()
        try:
            async with asyncio.timeout(self._deadline_s(sum(part.cost for part in parts))):
                if len(parts) == 1:
                    return await parts[0].future
                return [reply for part in parts for reply in await part.future]
        except TimeoutError:
            self._metrics.failed()
            raise OnlineStoreUnavailable(_TOO_SLOW) from None
        finally:
            self._in_flight -= 1
            self._leave_if_due()
            for part in parts:
                if not part.future.cancel() and not part.future.cancelled():
                    # Looked at, so that asyncio does not complain of a second part's failure.
                    part.future.exception()

    async def write(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """See `ports.OnlineStore`."""
        replies: list[Reply] = []
        for start in range(0, len(requests), _WRITE_REQUESTS):
            async with self._write_lanes:
                part = requests[start : start + _WRITE_REQUESTS]
                replies += await self._exchange(part, self._write_deadline_s)
        for reply in replies:
            if isinstance(reply, Exception):
                raise _refused(reply)
        return replies

    async def delete_view(self, view: CompiledView) -> None:
        """See `ports.OnlineStore`."""
        try:
            async for keys in self._link.scan(KeySpace(view).prefix + b"*", self._write_deadline_s):
                if keys:
                    await self.write([(b"UNLINK", key) for key in keys])
        except (RedisError, OSError, TimeoutError) as error:
            raise OnlineStoreUnavailable(_describe(error)) from None

    def _admit(self, cost: int) -> None:
        if self._waiting_cost and self._waiting_cost + cost > WAITING_ARGUMENTS:
            raise QueueFull("values to read", self._waiting_cost, WAITING_ARGUMENTS)

    def _ask(self, requests: Sequence[Request], cost: int) -> _Asked:
        asked = _Asked(requests, cost)
        self._waiting.append(asked)
        self._waiting_cost += cost
        return asked

    def _leave_if_due(self) -> None:
        if not self._waiting:
            return
        if 2 * len(self._waiting) >= self._in_flight or self._waiting_cost >= ROUND_TRIP_ARGUMENTS:
            self._leave()
        elif self._leaves_at is None:
            self._leaves_at = asyncio.get_running_loop().call_later(_LONGEST_GATHERING_S, self._leave)

    def _leave(self) -> None:
        if self._leaves_at is not None:
            self._leaves_at.cancel()
            self._leaves_at = None
        # A busy lane takes what waits when it is through.
        if self._busy_lanes < _LANES:
            self._busy_lanes += 1
            spawn(self._run_lane(), "online-read")

    async def _run_lane(self) -> None:
        try:
            while taken := self._take():
                await self._serve(taken)
        finally:
            self._busy_lanes -= 1

    def _take(self) -> list[_Asked]:
        taken: list[_Asked] = []
        cost = 0
        while self._waiting and (not taken or cost + self._waiting[0].cost <= ROUND_TRIP_ARGUMENTS):
            asked = self._waiting.popleft()
            self._waiting_cost -= asked.cost
            if not asked.future.done():
                taken.append(asked)
                cost += asked.cost
        return taken

    async def _serve(self, taken: list[_Asked]) -> None:
        requests = taken[0].requests if len(taken) == 1 else [each for asked in taken for each in asked.requests]
        try:
            replies = await self._exchange(requests, self._deadline_s(sum(asked.cost for asked in taken)))
        except OnlineStoreUnavailable as error:
            # Who waits behind would only wait longer for the same answer.
            self._fail([*taken, *self._waiting], error)
            self._waiting.clear()
            self._waiting_cost = 0
            return
        self._metrics.left_together(len(taken))
        start = 0
        for asked in taken:
            end = start + len(asked.requests)
            _settle(asked, replies[start:end])
            start = end

    async def _exchange(self, requests: Sequence[Request], deadline_s: float) -> list[Reply]:
        """Make a round trip, unless the breaker knows better; raises OnlineStoreUnavailable."""
        try:
            with self._breaker.guard():
                try:
                    return await self._link.exchange(requests, deadline_s)
                except (RedisError, OSError) as error:
                    self._why = _describe(error)
                    self._metrics.failed()
                    raise
        except (RedisError, OSError, CircuitOpen):
            raise OnlineStoreUnavailable(self._why) from None

    def _heard(self, state: str) -> None:
        gone = state != "closed"
        if gone and not self._gone:
            _LOG.warning("online_store_gone", why=self._why)
        if self._gone and not gone:
            _LOG.info("online_store_back")
            self._on_back()
        self._gone = gone

    def _deadline_s(self, cost: int) -> float:
        return self._read_deadline_s * -(-cost // _DEADLINE_ARGUMENTS)

    @staticmethod
    def _fail(asked: Sequence[_Asked], error: OnlineStoreUnavailable) -> None:
        for each in asked:
            if not each.future.done():
                each.future.set_exception(OnlineStoreUnavailable(error.metadata["why"]))


def _settle(asked: _Asked, replies: Sequence[Reply]) -> None:
    if asked.future.done():
        return
    for reply in replies:
        if isinstance(reply, Exception):
            asked.future.set_exception(_refused(reply))
            return
    asked.future.set_result(replies)


def _cut(requests: Sequence[Request]) -> list[tuple[Sequence[Request], int]]:
    """Return the requests in parts of a round trip each, with what they cost."""
    costs = list(map(_cost, requests))
    total = sum(costs)
    if total <= ROUND_TRIP_ARGUMENTS:
        return [(requests, total)]
    parts = []
    start = cost = 0
    for place, more in enumerate(costs):
        if place > start and cost + more > ROUND_TRIP_ARGUMENTS:
            parts.append((requests[start:place], cost))
            start, cost = place, 0
        cost += more
    return [*parts, (requests[start:], cost)]


def _cost(request: Request) -> int:
    return len(request.arguments) + 2 if isinstance(request, ScriptCall) else len(request)


def _refused(reply: Exception) -> OnlineStoreUnavailable:
    _LOG.error("online_store_refused", error=str(reply)[:200])
    return OnlineStoreUnavailable(_describe(reply))


def _failures(error: BaseException) -> int:
    if isinstance(error, TimeoutError):
        return 1
    return _FAILURES_IN_A_ROW if isinstance(error, (RedisError, OSError)) else 0


def _describe(error: Exception) -> str:
    """Return what went wrong; never an address, which may hold a password."""
    if isinstance(error, TimeoutError):
        return _TOO_SLOW
    if isinstance(error, BusyLoadingError):
        return "it is still loading"
    if isinstance(error, ResponseError):
        return f"it refuses: {str(error).partition(' ')[0]}" if str(error) else "it refuses"
    return "the connection failed"
