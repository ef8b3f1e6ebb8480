"""What carries a coalescing stream: gRPC, or the same messages as frames on a socket. Either runs until the end."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from google.rpc.code_pb2 import Code
from interlock.inference.v1 import inference_service_pb2 as inference_pb

from services.common.frames import BadFrame, FrameLink
from services.router.adapters.inference_client.failure import is_expected_end
from services.router.adapters.inference_client.stream import InferStream

if TYPE_CHECKING:
    from interlock.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

_LOG: Final = structlog.get_logger("inference_stream")
_CONNECT_LIMIT_S: Final = 1.0


class FramesUnusable(Exception):
    """The replica's frames do not work from here, or broke the rules; gRPC may work."""


async def run_grpc(stream: InferStream, stub: "InferenceServiceAsyncStub") -> None:
    """Carry a stream over gRPC until the replica ends it or it is closed and answered."""
    wake = asyncio.Event()
    stream.on_wake = wake.set
    try:
        async for response in stub.CoalescedInfer(_outgoing(stream, wake)):
            stream.take(response)
    except grpc.aio.AioRpcError as error:
        _log_end(stream, error.code().value[0])
    finally:
        stream.on_wake = _do_nothing


async def _outgoing(stream: InferStream, wake: asyncio.Event) -> AsyncIterator[inference_pb.CoalescedInferRequest]:
    yield stream.opening
    while True:
        while (message := stream.next_message()) is not None:
            yield inference_pb.CoalescedInferRequest.FromString(b"".join(message))
        stream.has_sent()
        if stream.closed:
            return
        await wake.wait()
        wake.clear()


async def run_frames(stream: InferStream, address: str, host: str, replica_id: str, limit_bytes: int) -> None:
    """Carry a stream as frames to the `address` that a replica announced, until one side ends it.

    Raises FramesUnusable when nobody listens there (another host has other sockets), or another replica does, or the
    peer broke the rules of frames; what the stream holds has not been sent if it is not open.
    """
    carrier = _FrameCarrier(stream, replica_id, limit_bytes)
    try:
        await _connect(carrier, address, host)
        error = await carrier.done
    finally:
        stream.on_wake = _do_nothing
        carrier.link.abort()
    if carrier.code is not None:
        _log_end(stream, carrier.code)
    elif error is not None and not isinstance(error, OSError):
        raise FramesUnusable(str(error) or type(error).__name__)
    elif not stream.replica_id:
        raise FramesUnusable("the replica closed the connection before it answered")
    elif not stream.closed:
        _log_end(stream, Code.UNAVAILABLE)


async def _connect(carrier: "_FrameCarrier", address: str, host: str) -> None:
    kind, _, place = address.partition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_LIMIT_S):
            if kind == "unix":
                await loop.create_unix_connection(lambda: carrier.link, place)
            elif kind == "tcp" and place.isdigit():
                await loop.create_connection(lambda: carrier.link, host, int(place))
            else:
                raise FramesUnusable(f"want unix:<path> or tcp:<port>, got {address}")
    except TimeoutError:
        raise FramesUnusable(f"nobody answered at {address} within {_CONNECT_LIMIT_S:g} s") from None
    except OSError as error:
        raise FramesUnusable(str(error)) from None


class _FrameCarrier:
    """Callbacks only: a message costs no task and no turn of the loop."""

    def __init__(self, stream: InferStream, replica_id: str, limit_bytes: int) -> None:
        self._stream = stream
        self._replica_id = replica_id
        self.code: int | None = None
        """How the replica ended the stream."""
        self.done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.link = FrameLink(self, limit_bytes)

    def opened(self) -> None:
        """The replica speaks frames."""
        self._stream.limit_bytes = min(self._stream.limit_bytes, self.link.peer_limit_bytes)
        self.link.send(self._stream.opening.SerializeToString())
        self._stream.on_wake = self._flush
        self._flush()

    def received(self, message: bytes) -> None:
        """Hand a message on."""
        response = inference_pb.CoalescedInferResponse.FromString(message)
        kind = response.WhichOneof("message")
        if kind == "ended":
            self.code = response.ended.code
            self.link.close()
            return
        if kind == "opened" and response.opened.replica_id != self._replica_id:
            raise BadFrame(f"want replica {self._replica_id}, got {response.opened.replica_id}")
        self._stream.take(response)

    def read_all(self) -> None:
        """The replica says nothing more."""
        self.link.close()

    def room(self) -> None:
        """The replica reads again."""
        self._flush()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""
        if not self.done.done():
            self.done.set_result(error)

    def _flush(self) -> None:
        stream = self._stream
        while not self.link.full and (message := stream.next_message()) is not None:
            self.link.send(*message)
        if stream.closed:
            self.link.stop_sending()
        elif not self.link.full:
            stream.has_sent()


def _log_end(stream: InferStream, code: int) -> None:
    write = _LOG.info if is_expected_end(code) else _LOG.error
    write("stream_ended", model=stream.model, version=stream.version, code=Code.Name(Code.ValueType(code)))


def _do_nothing() -> None:
    """Nobody carries the stream any more."""
