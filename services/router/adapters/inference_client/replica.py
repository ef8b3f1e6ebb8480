"""One address of an inference replica: who is there, what it holds, and the streams to it.

The process behind the address may be replaced at any time. Every connection is a channel of its own, dialled anew:
the one to a draining process lives on until its answers are in, next to the one to its successor.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.common.tasks import spawn
from services.router.adapters.inference_client.carrier import FramesUnusable, run_frames, run_grpc
from services.router.adapters.inference_client.standing import Standing
from services.router.adapters.inference_client.stream import InferStream, StreamOptions

_LOG: Final = structlog.get_logger("replica")
# The contract promises word once a second; a peer that is silent for this long has a blocked loop or a dead host.
_SILENCE_S: Final = 5.0
_READ_S: Final = 0.1
_FIRST_PAUSE_S: Final = 0.05
# Well inside the time that a request hopes for a replica: it dials a few times before that is over.
_LONGEST_PAUSE_S: Final = 0.5
# The longest deadline that a caller may have.
_RETIRE_S: Final = 60.0

VersionKey = tuple[str, str]
Dial = Callable[[str], grpc.aio.Channel]


class Connection:
    """What goes to one process: its state as it tells it, and a stream for each version that is READY there.

    `on_lost` hears of a version at the moment from which it is not to be had here any more: a request that comes right
    then must already know that it was READY until now, and wait for it.
    """

    def __init__(
        self,
        address: str,
        channel: grpc.aio.Channel,
        options: StreamOptions,
        on_change: Callable[[], None],
        on_lost: Callable[[VersionKey], None],
    ) -> None:
        self._address = address
        self._channel = channel
        self._options = options
        self._on_change = on_change
        self._on_lost = on_lost
        self._stub = InferenceServiceStub(channel)
        self._work: set[asyncio.Task[None]] = set()
        self._suspects: set[VersionKey] = set()
        self._frames_usable = options.use_frames
        self.streams: dict[VersionKey, InferStream] = {}
        self.answered = False
        self.over = asyncio.Event()
        """Set once nothing new should be sent here: the process drains, went away or fell silent."""

    async def watch(self) -> None:
        """Follow the process's state until it is over."""
        try:
            call = self._stub.WatchReplica(inference_pb.WatchReplicaRequest())
            while True:
                state = await self._next_word(call)
                if not isinstance(state, inference_pb.WatchReplicaResponse):
                    return
                self._apply(state)
        except TimeoutError:
            _LOG.warning("replica_silent", address=self._address, seconds=_SILENCE_S)
            # What it holds it may never answer; if it does after all, nobody listens any more.
            self._cut()
        except grpc.aio.AioRpcError as error:
            _LOG.debug("replica_watch_ended", code=error.code().name)
        finally:
            self.finish()

    async def _next_word(self, call: Any) -> Any:
        """Return the process's next word of itself; raises TimeoutError when it is silent, on its streams too."""
        reading = asyncio.ensure_future(call.read())
        heard = time.monotonic()
        try:
            while True:
                await asyncio.wait((reading,), timeout=heard + _SILENCE_S - time.monotonic())
                # Where this process itself was held up, its words wait to be read.
                done, _ = await asyncio.wait((reading,), timeout=_READ_S)
                if done:
                    return reading.result()
                heard = max((heard, *(stream.heard_at for stream in self.streams.values())))
                if time.monotonic() >= heard + _SILENCE_S:
                    raise TimeoutError
        finally:
            reading.cancel()

    def stream(self, key: VersionKey) -> InferStream | None:
        """Return the stream for a version that is READY here, or None."""
        found = self.streams.get(key)
        usable = found is not None and not found.closed and key not in self._suspects and not self.over.is_set()
        return found if usable else None

    def suspect(self, key: VersionKey, stream: InferStream) -> None:
        """Hold requests for a version back until the process says again that it is READY.

        Unless the stream that failed is not the one in use any more: its successor has done nothing wrong.
        """
        if self.streams.get(key) is stream:
            self._on_lost(key)
            self._suspects.add(key)

    def finish(self) -> None:
        """Send nothing new here."""
        if not self.over.is_set():
            self.over.set()
            for key, stream in self.streams.items():
                self._on_lost(key)
                stream.close()
        self._on_change()

    async def retire(self) -> None:
        """Let the answers come in, then close the channel."""
        self.finish()
        streams = [task for task in self._work if not task.done()]
        if streams:
            await asyncio.wait(streams, timeout=_RETIRE_S)
        self._cut()
        await self._channel.close()

    async def abort(self) -> None:
        """Close the channel at once; whoever still waits gets a failure."""
        self.finish()
        self._cut()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._channel.close()

    def _cut(self) -> None:
        for task in self._work:
            task.cancel()

    def _apply(self, state: inference_pb.WatchReplicaResponse) -> None:
        self.answered = True
        self._suspects.clear()
        if state.draining:
            self.finish()
            return
        ready = {
            (version.model, version.version): version
            for version in state.versions
            if version.state == inference_pb.LOAD_STATE_READY
        }
        for key, version in ready.items():
            self._stream_of(key, state).queue_time_us = version.queue_time_us
        for key in self.streams.keys() - ready.keys():
            self._on_lost(key)
            self.streams.pop(key).close()
        self._on_change()

    def _stream_of(self, key: VersionKey, state: inference_pb.WatchReplicaResponse) -> InferStream:
        stream = self.streams.get(key)
        if stream is None or stream.closed:
            stream = self.streams[key] = InferStream(*key, self._options, self._drains)
            task = spawn(self._run(key, stream, state), f"infer-stream {key[0]}/{key[1]}")
            self._work.add(task)
            task.add_done_callback(self._work.discard)
        return stream

    def _drains(self, stream: InferStream) -> None:
        """Send a version nothing more until the process says that it is READY; its other versions may stay as they are."""
        key = stream.model, stream.version
        if self.streams.get(key) is stream:
            self._on_lost(key)
            del self.streams[key]

    async def _run(self, key: VersionKey, stream: InferStream, state: inference_pb.WatchReplicaResponse) -> None:
        try:
            await self._carry(stream, state)
        finally:
            stream.ended()
            lost = self.streams.get(key) is stream and not self.over.is_set()
            if lost:
                self._on_lost(key)
        if lost and stream.replica_id:
            # It broke, and the process may know nothing of it. One that never opened waits for the next word.
            await asyncio.sleep(_FIRST_PAUSE_S)
            if self.streams.get(key) is stream and not self.over.is_set():
                self._stream_of(key, state)
                self._on_change()

    async def _carry(self, stream: InferStream, state: inference_pb.WatchReplicaResponse) -> None:
        if self._frames_usable and state.frames_address:
            try:
                limit_bytes = self._options.message_limit_bytes
                await run_frames(stream, state.frames_address, host_of(self._address), state.replica_id, limit_bytes)
            except FramesUnusable as reason:
                self._frames_usable = False
                _LOG.info("frames_unusable", address=self._address, frames=state.frames_address, reason=str(reason))
            else:
                return
        if not stream.replica_id:
            await run_grpc(stream, self._stub)


