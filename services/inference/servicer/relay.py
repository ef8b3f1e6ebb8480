"""Calls that other processes on the port have accepted, answered as if they had come here; each connection is a process."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
from google.rpc.status_pb2 import Status
from interlock.inference.v1 import relay_pb2 as pb

from services.common.call import Call, Method
from services.common.chain import Chain
from services.common.criticality import Criticality
from services.common.frames import BadFrame, Connections, FrameLink
from services.common.tasks import spawn
from services.inference.convert.relay import FRAME_OVERHEAD_BYTES, joined

_LOG: Final = structlog.get_logger(part="relay")


class RelayServer:
    """Answers the hot methods among `methods`, under the limits of this process."""

    def __init__(self, chain: Chain, methods: Iterable[Method], limit_bytes: int) -> None:
        self.chain = chain
        self.methods = {method.full_name: method for method in methods if method.hot}
        self.limit_bytes = limit_bytes + FRAME_OVERHEAD_BYTES
        self.connections = Connections()

    def connect(self) -> FrameLink:
        """Return the protocol of a new connection."""
        return _Front(self).link


class _Front:
    """The connection of one process."""

    def __init__(self, server: RelayServer) -> None:
        self._server = server
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._answers: list[pb.RelayedAnswer] = []
        self.link = FrameLink(self, server.limit_bytes)
        server.connections.links.add(self.link)

    def opened(self) -> None:
        """The peer speaks our protocol."""

    def received(self, message: bytes) -> None:
        """Begin to answer calls, and give up those that are taken back."""
        request = pb.RelayRequest.FromString(message)
        for relayed in request.calls:
            method = self._server.methods.get(relayed.method)
            if method is None:
                raise BadFrame(f"want a hot method, got {relayed.method}")
            self._tasks[relayed.id] = spawn(self._answer(method, relayed), "relayed call")
        for ident in request.cancelled_ids:
            task = self._tasks.pop(ident, None)
            if task is not None:
                task.cancel()

    def read_all(self) -> None:
        """The process takes no calls any more, and waits for no answer."""
        self.link.close()

    def room(self) -> None:
        """What it holds is bounded by the calls that it has accepted."""

    def ended(self, error: Exception | None) -> None:
        """The process is gone, and its callers with it."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._server.connections.left(self.link)
        if error is not None and not isinstance(error, OSError):
            _LOG.error("relay_ended", error=str(error) or type(error).__name__)

    async def _answer(self, method: Method, relayed: pb.RelayedCall) -> None:
        call = Call(
            method=relayed.method,
            metadata=dict(relayed.metadata),
            deadline=relayed.deadline,
            principal=relayed.principal,
            criticality=Criticality(relayed.criticality),
            request_id=relayed.request_id,
            traceparent=relayed.traceparent,
            task=asyncio.current_task(),
        )
        outcome = await self._server.chain.answer(method, relayed.request, call)
        if self._tasks.pop(relayed.id, None) is not None:
            self._say(relayed.id, outcome)

    def _say(self, ident: int, outcome: bytes | Status) -> None:
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        if isinstance(outcome, Status):
            self._answers.append(pb.RelayedAnswer(id=ident, status=outcome))
        else:
            self._answers.append(pb.RelayedAnswer(id=ident, response=outcome))

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        for group in joined(answers):
            self.link.send(pb.RelayResponse(answers=group).SerializeToString())


@asynccontextmanager
async def serve_relay(server: RelayServer, path: Path, grace_s: float) -> AsyncIterator[None]:
    """Listen on a socket of the launcher's folder, which is ours alone, while the block runs."""
    listener = await asyncio.get_running_loop().create_unix_server(server.connect, str(path))
    try:
        yield
    finally:
        await server.connections.close(listener, grace_s)
