"""Notices that callers are gone, for the door whose server cancels nothing by itself.

Inside Envoy `receive()` does not wait for a disconnect: after the body it answers at once with an empty request, again
and again, until the client went. So one sweeper per loop asks now and then, and only for calls that take long.
"""

import asyncio
import functools
import time
from collections.abc import MutableMapping
from typing import Any, Final

from services.common.deadlines import Deadlines, Watching

_INTERVAL_S: Final = 0.010
# Most calls are over before anybody needs to ask.
_YOUNG_S: Final = 0.020


class Sweeper:
    """Cancels the task of every watched call whose client went away."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines

    async def run(self) -> None:
        """Sweep until cancelled; asleep while nothing is watched."""
        while True:
            await self._deadlines.busy.wait()
            await asyncio.sleep(_INTERVAL_S)
            self._sweep(time.monotonic() - _YOUNG_S)
            if not self._deadlines.watched:
                self._deadlines.busy.clear()

    def _sweep(self, born_before: float) -> None:
        for watched in tuple(self._deadlines.watched):
            # Insertion order is age order: the first young one ends the sweep.
            if watched.since > born_before:
                return
            receive = watched.receive
            # One whose body has not come yet hears of its end where it reads.
            if receive is None or watched.asked:
                continue
            watched.asked = True
            asyncio.ensure_future(receive()).add_done_callback(functools.partial(self._answered, watched))

    def _answered(self, watched: Watching, answer: "asyncio.Future[MutableMapping[str, Any]]") -> None:
        failed = answer.cancelled() or answer.exception() is not None
        if watched not in self._deadlines.watched:
            return
        # The question is never cancelled: its server completes it later, whatever we do.
        watched.asked = False
        if failed or answer.result()["type"] == "http.disconnect":
            watched.leave()
