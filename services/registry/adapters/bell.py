"""Wakes watchers when there is a new epoch, and sends them away when the process drains."""

import asyncio

from services.registry.domain.failure import WatchEnded


class Bell:
    """Rings in this process at once; what other processes change is noticed by whoever polls the database."""

    def __init__(self) -> None:
        self._epoch = 0
        self._closed = False
        self._rung = asyncio.Event()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Watchers that wait at the moment."""
        return self._waiting

    def ring(self, epoch: int) -> None:
        """Say that `epoch` has been reached."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._wake()

    def close(self) -> None:
        """Send every watcher away, now and later."""
        self._closed = True
        self._wake()

    async def wait(self, epoch: int, timeout_s: float) -> None:
        """Return once a later epoch has been reached, or after the time-out; WatchEnded after `close`."""
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                while self._epoch <= epoch and not self._closed:
                    await self._rung.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        if self._closed:
            raise WatchEnded

    def _wake(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()
