"""The server inside Envoy, as an ASGI application sees it."""

import asyncio
import gc
from collections.abc import Awaitable, Generator, MutableMapping
from typing import Any


def grpc_scope(path: str, **headers: str) -> dict[str, Any]:
    """The scope of a gRPC call; an underscore in a name is a hyphen, and an empty header is left out."""
    wire = {"content-type": "application/grpc", "te": "trailers"} | {k.replace("_", "-"): v for k, v in headers.items()}
    pairs = [(key.encode(), value.encode()) for key, value in wire.items() if value]
    return {"type": "http", "method": "POST", "path": path, "headers": pairs}


def count_of(*kinds: str) -> int:
    """How many objects of the classes of these names the garbage collector knows."""
    return sum(type(each).__name__ in kinds for each in gc.get_objects())


class Sent(Awaitable[None]):
    """What `send` returns: there is nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


class EnvoyLike:
    """Gives the body in chunks, then empty requests for ever, and a disconnect once the client is gone.

    What `receive` returns are futures that the server itself completes: `cancelled` counts those that we cancelled. `send`
    acts when it is called.
    """

    def __init__(self, *chunks: bytes, complete: bool = True) -> None:
        self._chunks = list(chunks)
        self._complete = complete
        self.gone = False
        self.cancelled = 0
        self.asked = 0
        self.closed = False
        self.sent: list[MutableMapping[str, Any]] = []

    def receive(self) -> "asyncio.Future[MutableMapping[str, Any]]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[MutableMapping[str, Any]] = loop.create_future()
        self.asked += 1
        loop.call_soon(self._complete_one, future)
        return future

    def _complete_one(self, future: "asyncio.Future[MutableMapping[str, Any]]") -> None:
        if future.cancelled():
            self.cancelled += 1
        elif self.gone:
            future.set_result({"type": "http.disconnect"})
        elif self._chunks:
            body = self._chunks.pop(0)
            more = bool(self._chunks) or not self._complete
            future.set_result({"type": "http.request", "body": body, "more_body": more})
        elif self._complete:
            future.set_result({"type": "http.request", "body": b"", "more_body": False})
        else:
            asyncio.get_running_loop().call_later(0.01, self._complete_one, future)

    def send(self, message: MutableMapping[str, Any]) -> "Sent":
        if self.closed:
            raise OSError("the client disconnected")
        self.sent.append(message)
        return Sent()

    def header(self, name: bytes) -> bytes | None:
        return dict(self.sent[0]["headers"]).get(name)


class Quiet(EnvoyLike):
    """Gives the body and says nothing more until a test completes what is `open`."""

    def __init__(self, *chunks: bytes, complete: bool = True) -> None:
        super().__init__(*chunks, complete=complete)
        self.open: list[asyncio.Future[MutableMapping[str, Any]]] = []

    def _complete_one(self, future: "asyncio.Future[MutableMapping[str, Any]]") -> None:
        if self._chunks:
            super()._complete_one(future)
        else:
            self.open.append(future)
