"""Calls of the ASGI door that need no task, against a server that behaves like the one inside Envoy."""

import asyncio
import gzip
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import CollectorRegistry

from services.common.call import Call, Method, Reply
from services.common.chain import Chain, Limits
from services.common.door_asgi import AsgiDoor
from services.common.door_sweeper import Sweeper
from services.common.errors import ResourceExhausted
from services.common.grpc_wire import frame
from services.common.metrics import RequestMetrics
from services.common.tracing import Tracing
from tests.fakes.envoy_like import EnvoyLike, Quiet, grpc_scope

LIMIT = 1000


class Waiting:
    """Holds one call until a test answers it."""

    def __init__(self, payload: bytes, call: Call, reply: Reply) -> None:
        self.payload = payload
        self.call = call
        self.reply = reply
        self.taken_back = 0

    def take_back(self) -> None:
        self.taken_back += 1


class World:
    """A door whose one method begins calls as `begin` does; its coroutine answers in capitals."""

    def __init__(self, begin: Callable[[bytes, Call, Reply], Waiting | None] | None = None) -> None:
        self.registry = CollectorRegistry()
        self.waiting: list[Waiting] = []
        self.chain = Chain(
            limits=Limits(message_bytes=LIMIT, bytes_in_flight=10_000, default_deadline_s=2.0),
            metrics=RequestMetrics("t", self.registry),
            tracing=Tracing("t"),
        )

        async def shout(request: bytes, call: Call) -> bytes:
            assert call.task is asyncio.current_task()
            return request.upper()

        method = Method(
            "t.S", "Call", False, False, StringValue, StringValue, shout, raw=True, hot=True, begin=begin or self._wait
        )
        self.door = AsgiDoor(self.chain, [method])
        self.sweeper = Sweeper(self.chain.deadlines)

    def _wait(self, payload: bytes, call: Call, reply: Reply) -> Waiting:
        self.waiting.append(Waiting(payload, call, reply))
        return self.waiting[-1]

    def begin(self, server: EnvoyLike, **headers: str) -> None:
        """Begin a call that needs no task."""
        assert self.door.begin(scope(**headers), server.receive, server.send) is None

    def count(self, code: str) -> float:
        return self.registry.get_sample_value("interlock_t_requests_total", {"method": "t.S/Call", "code": code}) or 0.0

    def check_books(self) -> None:
        """Nothing of any call is left."""
        in_flight = self.registry.get_sample_value("interlock_t_requests_in_flight", {"method": "t.S/Call"})
        held = (self.chain.budget.used_bytes, len(self.chain.deadlines.watched), self.chain.arrivals.count(), in_flight)
        assert held == (0, 0, 0, 0)


scope = partial(grpc_scope, "/t.S/Call")


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def status(server: EnvoyLike) -> bytes | None:
    return server.header(b"grpc-status") or dict(server.sent[-1]["headers"]).get(b"grpc-status")


async def test_a_call_is_start_one_body_and_trailers() -> None:
    world, server = World(), EnvoyLike(frame(b"you"))
    world.begin(server, x_correlation_id="id-1", grpc_timeout="500m")
    await until(lambda: world.waiting)
    (waiting,) = world.waiting
    assert (waiting.payload, waiting.call.request_id) == (b"you", "id-1")
    assert 0.3 < waiting.call.remaining_s() <= 0.5
    waiting.reply.answer(b"hello")
    waiting.reply.answer(b"again")
    waiting.reply.fail(RuntimeError("too late"))
    start, body, trailers = server.sent
    assert (start["status"], start["trailers"], body["body"]) == (200, True, frame(b"hello"))
    assert trailers["headers"] == [(b"grpc-status", b"0")]
    assert server.header(b"x-correlation-id") == b"id-1"
    assert (world.count("OK"), waiting.taken_back) == (1, 0)
    world.check_books()


YOU = frame(b"you")
ZIPPED = b"\x01" + frame(gzip.compress(b"you"))[1:]


