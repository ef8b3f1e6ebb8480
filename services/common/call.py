"""One call as a handler sees it, and the table of methods that every door serves.

A handler is `async def Predict(self, request, call)`: it knows no transport. A `Binding` names a service of the
contract and the object that has one handler per RPC; `methods_of` turns bindings into the table that doors walk.
"""

import asyncio
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from services.common.criticality import Criticality
from services.common.http_rules import rules_of_service

_RAW_MARK: Final = "__interlock_raw__"
_MANY_MARK: Final = "__interlock_answers_many__"
_BEGIN_MARK: Final = "__interlock_begin__"
_HandlerT = TypeVar("_HandlerT", bound=Callable[..., Any])


@dataclass(slots=True)
class Call:
    """What a handler may know of the call that it answers, whichever door it came through."""

    method: str
    """Full method name without a leading slash: `interlock.router.v1.RouterService/Predict`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The caller's metadata; keys are lower-case, binary (-bin) and reserved keys are left out."""
    deadline: float = math.inf
    """`time.monotonic()` seconds; infinite only for a stream whose caller gave none."""
    principal: str = "local"
    """Who calls; `local` while every listener is on loopback."""
    criticality: Criticality = Criticality.DEFAULT
    """What is refused first under overload."""
    request_id: str = ""
    """The x-correlation-id that came in, or one made here; it goes out with the answer and on every hop."""
    traceparent: str = ""
    """W3C trace context of this call's own span; empty when tracing is off and none came."""
    initial_metadata: dict[str, str] = field(default_factory=dict)
    """Sent before the answer; set it before the first message goes out."""
    trailers: dict[str, str] = field(default_factory=dict)
    """Sent after the answer."""
    task: asyncio.Task[Any] | None = None
    """What answers, for those who must cancel it: the deadline, and the door when the caller is gone."""
    arrived: float = field(default_factory=time.monotonic)
    """When its headers came, by `time.monotonic()`."""
    abandoned: bool = False
    """Set by the chain once the caller is gone; handlers read `cancelled`."""

    def remaining_s(self) -> float:
        """Return the seconds left before the deadline, never negative; infinite when there is none."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the answer is of use to nobody: the caller is gone, or the deadline passed."""
        return self.abandoned or time.monotonic() >= self.deadline


class Reply(Protocol):
    """Takes the outcome of a call that is answered without a task. Called on the event loop; only the first one counts."""

    def answer(self, body: bytes) -> None:
        """Answer with a message in wire form, or with JSON: see `Begin`."""

    def fail(self, error: BaseException) -> None:
        """Answer with the status of an error."""


class Pending(Protocol):
    """A call that waits for its answer."""

    def take_back(self) -> None:
        """Forget it: its caller is gone, or its deadline has passed."""


Begin = Callable[[bytes, Call, Reply], Pending | None]
"""Sets out to answer a call, whose `Reply` may be given the outcome at any time from then on. None, before anything was done:
only the coroutine knows what to make of this request. Raises what the handler raises. It takes a message in wire form and
answers with one; for an HttpBody twin these are the bodies of the HTTP request and of its answer in JSON."""


@dataclass(frozen=True)
class Binding:
    """A service of the contract and the object that answers it.

    `service` is the full proto name; its descriptor must be in the default pool (import the stub). `servicer` has one
    method per RPC, named exactly like it. `hot` names the unary RPCs that the in-Envoy door serves.
    """

    service: str
    servicer: object
    hot: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of a binding: how it is called, what it takes and gives, who answers it."""

    service: str
    name: str
    client_streaming: bool
    server_streaming: bool
    request: type[Message]
    response: type[Message]
    handler: Callable[..., Any]
    raw: bool
    """The handler takes and returns bytes: parsing is its own business, and so is refusing what does not parse."""
    hot: bool
    answers_many: bool = False
    """The handler answers several messages of its stream at a time, and counts their bytes itself."""
    begin: Begin | None = None
    """Answers the calls that need no task; None where all of them do."""
    rest_path: str = ""
    """Of an HttpBody twin: its first REST path, whose errors are bodies too; empty for every other RPC."""
    full_name: str = field(init=False)
    """`package.Service/Method`."""
    path: str = field(init=False)
    """The HTTP/2 path: `/package.Service/Method`."""
    streaming: bool = field(init=False)
    """Whether either side streams; such a call has neither a default deadline nor a cap."""

    def __post_init__(self) -> None:
        # Once and for all: every call asks for them.
        object.__setattr__(self, "full_name", f"{self.service}/{self.name}")
        object.__setattr__(self, "path", f"/{self.service}/{self.name}")
        object.__setattr__(self, "streaming", self.client_streaming or self.server_streaming)


def raw(handler: _HandlerT) -> _HandlerT:
    """Mark a handler that takes the request's bytes and returns the answer's bytes."""
    setattr(handler, _RAW_MARK, True)
    return handler


def answers_many(handler: _HandlerT) -> _HandlerT:
    """Mark a stream's handler that has several messages in hand at a time: it counts their bytes, the chain does not."""
    setattr(handler, _MANY_MARK, True)
    return handler


