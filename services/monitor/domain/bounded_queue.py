"""A queue that never makes anybody wait: what does not fit is not taken, and counted."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Drops:
    """Predictions that did not get somewhere, by part of the monitor and reason. Both come from the code."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, part: str, reason: str, count: int) -> None:
        """Count some."""
        if count:
            self._counts[part, reason] += count

    def counts(self) -> Iterator[tuple[str, str, int]]:
        """Yield part, reason, count."""
        for (part, reason), count in sorted(self._counts.items()):
            yield part, reason, count


class BoundedQueue(Generic[ItemT]):
    """Items in the order offered, up to `limit` in the unit that `size_of` has."""

    def __init__(self, limit: int, size_of: Callable[[ItemT], int]) -> None:
        self._limit = limit
        self._size_of = size_of
        self._items: deque[ItemT] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._offered = self._done = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def offer(self, item: ItemT) -> bool:
        """Take an item and return True, or return False when there is no room. An empty queue takes anything."""
        size = self._size_of(item)
        if self._items and self._size + size > self._limit:
            return False
        self._items.append(item)
        self._size += size
        self._offered += 1
        self._filled.set()
        return True

    async def work(self, take: Callable[[ItemT], object]) -> None:
        """Give each item to `take`, which may be a coroutine function, one after the other, for good."""
        while True:
            while self._items:
                # It counts against the limit until it is worked off.
                item = self._items[0]
                done = take(item)
                if asyncio.iscoroutine(done):
                    await done
                self._items.popleft()
                self._size -= self._size_of(item)
                self._done += 1
                self._tell()
            self._filled.clear()
            await self._filled.wait()

    async def drained(self) -> None:
        """Return once everything taken so far is worked off, whatever comes after it."""
        if self._done < self._offered:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((self._offered, done))
            await done

    def _tell(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._done:
            done = self._waiting.popleft()[1]
            if not done.done():
                done.set_result(None)
