"""Streams whose messages are answered side by side, each as soon as it is ready, under a bound.

What came and has no answer yet, and what is answered and not read yet, is bounded in messages and in bytes. At the bound
nothing more is read, and HTTP/2's flow control holds the caller back: one that does not read stalls its own stream alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from services.common.call import CURRENT_CALL, Call
from services.common.chain import Chain, check_size, is_own_end
from services.common.errors import DRAINING, Unavailable
from services.common.tasks import spawn

DEFAULT_OUTSTANDING: Final = 256
# Over all streams, beside one message of each: more at a time would only keep the event loop from everything else.
_ANSWERING: Final = 1_024
# What a stream may hold at first; each answer that leaves adds a quarter of its size. So one whose caller never reads holds little.
_FIRST_WINDOW_BYTES: Final = 64 * 1024


class Sized(Protocol):
    """A message of a stream."""

    def ByteSize(self) -> int:  # noqa: N802 - protobuf calls it so
        """Return what it adds to the bytes of requests that the process holds."""


RequestT = TypeVar("RequestT", bound=Sized)


@dataclass(frozen=True, slots=True)
class Work(Generic[RequestT]):
    """What a stream does with its messages."""

    answer: Callable[[RequestT, Call], Awaitable[Message | bytes]]
    """Answers one message, under a call of its own; what it raises refuses the message."""
    refuse: Callable[[RequestT, Status], Message] | None
    """Makes the answer to a message that is refused. None: the first refusal ends the stream."""
    timeout_s: Callable[[RequestT], float] | None = None
    """Seconds that a message leaves for its answer; 0, like None, means the default of unary calls."""
    max_outstanding: int = DEFAULT_OUTSTANDING
    """Messages that may be without an answer, or with one that is not read."""


class Streams:
    """Answers streams; one for the process."""

    def __init__(self, chain: Chain, draining: asyncio.Event) -> None:
        self._chain = chain
        self._draining = draining
        self._answering: set[asyncio.Task[None]] = set()

    async def answers(
        self, requests: AsyncIterator[RequestT], call: Call, work: Work[RequestT]
    ) -> AsyncGenerator[bytes, None]:
        """Yield an answer to each message, in wire form; whoever takes the next one has sent the one before.

        Ends when the caller has sent all. When the process drains, or reading fails, it takes nothing more, answers what
        it has taken, and then raises why. Whoever closes it early cancels what is under way.
        """
        stream = _Stream(self._chain, call, work, self._answering)
        tasks = (spawn(self._end_stream(stream), "stream-drain"), spawn(stream.read(requests), "stream-reader"))
        try:
            while (body := await stream.next_answer()) is not None:
                yield body
                stream.let_go(len(body))
        finally:
            await stream.abandon(tasks)
        if stream.error is not None:
            raise stream.error

    async def _end_stream(self, stream: "_Stream[Any]") -> None:
        await self._draining.wait()
        stream.end(
            Unavailable("the process drains; open the stream again and send what has no answer", reason=DRAINING)
        )


class _Stream(Generic[RequestT]):
    """One stream: counts what it holds, and has a task for each message that is being answered."""

    def __init__(self, chain: Chain, call: Call, work: Work[RequestT], everywhere: set[asyncio.Task[None]]) -> None:
        self._chain = chain
        self._call = call
        self._work = work
        self._outstanding = 0
        self._held_bytes = 0
        self._window_bytes = min(_FIRST_WINDOW_BYTES, chain.limits.stream_bytes)
        self._ready: deque[bytes] = deque()
        self._answering: set[asyncio.Task[None]] = set()
        self._everywhere = everywhere
        self._ended = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self.error: BaseException | None = None
        """Why the stream ends; None when the caller has sent all."""

    async def read(self, requests: AsyncIterator[RequestT]) -> None:
        """Take messages while there is room, until the stream ends."""
        try:
            async for request in requests:
                if self._ended:
                    return
                self._take(request)
                del request
                while not self._has_room():
                    self._room.clear()
                    await self._room.wait()
            self.end(None)
        except Exception as error:  # noqa: BLE001 - it is raised once what was taken is answered
            self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Take nothing more. What is taken is answered first; then the stream ends, with the error if there is one."""
        if not self._ended:
            self._ended, self.error = True, error
            self._changed.set()

    async def next_answer(self) -> bytes | None:
        """Wait for an answer; None when the stream has ended and everything is answered."""
        while not self._ready:
            if self._ended and not self._outstanding:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._ready.popleft()

    def let_go(self, size_bytes: int) -> None:
        """An answer of this size has been sent."""
        self._outstanding -= 1
        self._held_bytes -= size_bytes
        self._window_bytes = min(self._window_bytes + size_bytes // 4, self._chain.limits.stream_bytes)
        self._room.set()

    async def abandon(self, tasks: tuple[asyncio.Task[None], ...]) -> None:
        """Cancel these tasks and every answer under way, and wait until they are gone."""
        running = (*tasks, *self._answering)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _has_room(self) -> bool:
        # One message goes always, also one that is larger than the bound: its answer, once sent, makes room again.
        return not self._outstanding or (
            self._outstanding < self._work.max_outstanding
            and self._held_bytes < self._window_bytes
            and len(self._everywhere) < _ANSWERING
        )

    def _take(self, request: RequestT) -> None:
        size_bytes = request.ByteSize()
        self._outstanding += 1
        self._held_bytes += size_bytes
        task = spawn(self._answer(request, size_bytes), "stream-answer")
        for tasks in (self._answering, self._everywhere):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _answer(self, request: RequestT, size_bytes: int) -> None:
        call = self._call_of(request)
        CURRENT_CALL.set(call)
        try:
            with self._chain.budget.hold(size_bytes), self._chain.turns.counted(), self._chain.deadlines.watch(call):
                body = _encoded(await self._work.answer(request, call))
            check_size("the answer", len(body), self._chain.limits.message_bytes)
        except BaseException as error:  # noqa: BLE001 - SystemExit out of a task would end the event loop
            if self._work.refuse is None:
                self._end_unanswered(error, size_bytes)
                return
            body = self._work.refuse(request, self._chain.status_of(error, call)).SerializeToString()
        self._held_bytes += len(body) - size_bytes
        self._ready.append(body)
        self._changed.set()
        self._room.set()

    def _end_unanswered(self, error: BaseException, size_bytes: int) -> None:
        if is_own_end(error):
            raise error
        self.end(error)
        self.let_go(size_bytes)
        self._changed.set()

    def _call_of(self, request: RequestT) -> Call:
        """Return the call of one message: the stream's, with a deadline and a task of its own."""
        limits = self._chain.limits
        asked_s = self._work.timeout_s(request) if self._work.timeout_s is not None else 0.0
        allowed_s = min(asked_s or limits.default_deadline_s, limits.deadline_cap_s)
        deadline = min(self._call.deadline, time.monotonic() + allowed_s)
        return replace(self._call, deadline=deadline, task=asyncio.current_task(), initial_metadata={}, trailers={})


def _encoded(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
