"""A hot unary gRPC call of the ASGI door that needs no task: read, begun and answered by callbacks.

A task, its futures and the chain of coroutines in it cost more than all that is done for a call whose handler only queues
it. What this way does not know at first sight goes the ordinary way from its body on, as if it had never been here.

It leans on what ASGI does not promise and the server inside Envoy keeps: `receive` returns a future that ends by itself,
and `send` acts when it is called.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from services.common.call import Call, Method, Pending
from services.common.chain import REQUEST_ID_KEY, Chain, check_size, check_time
from services.common.deadlines import Receive
from services.common.errors import DEADLINE_PASSED, DeadlineExceeded
from services.common.grpc_wire import (
    ACCEPT_ENCODING,
    CONTENT_TYPE,
    STATUS_OK,
    Header,
    frame,
    plain_message,
    status_headers,
)

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]
_GOOD_END: Final[Event] = {"type": "http.response.trailers", "headers": [STATUS_OK]}
_REQUEST_ID: Final = REQUEST_ID_KEY.encode()


class PromptCall:
    """One call, from its headers to its answer: watched as `Watching`, answered as `Reply`."""

    __slots__ = (
        "_call",
        "_chain",
        "_go_on",
        "_method",
        "_metrics",
        "_over",
        "_pending",
        "_receive",
        "_send",
        "_size_bytes",
        "asked",
        "deadline",
        "expired",
        "receive",
        "since",
    )

    def __init__(
        self,
        chain: Chain,
        method: Method,
        call: Call,
        *,
        receive: Receive,
        send: Send,
        go_on: Callable[[Receive], None],
    ) -> None:
        """`go_on` takes the call the ordinary way; what it is given reads the body from its beginning."""
        self.deadline = call.deadline
        self.since = call.arrived
        self.expired = self.asked = False
        self.receive: Receive | None = None
        self._chain = chain
        self._method = method
        self._metrics = chain.metrics_of(method)
        self._call = call
        self._receive = receive
        self._send = send
        self._go_on = go_on
        self._over = False
        self._pending: Pending | None = None
        self._size_bytes = 0

    def begin(self) -> None:
        """Wait for the body."""
        self._chain.arrivals.begin(self)
        self._chain.deadlines.add(self)
        self._metrics.in_flight += 1
        question = self._receive()
        # asyncio.ensure_future asks three functions whether it is a future: it is, but for a request without a body.
        if not isinstance(question, asyncio.Future):
            question = asyncio.ensure_future(question)
        question.add_done_callback(self._begin)

    def answer(self, body: bytes) -> None:
        """Answer with a message in wire form."""
        if self._over:
            return
        try:
            check_size("the answer", len(body), self._chain.limits.message_bytes)
        except BaseException as error:  # noqa: BLE001 - the caller is to hear of it
            self.fail(error)
            return
        self._end()
        self._metrics.finish(time.monotonic() - self.since, "OK")
        headers = [CONTENT_TYPE, ACCEPT_ENCODING, self._request_id()]
        self._give(
            {"type": "http.response.start", "status": 200, "headers": headers, "trailers": True},
            {"type": "http.response.body", "body": frame(body)},
            _GOOD_END,
        )

    def fail(self, error: BaseException) -> None:
        """Answer with the status of an error."""
        if self._over:
            return
        self._end_uncounted()
        with self._chain.record(self._method, self._call) as record:
            status = record.fail(error)
        headers = [CONTENT_TYPE, self._request_id(), *status_headers(status)]
        self._give(
            {"type": "http.response.start", "status": 200, "headers": headers, "trailers": False},
            {"type": "http.response.body", "body": b""},
        )

    def expire(self) -> None:
        """Answer that the deadline has passed."""
        self.expired = True
        self._take_back()
        what = "the request was complete" if self.receive is None else "the answer was ready"
        self.fail(DeadlineExceeded(f"the deadline passed before {what}", reason=DEADLINE_PASSED))

    def leave(self) -> None:
        """Forget the call: nobody waits for its answer."""
        if self._over:
            return
        self._take_back()
        self._end_uncounted()
        with self._chain.record(self._method, self._call) as record:
            record.cancelled()

    def _begin(self, question: "asyncio.Future[Event]") -> None:
        """Begin to answer, once there is something of the body."""
        self._chain.arrivals.end(self)
        if self._over:
            return
        try:
            pending = self._set_out(question)
        except BaseException as error:  # noqa: BLE001 - nobody else would answer the caller
            self.fail(error)
            return
        if self._over:
            return
        if pending is None:
            self._end_uncounted()
            self._go_on(_from_the_beginning(question, self._receive))
        else:
            self._pending = pending

    def _set_out(self, question: "asyncio.Future[Event]") -> Pending | None:
        if question.cancelled() or question.exception() is not None:
            return None
        event = question.result()
        if event["type"] != "http.request" or event.get("more_body"):
            return None
        message = plain_message(event["body"])
        if message is None or self._method.begin is None:
            return None
        self._chain.admit(len(message))
        self._size_bytes = len(message)
        self.receive = self._receive
        check_time(self._call)
        return self._method.begin(message, self._call, self)

    def _take_back(self) -> None:
        if self._pending is not None:
            self._pending.take_back()

    def _end(self) -> None:
        self._over = True
        # It knows us as well: a circle for each call would keep the garbage collector busy, and the caches cold.
        self._pending = None
        self._chain.deadlines.remove(self)
        self._chain.budget.used_bytes -= self._size_bytes

    def _end_uncounted(self) -> None:
        """End for one who keeps the record of the call himself."""
        self._end()
        self._metrics.in_flight -= 1

    def _request_id(self) -> Header:
        return (_REQUEST_ID, self._call.request_id.encode())

    def _give(self, *events: Event) -> None:
        try:
            for event in events:
                self._send(event)
        except OSError:
            # The client went meanwhile.
            return


def _from_the_beginning(first: "asyncio.Future[Event]", receive: Receive) -> Receive:
    """Return a `receive` whose first answer is one that was given already."""
    given = [first]
    return lambda: given.pop() if given else receive()
