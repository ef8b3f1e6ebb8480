"""Notices that callers are gone, for the door whose server cancels nothing by itself.

Inside Envoy `receive()` does not wait for a disconnect: after the body it answers at once with an empty request, again
and again, until the client went. So one sweeper per loop asks now and then, and only for calls that take long.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Final

from services.common.call import Call

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_INTERVAL_S: Final = 0.010
# Most calls are over before anybody needs to ask.
_YOUNG_S: Final = 0.020


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


class Watch:
    """One call under watch while its block runs: who answers it, and the question that is still open.

    The block ends with ClientGone where its caller went away: a cancellation that left the application would be an error
    in the server's eyes, and each a stack trace in the log.
    """

    __slots__ = ("_watched", "asked", "gone", "receive", "since", "task")

    def __init__(self, watched: "dict[Watch, None]", task: asyncio.Task[Any], receive: Receive) -> None:
        self._watched = watched
        self.task = task
        self.receive = receive
        self.since = time.monotonic()
        self.asked: asyncio.Future[Any] | None = None
        self.gone = False

    def __enter__(self) -> None:
        self._watched[self] = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._watched[self]
        if self.gone and kind is asyncio.CancelledError:
            raise ClientGone from None


class Sweeper:
    """Cancels the task of every watched call whose client went away."""

    def __init__(self) -> None:
        # The watches themselves, in the order of age. Not their ids: those are given to later calls while a question about
        # an earlier one is still open, and its late "disconnected" would cancel a stranger.
        self._watched: dict[Watch, None] = {}
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
        for watch in tuple(self._watched):
            if watch.since > born_before:
                return
            if watch.asked is None:
                watch.asked = asyncio.ensure_future(watch.receive())
                watch.asked.add_done_callback(functools.partial(self._answered, watch))

    def _answered(self, watch: Watch, answer: "asyncio.Future[MutableMapping[str, Any]]") -> None:
        failed = answer.cancelled() or answer.exception() is not None
        if watch not in self._watched:
            return
        # The question is never cancelled: its server completes it later, whatever we do.
        watch.asked = None
        if failed or answer.result()["type"] == "http.disconnect":
            watch.gone = True
            watch.task.cancel()