class Replica:
    """An address, kept connected for as long as it runs."""

    def __init__(self, address: str, dial: Dial, options: StreamOptions, on_change: Callable[[], None]) -> None:
        self.address = address
        self._dial = dial
        self._options = options
        self._on_change = on_change
        self._connection: Connection | None = None
        self._connections: set[Connection] = set()
        self._hoped_since = time.monotonic()
        self._last_ready: dict[VersionKey, float] = {}
        self._standings: dict[VersionKey, Standing] = {}

    async def run(self) -> None:
        """Keep a connection to whatever process is behind the address."""
        failures = 0
        while True:
            connection = Connection(self.address, self._dial(self.address), self._options, self._on_change, self._lost)
            self._connection = connection
            self._connections.add(connection)
            # What another process did says nothing of this one.
            self._standings.clear()
            spawn(connection.watch(), f"watch {self.address}")
            await connection.over.wait()
            spawn(self._retire(connection), f"retire {self.address}")
            failures = 0 if connection.answered else failures + 1
            await asyncio.sleep(_pause_s(failures))

    async def close(self) -> None:
        """Close every connection at once, those to processes that drain too."""
        for connection in list(self._connections):
            await connection.abort()

    def stream(self, key: VersionKey) -> InferStream | None:
        """Return the stream for a version that is READY here, or None."""
        return None if self._connection is None else self._connection.stream(key)

    def suspect(self, key: VersionKey, stream: InferStream) -> None:
        """Hold requests for a version back until the process says again that it is READY; `stream` has failed."""
        if self._connection is not None:
            self._connection.suspect(key, stream)

    def standing(self, key: VersionKey) -> Standing:
        """Return how the version has fared with the process that is behind the address now."""
        found = self._standings.get(key)
        if found is None:
            found = self._standings[key] = Standing(f"{key[0]}/{key[1]} at {self.address}")
        return found

    def last_hope(self, key: VersionKey) -> float:
        """Return when the version was last READY here, or when the replica was first dialled; `time.monotonic()`."""
        if self.stream(key) is not None:
            return time.monotonic()
        return self._last_ready.get(key, self._hoped_since)

    async def _retire(self, connection: Connection) -> None:
        await connection.retire()
        self._connections.discard(connection)

    def _lost(self, key: VersionKey) -> None:
        self._last_ready[key] = time.monotonic()


def host_of(address: str) -> str:
    """Return the host of a gRPC target; this machine for one without (`unix:`)."""
    place = address.rpartition("/")[2]
    host = place.rpartition(":")[0].strip("[]")
    return (
        host.removeprefix("ipv4:").removeprefix("ipv6:").strip("[]") if not address.startswith("unix:") else "localhost"
    )


def _pause_s(failures: int) -> float:
    # Full jitter, but never nothing: a refused connection fails within microseconds.
    bound = min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S)
    return _FIRST_PAUSE_S / 5 if failures == 0 else random.uniform(_FIRST_PAUSE_S, bound)  # noqa: S311 - no secret
