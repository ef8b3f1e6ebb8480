"""Notices that callers are gone, for the door whose server cancels nothing by itself.

Inside Envoy `receive()` does not wait for a disconnect: after the body it answers at once with an empty request, again
and again, until the client went. So one sweeper per loop asks now and then, and only for calls that take long.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from services.common.call import Call

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_INTERVAL_S: Final = 0.010
# Most calls are over before anybody needs to ask.
_YOUNG_S: Final = 0.020


class Watch:
    """One call under watch while its block runs: who answers it, and the question that is still open."""

    __slots__ = ("_watched", "asked", "receive", "since", "task")

    def __init__(self, watched: "dict[int, Watch]", task: asyncio.Task[Any], receive: Receive) -> None:
        self._watched = watched
        self.task = task
        self.receive = receive
        self.since = time.monotonic()
        self.asked: asyncio.Future[Any] | None = None

    def __enter__(self) -> None:
        self._watched[id(self)] = self

    def __exit__(self, *_: object) -> None:
        del self._watched[id(self)]


class Sweeper:
    """Cancels the task of every watched call whose client went away."""

    def __init__(self) -> None:
        self._watched: dict[int, Watch] = {}
        self._filled = asyncio.Event()

    def watch(self, call: Call, receive: Receive) -> Watch:
        """Return a block that watches a call; enter it after the body has been read."""
        assert call.task is not None, "a call is answered in a task"
        if not self._watched:
            self._filled.set()
        return Watch(self._watched, call.task, receive)

    async def run(self) -> None:
        """Sweep until cancelled; asleep while nothing is watched."""
        while True:
            await self._filled.wait()
            await asyncio.sleep(_INTERVAL_S)
            self._sweep(time.monotonic() - _YOUNG_S)
            if not self._watched:
                self._filled.clear()

    def _sweep(self, born_before: float) -> None:
        # Insertion order is age order: the first young one ends the sweep.
        for key, watch in tuple(self._watched.items()):
            if watch.since > born_before:
                return
            if watch.asked is None:
                watch.asked = asyncio.ensure_future(watch.receive())
                watch.asked.add_done_callback(functools.partial(self._answered, key))

    def _answered(self, key: int, answer: "asyncio.Future[MutableMapping[str, Any]]") -> None:
        failed = answer.cancelled() or answer.exception() is not None
        watch = self._watched.get(key)
        if watch is None:
            return
        # The question is never cancelled: its server completes it later, whatever we do.
        watch.asked = None
        if failed or answer.result()["type"] == "http.disconnect":
            watch.task.cancel()
