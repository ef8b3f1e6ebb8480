"""Streams whose messages are answered side by side, under a bound."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from google.rpc.status_pb2 import Status
from prometheus_client import CollectorRegistry

from services.common.call import Call, Method, current_call
from services.common.chain import Chain, Limits
from services.common.errors import InvalidArgument, ServiceError, Unavailable, status_reason
from services.common.metrics import RequestMetrics
from services.common.stream_answers import Streams, Work
from services.common.tracing import Tracing

STALLED = 500


@dataclass
class Answering:
    """Streams of a process whose answers wait for `gate`; a message that begins with `!` is refused."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    limits: Limits = field(default_factory=Limits)
    begun: list[bytes] = field(default_factory=list)
    cancelled: list[bytes] = field(default_factory=list)
    answer_bytes: int = 0

    def __post_init__(self) -> None:
        metrics = RequestMetrics("stream", CollectorRegistry())
        self.chain = Chain(limits=self.limits, metrics=metrics, tracing=Tracing("stream"))
        self.streams = Streams(self.chain, self.draining)

    def work(self, max_outstanding: int = 4) -> Work[BytesValue]:
        return Work(self.answer, refuse, max_outstanding=max_outstanding)

    async def answer(self, request: BytesValue, call: Call) -> bytes:
        assert current_call() is call
        self.begun.append(request.value)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.value)
            raise
        if request.value.startswith(b"!"):
            raise InvalidArgument("want no !", reason="INVALID_FIELD")
        return BytesValue(value=request.value + bytes(self.answer_bytes)).SerializeToString()


def refuse(request: BytesValue, status: Status) -> Status:
    return Status(code=status.code, message=f"{request.value.decode()} {status_reason(status)}")


class Source:
    """What a caller sends: messages, then the end or an error, or nothing more."""

    def __init__(self, *values: bytes, ends: bool = True, error: Exception | None = None) -> None:
        self.left = list(values)
        self.ends = ends
        self.error = error

    async def messages(self) -> AsyncIterator[BytesValue]:
        while self.left:
            yield BytesValue(value=self.left.pop(0))
        if self.error is not None:
            raise self.error
        if not self.ends:
            await asyncio.Event().wait()


def call() -> Call:
    return Call("stream/Method", task=asyncio.current_task())


