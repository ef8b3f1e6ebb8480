"""The clock of the running event loop."""

import asyncio
import time
from collections.abc import Callable

from services.common.door_turns import Turns
from services.inference.domain.ports import Timer


class MonotonicClock:
    """`time.monotonic` with callbacks of the running loop, whose own clock may have another zero."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at `when`."""
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)

    def call_soon(self, callback: Callable[[], None], *, gathers: bool) -> None:
        """Call back in the next turn of the loop, or when the calls that are being handed over are here."""
        self._turns.soon(callback, gathers=gathers)
