"""The way from a process that only accepts calls to the one that has the engine: frames on a Unix socket."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Final

from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.inference.v1 import relay_pb2 as pb

from services.common.call import Call
from services.common.errors import DEPENDENCY_UNAVAILABLE, RelayedFailure, Unavailable
from services.common.frames import FrameLink
from services.inference.convert.relay import FRAME_OVERHEAD_BYTES, joined

_PAUSE_S: Final = 0.05


class EngineAway(Unavailable):
    """The process that has the engine went away before it answered, or is being started again."""

    def __init__(self) -> None:
        super().__init__("the process that runs the models is being started again", reason=DEPENDENCY_UNAVAILABLE)


class EngineLink:
    """A connection to the engine at the Unix socket `path`, made anew for as long as `run` runs.

    `on_change` hears whether there is one. Nothing waits for a connection, and nothing is sent twice: a call that was
    handed over may have run.
    """

    def __init__(self, path: str, limit_bytes: int, on_change: Callable[[bool], None]) -> None:
        self._path = path
        self._limit_bytes = limit_bytes + FRAME_OVERHEAD_BYTES
        self._on_change = on_change
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._calls: list[pb.RelayedCall] = []
        self._cancelled: list[int] = []
        self._link: FrameLink | None = None
        self._dialled: FrameLink | None = None
        self._flushing = False
        self._over = asyncio.Event()
        self.connected = asyncio.Event()
        """Set once there was a connection."""

    async def run(self) -> None:
        """Keep the connection; cancel it to hang up."""
        while True:
            # Nobody may listen yet, or any more.
            with contextlib.suppress(OSError):
                await self._stay_connected()
            await asyncio.sleep(_PAUSE_S)

    async def ask(self, request: bytes, call: Call) -> bytes:
        """Return the engine's answer to an accepted call. Raises EngineAway, and RelayedFailure with the engine's error."""
        if self._link is None:
            raise EngineAway
        ident = next(self._ids)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = answer
        self._calls.append(
            pb.RelayedCall(
                id=ident,
                method=call.method,
                request=request,
                deadline=call.deadline,
                criticality=inference_pb.Criticality.ValueType(call.criticality),
                request_id=call.request_id,
                traceparent=call.traceparent,
                principal=call.principal,
                metadata=call.metadata,
            )
        )
        self._flush_soon()
        try:
            return await answer
        except asyncio.CancelledError:
            if self._waiting.pop(ident, None) is not None:
                self._cancelled.append(ident)
                self._flush_soon()
            raise

    def opened(self) -> None:
        """The engine takes calls."""
        self._link = self._dialled
        self.connected.set()
        self._on_change(True)

    def received(self, message: bytes) -> None:
        """Give answers to those who wait for them."""
        for answer in pb.RelayResponse.FromString(message).answers:
            waiting = self._waiting.pop(answer.id, None)
            if waiting is None or waiting.done():
                continue
            if answer.WhichOneof("outcome") == "status":
                waiting.set_exception(RelayedFailure(answer.status))
            else:
                waiting.set_result(answer.response)

    def read_all(self) -> None:
        """The engine says nothing more: nobody is there."""
        if self._dialled is not None:
            self._dialled.abort()

    def room(self) -> None:
        """What waits to leave is bounded by the bytes that this process may hold."""

    def ended(self, error: Exception | None) -> None:
        """The connection is gone, and with it every call that was handed over."""
        self._link = None
        self._calls.clear()
        self._cancelled.clear()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(EngineAway())
        self._on_change(False)
        self._over.set()

    async def _stay_connected(self) -> None:
        link = self._dialled = FrameLink(self, self._limit_bytes)
        self._over.clear()
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, self._path)
            await self._over.wait()
        finally:
            link.abort()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        calls, self._calls = self._calls, []
        cancelled, self._cancelled = self._cancelled, []
        if self._link is None:
            return
        for group in joined(calls):
            self._link.send(pb.RelayRequest(calls=group).SerializeToString())
        if cancelled:
            self._link.send(pb.RelayRequest(cancelled_ids=cancelled).SerializeToString())