async def settled(condition: Callable[[], object]) -> None:
    """Turn the loop until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def value_of(body: bytes) -> bytes:
    return BytesValue.FromString(body).value


async def bodies_of(answers: AsyncGenerator[bytes, None], count: int) -> list[bytes]:
    return [await anext(answers) for _ in range(count)]


async def all_of(answers: AsyncGenerator[bytes, None]) -> list[bytes]:
    async with aclosing(answers):
        return [body async for body in answers]


async def test_answers_come_as_they_are_ready_whatever_the_order() -> None:
    gates = {b"slow": asyncio.Event(), b"fast": asyncio.Event()}

    async def answer(request: BytesValue, part: Call) -> BytesValue:
        await gates[request.value].wait()
        return request

    streams = Answering().streams
    answers = streams.answers(Source(b"slow", b"fast").messages(), call(), Work(answer, refuse))
    async with aclosing(answers):
        gates[b"fast"].set()
        assert value_of(await anext(answers)) == b"fast"
        gates[b"slow"].set()
        assert value_of(await anext(answers)) == b"slow"
        assert await anext(answers, None) is None


async def test_a_refused_message_is_answered_and_the_stream_goes_on() -> None:
    world = Answering()
    world.gate.set()
    bodies = await all_of(world.streams.answers(Source(b"a", b"!", b"b").messages(), call(), world.work()))
    refused = Status.FromString(bodies[1])
    assert (refused.code, refused.message) == (3, "! INVALID_FIELD")
    assert [value_of(bodies[0]), value_of(bodies[2])] == [b"a", b"b"]


async def test_without_a_form_for_refusals_the_first_one_ends_the_stream_after_what_was_taken() -> None:
    world = Answering()
    work = Work(world.answer, None)
    answers = world.streams.answers(Source(b"!", b"a", ends=False).messages(), call(), work)
    async with aclosing(answers):
        first = asyncio.ensure_future(anext(answers))
        await settled(lambda: len(world.begun) == 2)
        world.gate.set()
        assert value_of(await first) == b"a"
        with pytest.raises(InvalidArgument):
            await anext(answers)


async def test_a_message_meets_its_own_deadline_and_a_bug_is_opaque() -> None:
    async def answer(request: BytesValue, part: Call) -> BytesValue:
        if request.value == b"bug":
            raise ZeroDivisionError
        if request.value == b"foreign":
            # Whatever it awaited was cancelled, and not by us.
            raise asyncio.CancelledError
        await asyncio.Event().wait()
        return request

    work = Work(answer, refuse, timeout_s=lambda request: 0.01 if request.value == b"late" else 0.0)
    streams = Answering(limits=Limits(default_deadline_s=30)).streams
    bodies = await all_of(streams.answers(Source(b"late", b"bug", b"foreign").messages(), call(), work))
    assert sorted(Status.FromString(body).message for body in bodies) == [
        "bug INTERNAL",
        "foreign INTERNAL",
        "late DEADLINE_EXCEEDED",
    ]


async def test_nothing_more_is_read_at_the_bound_of_messages() -> None:
    world, source = Answering(), Source(*[b"%d" % at for at in range(10)])
    answers = world.streams.answers(source.messages(), call(), world.work(max_outstanding=4))
    async with aclosing(answers):
        taking = asyncio.ensure_future(anext(answers))
        await settled(lambda: len(world.begun) == 4)
        assert len(source.left) == 6
        world.gate.set()
        # The answer that is being sent counts until the next one is asked for.
        await taking
        assert len(source.left) == 6
        await anext(answers)
        await settled(lambda: len(source.left) == 5)


async def test_nothing_more_is_read_at_the_bound_of_bytes_and_a_large_message_goes_alone() -> None:
    world = Answering(limits=Limits(stream_bytes=1000))
    source = Source(bytes(5000), bytes(600), bytes(600), bytes(600))
    answers = world.streams.answers(source.messages(), call(), world.work(max_outstanding=100))
    async with aclosing(answers):
        taking = asyncio.ensure_future(anext(answers))
        await settled(lambda: world.begun)
        assert (len(source.left), world.chain.budget.used_bytes) == (3, 5003)
        world.gate.set()
        await taking
        assert (len(source.left), world.chain.budget.used_bytes) == (3, 0)
        await anext(answers)
        assert len(source.left) == 1
        assert len([body async for body in answers]) == 2


async def test_a_stream_holds_little_at_first_and_more_as_its_answers_are_taken() -> None:
    world = Answering(limits=Limits(stream_bytes=200_000))
    source = Source(*[bytes(32_000)] * 40, ends=False)
    answers = world.streams.answers(source.messages(), call(), world.work(max_outstanding=100))
    async with aclosing(answers):
        taking = asyncio.ensure_future(anext(answers))
        await settled(lambda: world.begun)
        assert len(world.begun) == 3
        world.gate.set()
        await taking
        # Each that left adds a quarter of its 32,000: after eight there is room for five at a time, one of them on its way.
        await bodies_of(answers, 8)
        await settled(lambda: len(world.begun) == 8 + 5)
        # The limit is the limit.
        await bodies_of(answers, 20)
        await settled(lambda: len(world.begun) == 28 + 7)


async def test_what_does_not_fit_the_process_is_refused_in_the_stream() -> None:
    world = Answering(limits=Limits(bytes_in_flight=100))
    world.gate.set()
    bodies = await all_of(world.streams.answers(Source(bytes(200), b"a").messages(), call(), world.work()))
    assert Status.FromString(bodies[0]).message.endswith("BYTES_IN_FLIGHT_EXCEEDED")
    assert value_of(bodies[1]) == b"a"


async def test_an_answer_over_the_limit_is_refused_in_the_stream() -> None:
    world = Answering(limits=Limits(message_bytes=100), answer_bytes=200)
    world.gate.set()
    (body,) = await all_of(world.streams.answers(Source(b"a").messages(), call(), world.work()))
    assert Status.FromString(body).message == "a MESSAGE_TOO_LARGE"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(None, "DRAINING"), (InvalidArgument("want a protobuf", reason="MALFORMED_REQUEST"), "MALFORMED_REQUEST")],
)
async def test_a_drain_or_a_broken_message_ends_it_once_all_that_was_taken_is_answered(
    error: Exception | None, reason: str
) -> None:
    world = Answering()
    source = Source(b"a", b"b", ends=False, error=error)
    answers = world.streams.answers(source.messages(), call(), world.work())
    async with aclosing(answers):
        first = asyncio.ensure_future(anext(answers))
        await settled(lambda: len(world.begun) == 2)
        if error is None:
            world.draining.set()
        await asyncio.sleep(0)
        world.gate.set()
        assert {value_of(await first), value_of(await anext(answers))} == {b"a", b"b"}
        with pytest.raises(ServiceError) as ended:
            await anext(answers)
    assert ended.value.reason == reason
    assert isinstance(ended.value, Unavailable) is (error is None)


class Counted(bytes):
    """What a caller sends, and what it is parsed into: of both it is known how many are held."""

    held_count = 0

    def __init__(self, _value: bytes) -> None:
        Counted.held_count += 1

    def __del__(self) -> None:
        Counted.held_count -= 1

    @classmethod
    def FromString(cls, payload: bytes) -> Self:
        return cls(payload)

    def ByteSize(self) -> int:
        return len(self)


async def test_a_stalled_stream_holds_answers_and_nothing_of_what_it_answered() -> None:
    world, sending = Answering(), asyncio.Event()

    async def payloads() -> AsyncIterator[bytes]:
        while True:
            yield Counted(b"")

    async def send(_body: bytes) -> None:
        sending.set()
        await asyncio.Event().wait()

    async def answer(_request: Counted, _call: Call) -> bytes:
        return b""

    def handler(requests: AsyncIterator[Counted], stream_call: Call) -> AsyncGenerator[bytes, None]:
        return world.streams.answers(requests, stream_call, Work(answer, None, max_outstanding=3))

    kind: Any = Counted
    method = Method("test.Service", "Many", True, True, kind, BytesValue, handler, False, False, answers_many=True)
    streaming = asyncio.ensure_future(world.chain.stream(method, payloads(), call(), send))
    await sending.wait()
    await settled(lambda: Counted.held_count == 0)
    streaming.cancel()
    await asyncio.gather(streaming, return_exceptions=True)


async def test_a_caller_who_goes_cancels_what_is_under_way() -> None:
    world = Answering()
    answers = world.streams.answers(Source(b"a", b"b", ends=False).messages(), call(), world.work())
    taking = asyncio.ensure_future(anext(answers))
    await settled(lambda: len(world.begun) == 2)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert sorted(world.cancelled) == [b"a", b"b"]
    assert world.chain.budget.used_bytes == 0


async def test_stalled_streams_hold_no_more_than_their_bounds_and_nothing_of_the_process() -> None:
    """500 callers send without end and read nothing: what is held of each is counted, and another stream runs as ever."""
    world = Answering(limits=Limits(stream_bytes=2000))
    sources = [Source(*[bytes(100)] * 1000) for _ in range(STALLED)]
    stalled = [world.streams.answers(source.messages(), call(), world.work(max_outstanding=8)) for source in sources]
    try:
        # The first answer of each is on its way and stays there.
        sending = [asyncio.ensure_future(anext(answers)) for answers in stalled]
        await settled(lambda: all(len(source.left) < 1000 for source in sources))
        # Each has one under way at least, and all together no more than the process answers at a time.
        assert len(world.begun) <= 1024 + STALLED
        world.gate.set()
        await asyncio.gather(*sending)
        await settled(lambda: len(world.begun) == STALLED * 8)
        assert {1000 - len(source.left) for source in sources} == {8}
        assert world.chain.budget.used_bytes == 0
        healthy = world.streams.answers(Source(*[b"x"] * 100).messages(), call(), world.work())
        assert len(await all_of(healthy)) == 100
        assert len(world.begun) == STALLED * 8 + 100
    finally:
        for answers in stalled:
            await answers.aclose()
