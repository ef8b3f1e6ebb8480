"""A hot unary call of the ASGI door that needs no task, over gRPC or REST: read, begun and answered by callbacks.

A task, its futures and the chain of coroutines in it cost more than all that is done for a call whose handler only queues
it. What this way does not know at first sight goes the ordinary way from its body on, as if it had never been here.

It leans on what ASGI does not promise and the server inside Envoy keeps: `receive` returns a future that ends by itself,
and `send` acts when it is called.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from services.common.call import Call, Method, Pending
from services.common.chain import REQUEST_ID_KEY, Chain, check_size, check_time
from services.common.deadlines import Receive
from services.common.door_forms import Event, Form
from services.common.errors import DEADLINE_PASSED, DeadlineExceeded
from services.common.grpc_wire import Header

Send = Callable[[Event], Awaitable[None]]
_REQUEST_ID: Final = REQUEST_ID_KEY.encode()


class PromptCall:
    """One call, from its headers to its answer: watched as `Watching`, answered as `Reply`."""

    __slots__ = (
        "_call",
        "_chain",
        "_counted",
        "_form",
        "_given",
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
        form: Form,
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
        self._form = form
        self._receive = receive
        self._send = send
        self._go_on = go_on
        self._over = self._counted = False
        self._given: tuple[asyncio.Future[Event], ...] = ()
        self._pending: Pending | None = None
        self._size_bytes = 0

    def begin(self) -> None:
        """Wait for the body."""
        self._chain.arrivals.begin(self)
        self._chain.deadlines.add(self)
        self._metrics.in_flight += 1
        self._ask()

    def answer(self, body: bytes) -> None:
        """Answer with a body as the method's `begin` makes it."""
        if self._over:
            return
        try:
            check_size("the answer", len(body), self._chain.limits.message_bytes)
        except BaseException as error:  # noqa: BLE001 - the caller is to hear of it
            self.fail(error)
            return
        self._end()
        self._metrics.finish(time.monotonic() - self.since, "OK")
        self._give(self._form.answer(body, self._request_id()))

    def fail(self, error: BaseException) -> None:
        """Answer with the status of an error."""
        if self._over:
            return
        self._end_uncounted()
        with self._chain.record(self._method, self._call) as record:
            status = record.fail(error)
        self._give(self._form.failure(status, self._request_id()))

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

    def _ask(self) -> None:
        question = self._receive()
        # asyncio.ensure_future asks three functions whether it is a future: it is, but for a request without a body.
        if not isinstance(question, asyncio.Future):
            question = asyncio.ensure_future(question)
        question.add_done_callback(self._take)

    def _take(self, question: "asyncio.Future[Event]") -> None:
        """Take a part of the body, and begin to answer with the last one."""
        if not self._given:
            self._chain.arrivals.end(self)
        if self._over:
            return
        self._given += (question,)
        try:
            event = _result_of(question)
            if event.get("more_body") and self._hold(len(event["body"])):
                self._ask()
                return
            pending = self._set_out(event)
        except BaseException as error:  # noqa: BLE001 - nobody else would answer the caller
            self.fail(error)
            return
        if self._over:
            return
        if pending is None:
            given = self._given
            self._end_uncounted()
            self._go_on(_from_the_beginning(given, self._receive))
        else:
            self._given = ()
            self._pending = pending

    def _hold(self, size_bytes: int) -> bool:
        """Count a part of a body that is not its last one; returns whether the call may have so many bytes."""
        if self._size_bytes + size_bytes > self._chain.limits.message_bytes:
            return False
        self._chain.budget.take(size_bytes)
        self._size_bytes += size_bytes
        return True

    def _set_out(self, event: Event) -> Pending | None:
        if event.get("type") != "http.request" or event.get("more_body"):
            return None
        body = event["body"]
        if self._size_bytes:
            body = b"".join([part.result()["body"] for part in self._given])
        message = self._form.message(body)
        if message is None or self._method.begin is None:
            return None
        # The parts were counted as they came.
        self._chain.budget.used_bytes -= self._size_bytes
        self._size_bytes = 0
        self._chain.admit(len(message))
        self._size_bytes = len(message)
        self.receive = self._receive
        check_time(self._call)
        # Not before: who takes his time over the body is no company for others.
        self._chain.turns.begin()
        self._counted = True
        return self._method.begin(message, self._call, self)

    def _take_back(self) -> None:
        if self._pending is not None:
            self._pending.take_back()

    def _end(self) -> None:
        self._over = True
        # It knows us as well: a circle for each call would keep the garbage collector busy, and the caches cold.
        self._pending, self._given = None, ()
        if self._counted:
            self._chain.turns.end()
        self._chain.deadlines.remove(self)
        self._chain.budget.used_bytes -= self._size_bytes

    def _end_uncounted(self) -> None:
        """End for one who keeps the record of the call himself."""
        self._end()
        self._metrics.in_flight -= 1

    def _request_id(self) -> Header:
        return (_REQUEST_ID, self._call.request_id.encode())

    def _give(self, events: Sequence[Event]) -> None:
        try:
            for event in events:
                self._send(event)
        except OSError:
            # The client went meanwhile.
            return


def _result_of(question: "asyncio.Future[Event]") -> Event:
    """Return what was read; nothing where that failed, of which the ordinary way will hear itself."""
    return {} if question.cancelled() or question.exception() is not None else question.result()


def _from_the_beginning(given: "tuple[asyncio.Future[Event], ...]", receive: Receive) -> Receive:
    """Return a `receive` whose first answers are those that were given already."""
    first = iter(given)
    return lambda: next(first, None) or receive()