def begun_by(begin: Callable[[Any, bytes, Call, Reply], Pending | None]) -> Callable[[_HandlerT], _HandlerT]:
    """Mark a unary handler most of whose calls need no task: `begin`, of the same class, sets out to answer them."""

    def mark(handler: _HandlerT) -> _HandlerT:
        setattr(handler, _BEGIN_MARK, begin)
        return handler

    return mark


def methods_of(bindings: Iterable[Binding]) -> tuple[Method, ...]:
    """Return the methods of all bindings, in the order of the contract.

    Raises `TypeError` when a service is unknown or bound twice, an RPC has no handler, a handler has the wrong shape,
    or `hot` names something that is not a unary RPC: a hole in the table must stop the start, not a call.
    """
    bound = tuple(bindings)
    names = [binding.service for binding in bound]
    if len(names) != len(set(names)):
        raise TypeError(f"a service is bound twice: {', '.join(sorted(names))}")
    return tuple(method for binding in bound for method in _methods(binding))


def current_call() -> Call | None:
    """Return the call that this task answers, for outgoing hops that pass its deadline, id and trace on."""
    return CURRENT_CALL.get()


CURRENT_CALL: Final[ContextVar[Call | None]] = ContextVar("interlock_call", default=None)


def _methods(binding: Binding) -> tuple[Method, ...]:
    service = _service(binding.service)
    missing = [rpc.name for rpc in service.methods if not callable(getattr(binding.servicer, rpc.name, None))]
    if missing:
        raise TypeError(f"{binding.service} has RPCs without a handler: {', '.join(missing)}")
    methods = tuple(_method(binding, rpc) for rpc in service.methods)
    not_unary = binding.hot - {method.name for method in methods if not method.streaming}
    if not_unary:
        raise TypeError(f"{binding.service} has no unary RPC called {', '.join(sorted(not_unary))} to be hot")
    return methods


def _service(name: str) -> ServiceDescriptor:
    try:
        return descriptor_pool.Default().FindServiceByName(name)
    except KeyError:
        raise TypeError(f"service {name} is in no descriptor: import its stub before binding it") from None


def _method(binding: Binding, rpc: MethodDescriptor) -> Method:
    handler = getattr(binding.servicer, rpc.name)
    # A unary-answer handler that yields, or a streaming one that returns, would only fail in the middle of a call.
    wrong = inspect.iscoroutinefunction if rpc.server_streaming else inspect.isasyncgenfunction
    if wrong(handler):
        wanted = "an async generator" if rpc.server_streaming else "a coroutine function"
        raise TypeError(f"the handler of {binding.service}/{rpc.name} must be {wanted}")
    begin = getattr(handler, _BEGIN_MARK, None)
    return Method(
        service=binding.service,
        name=rpc.name,
        client_streaming=rpc.client_streaming,
        server_streaming=rpc.server_streaming,
        request=message_factory.GetMessageClass(rpc.input_type),
        response=message_factory.GetMessageClass(rpc.output_type),
        handler=handler,
        raw=getattr(handler, _RAW_MARK, False),
        hot=rpc.name in binding.hot,
        answers_many=getattr(handler, _MANY_MARK, False),
        begin=begin and partial(begin, binding.servicer),
        rest_path=_twin_path(binding.service, rpc.name),
    )


def _twin_path(service: str, name: str) -> str:
    return next((rule.template.text for rule in rules_of_service(service) if rule.method == name and rule.twin), "")
