"""Sends prediction events on one long-lived stream; a monitor that is down or slow costs events, not requests."""

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from interlock.monitor.v1 import monitor_service_pb2 as monitor_pb

from services.router.adapters.monitor_client.event_queue import EventQueue

if TYPE_CHECKING:
    from grpc.aio import StreamUnaryCall
    from interlock.monitor.v1.monitor_service_pb2_grpc import MonitorServiceAsyncStub

    MonitorCall = StreamUnaryCall[monitor_pb.RecordPredictionsRequest, monitor_pb.RecordPredictionsResponse]

_LOG: Final = structlog.get_logger("events")
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 10.0
_MOST_DOUBLINGS: Final = 8


class EventSender:
    """Empties the queue into RecordPredictions: every `interval_s` seconds, and whenever there is enough for a whole batch.

    What a batch costs here and in the monitor hardly depends on its rows, as long as they are few.
    """

    def __init__(
        self,
        stub: "MonitorServiceAsyncStub",
        queue: EventQueue,
        *,
        router_id: str,
        environment: str,
        interval_s: float,
        on_sent: Callable[[int], None],
    ) -> None:
        self._stub = stub
        self._queue = queue
        self._router_id = router_id
        self._environment = environment
        self._interval_s = interval_s
        self._on_sent = on_sent
        self._closing = asyncio.Event()
        self._failures = 0

    async def run(self) -> None:
        """Send until closed; a broken stream is opened again after a pause."""
        while not await self._send_stream() and not self._closing.is_set():
            await self._pause()

    def close(self) -> None:
        """Let `run` send what is left, end the stream and return."""
        self._closing.set()
        self._queue.filled.set()

    async def _send_stream(self) -> bool:
        """Send on one stream; returns whether it was ended here, rather than by the monitor or a broken connection."""
        call = self._stub.RecordPredictions()
        try:
            await call.wait_for_connection()
            await self._send(call)
        except grpc.aio.AioRpcError as error:
            _LOG.warning("event_stream_broken", code=error.code().name, text=error.details())
            return False
        except asyncio.InvalidStateError:
            _LOG.warning("event_stream_ended")
            return False
        finally:
            # Also when the task is cancelled in the middle of a write: a call that is left alone keeps its channel.
            call.cancel()
        return True

    async def _send(self, call: "MonitorCall") -> None:
        sequences = itertools.count(1)
        while True:
            self._queue.filled.clear()
            # What comes in the meantime is the next round's: else a batch of a few rows would leave after each other one. And
            # what waited may have been let go meanwhile, where there was no room.
            for _ in range(len(self._queue)):
                if len(self._queue):
                    await self._send_batch(call, next(sequences))
            if call.done():
                raise asyncio.InvalidStateError
            if not self._closing.is_set():
                await _wait(self._queue.filled, self._interval_s)
            elif not len(self._queue):
                break
        await call.done_writing()
        await call

    async def _send_batch(self, call: "MonitorCall", sequence: int) -> None:
        columns = self._queue.take()
        sent = False
        try:
            await call.write(
                monitor_pb.RecordPredictionsRequest(
                    router_id=self._router_id,
                    sequence=sequence,
                    dropped_count=self._queue.take_dropped(),
                    batch=columns.to_batch(self._environment),
                )
            )
            sent = True
            self._on_sent(len(columns))
            self._failures = 0
        finally:
            # Whether a message of a broken stream arrived is not known; sending it again could count it twice.
            if not sent:
                self._queue.count_dropped(len(columns))

    async def _pause(self) -> None:
        bound_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self._failures)
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
        await _wait(self._closing, random.uniform(_FIRST_WAIT_S / 2, bound_s))  # noqa: S311 - jitter


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