@pytest.mark.parametrize("chunks", [(YOU[:3], YOU[3:]), (YOU[:5], b"", YOU[5:7], YOU[7:]), (YOU, b"")])
async def test_a_body_in_pieces_is_begun_with_the_last_one(chunks: tuple[bytes, ...]) -> None:
    world, server = World(), EnvoyLike(*chunks)
    world.begin(server)
    await until(lambda: world.waiting)
    assert world.waiting[0].payload == b"you"
    world.waiting[0].reply.answer(b"hello")
    assert server.sent[1]["body"] == frame(b"hello")
    world.check_books()


@pytest.mark.parametrize("chunks", [(ZIPPED,), (ZIPPED[:9], ZIPPED[9:])])
async def test_a_compressed_body_goes_the_ordinary_way(chunks: tuple[bytes, ...]) -> None:
    world, server = World(), EnvoyLike(*chunks)
    world.begin(server, grpc_encoding="gzip")
    await until(lambda: len(server.sent) == 3)
    assert (server.sent[1]["body"], world.waiting) == (YOU.upper(), [])
    assert (world.count("OK"), server.asked >= len(chunks)) == (1, True)
    world.check_books()


@pytest.mark.parametrize(
    ("held", "words"),
    [(0, f"{LIMIT + 400} bytes"), (9_500, "the process holds 9500 bytes")],
    ids=["of one message", "of the process"],
)
async def test_pieces_that_are_too_much_are_refused_and_given_back(held: int, words: str) -> None:
    body = frame(bytes(LIMIT + 400))
    world, server = World(), EnvoyLike(*(body[start : start + 501] for start in range(0, len(body), 501)))
    world.chain.budget.used_bytes = held
    world.begin(server)
    await until(lambda: server.sent)
    assert (status(server), world.waiting) == (b"8", [])
    assert words.encode() in (server.header(b"grpc-message") or b"")
    assert world.chain.budget.used_bytes == held
    world.chain.budget.used_bytes = 0
    world.check_books()


@pytest.mark.parametrize("ends", ["deadline", "disconnect"])
async def test_nothing_is_left_of_a_call_that_ends_between_two_pieces(ends: str) -> None:
    world, server = World(), Quiet(YOU[:6], b"o", complete=False)
    world.begin(server, grpc_timeout="50m" if ends == "deadline" else "1S")
    await until(lambda: server.open)
    assert world.chain.budget.used_bytes == len(YOU[:6]) + 1
    if ends == "disconnect":
        server.open[0].set_result({"type": "http.disconnect"})
        await until(lambda: world.count("CANCELLED"))
    else:
        await until(lambda: server.sent)
        assert b"before the request was complete" in (server.header(b"grpc-message") or b"")
        server.open[0].set_result({"type": "http.request", "body": YOU[6:], "more_body": False})
    await until(lambda: not world.chain.deadlines.watched)
    assert world.waiting == []
    world.check_books()


async def test_what_the_method_does_not_know_at_first_sight_goes_the_ordinary_way() -> None:
    world, server = World(lambda *_: None), EnvoyLike(frame(b"you"))
    world.begin(server, x_correlation_id="id-1")
    await until(lambda: len(server.sent) == 3)
    assert (server.sent[1]["body"], server.header(b"x-correlation-id")) == (frame(b"YOU"), b"id-1")
    world.check_books()


@pytest.mark.parametrize("headers", [{"te": ""}, {"grpc_timeout": "1x"}, {"content_type": "application/json"}])
async def test_a_call_whose_headers_are_wrong_is_the_coroutines(headers: dict[str, str]) -> None:
    world, server = World(), EnvoyLike(frame(b"you"))
    answering = world.door.begin(scope(**headers), server.receive, server.send)
    assert answering is not None
    await answering
    assert world.waiting == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(ResourceExhausted("full", reason="QUEUE_FULL"), b"8"), (RuntimeError("secret"), b"13"), (SystemExit(1), b"13")],
)
async def test_what_cannot_be_begun_is_refused(error: BaseException, code: bytes) -> None:
    def refuse(payload: bytes, call: Call, reply: Reply) -> Waiting | None:
        raise error

    world, server = World(refuse), EnvoyLike(frame(b"you"))
    world.begin(server, x_correlation_id="id-1")
    await until(lambda: len(server.sent) == 2)
    assert (server.sent[0]["trailers"], server.header(b"grpc-status")) == (False, code)
    assert server.header(b"x-correlation-id") == b"id-1"
    assert b"secret" not in (server.header(b"grpc-message") or b"")
    world.check_books()


async def test_a_failure_comes_later_too_and_an_answer_may_be_too_large() -> None:
    world, servers = World(), [EnvoyLike(frame(b"you")) for _ in range(2)]
    for server in servers:
        world.begin(server)
    await until(lambda: len(world.waiting) == 2)
    world.waiting[0].reply.fail(ResourceExhausted("full", reason="QUEUE_FULL"))
    world.waiting[1].reply.answer(b"x" * (LIMIT + 1))
    assert [status(server) for server in servers] == [b"8", b"8"]
    assert b"%d bytes" % (LIMIT + 1) in (servers[1].header(b"grpc-message") or b"")
    assert world.count("RESOURCE_EXHAUSTED") == 2
    world.check_books()


async def test_a_deadline_that_passes_takes_the_call_back() -> None:
    world, server = World(), EnvoyLike(frame(b"you"))
    world.begin(server, grpc_timeout="50m")
    await until(lambda: server.sent)
    assert (status(server), world.waiting[0].taken_back) == (b"4", 1)
    assert b"before the answer was ready" in (server.header(b"grpc-message") or b"")
    world.waiting[0].reply.answer(b"late")
    assert len(server.sent) == 2
    world.check_books()


async def test_a_body_that_never_comes_meets_the_deadline_without_a_cancelled_receive() -> None:
    world, server = World(), Quiet()
    world.begin(server, grpc_timeout="50m")
    await until(lambda: server.sent)
    assert status(server) == b"4"
    assert b"before the request was complete" in (server.header(b"grpc-message") or b"")
    server.open[0].set_result({"type": "http.request", "body": frame(b"late"), "more_body": False})
    await asyncio.sleep(0)
    assert (len(server.sent), server.cancelled, world.waiting) == (2, 0, [])
    world.check_books()


async def test_a_client_that_goes_away_takes_its_call_back_and_nobody_hears_of_it() -> None:
    world, server = World(), EnvoyLike(frame(b"you"))
    sweeping = asyncio.ensure_future(world.sweeper.run())
    world.begin(server)
    await until(lambda: server.asked > 2)
    server.gone = True
    await until(lambda: world.waiting[0].taken_back)
    world.waiting[0].reply.answer(b"late")
    assert (server.sent, server.cancelled, world.count("CANCELLED")) == ([], 0, 1)
    assert world.waiting[0].call.cancelled
    world.check_books()
    sweeping.cancel()


async def test_a_client_that_goes_before_its_body_came_leaves_nothing() -> None:
    world, server = World(), Quiet()
    world.begin(server)
    await until(lambda: server.open)
    server.open[0].set_result({"type": "http.disconnect"})
    await until(lambda: not world.chain.deadlines.watched and world.count("CANCELLED"))
    assert (server.sent, world.waiting) == ([], [])
    world.check_books()


async def test_an_answer_that_finds_nobody_is_dropped() -> None:
    world, server = World(), EnvoyLike(frame(b"you"))
    world.begin(server)
    await until(lambda: world.waiting)
    server.closed = True
    world.waiting[0].reply.answer(b"hello")
    world.check_books()


async def test_a_request_without_a_body_is_refused() -> None:
    """The server inside Envoy gives no future then, but something else to wait for."""
    world, server = World(), EnvoyLike()

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    assert world.door.begin(scope(), receive, server.send) is None
    await until(lambda: server.sent)
    assert status(server) == b"3"
    world.check_books()
