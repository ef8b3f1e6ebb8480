"""The ASGI adapter against a server that behaves like the one inside Envoy."""

import asyncio
import time
from collections.abc import Callable, Coroutine, MutableMapping
from functools import partial
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import CollectorRegistry

from services.common.call import Call, Method
from services.common.chain import Chain, Limits
from services.common.door_asgi import AsgiDoor
from services.common.door_sweeper import Sweeper
from services.common.grpc_wire import frame
from services.common.metrics import RequestMetrics
from services.common.tracing import Tracing
from tests.fakes.envoy_like import EnvoyLike, Quiet, grpc_scope

Message = dict[str, Any]
LIMIT = 1000


async def hello(request: StringValue, call: Call) -> StringValue:
    call.trailers["x-after"] = "t"
    return StringValue(value=f"hello {request.value}")


def method_of(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Method:
    return Method("t.S", "Call", False, False, StringValue, StringValue, handler, raw=False, hot=True)


def door_of(
    handler: Callable[..., Coroutine[Any, Any, Any]], *, budget: int = 10_000
) -> tuple[AsgiDoor, Sweeper, Chain]:
    chain = Chain(
        limits=Limits(message_bytes=LIMIT, bytes_in_flight=budget, default_deadline_s=2.0),
        metrics=RequestMetrics("t", CollectorRegistry()),
        tracing=Tracing("t"),
    )
    return AsgiDoor(chain, [method_of(handler)]), Sweeper(chain.deadlines), chain


scope = partial(grpc_scope, "/t.S/Call")


def framed(text: str) -> bytes:
    return frame(StringValue(value=text).SerializeToString())


async def test_a_call_is_start_one_body_and_trailers() -> None:
    door, _, _ = door_of(hello)
    server = EnvoyLike(framed("you"))
    await door.answer(scope(x_correlation_id="id-1"), server.receive, server.send)
    start, body, trailers = server.sent
    assert (start["status"], start["trailers"]) == (200, True)
    assert server.header(b"x-correlation-id") == b"id-1"
    assert StringValue.FromString(body["body"][5:]).value == "hello you"
    assert trailers["headers"] == [(b"grpc-status", b"0"), (b"x-after", b"t")]


async def test_a_call_is_on_its_way_in_until_its_body_begins_to_come() -> None:
    door, _, chain = door_of(hello)
    late: asyncio.Future[MutableMapping[str, Any]] = asyncio.get_running_loop().create_future()
    server = EnvoyLike()
    answering = asyncio.ensure_future(door.answer(scope(), lambda: late, server.send))
    await asyncio.sleep(0)
    assert chain.arrivals.count() == 1
    late.set_result({"type": "http.request", "body": framed("you"), "more_body": False})
    await answering
    assert chain.arrivals.count() == 0
    assert StringValue.FromString(server.sent[1]["body"][5:]).value == "hello you"


async def test_a_body_in_pieces_is_one_message() -> None:
    door, _, chain = door_of(hello)
    whole = framed("you")
    server = EnvoyLike(whole[:3], whole[3:7], whole[7:])
    await door.answer(scope(), server.receive, server.send)
    assert StringValue.FromString(server.sent[1]["body"][5:]).value == "hello you"
    assert chain.budget.used_bytes == 0


async def test_an_error_is_trailers_only() -> None:
    door, _, _ = door_of(hello)
    server = EnvoyLike(b"\x00")
    await door.answer(scope(), server.receive, server.send)
    start, body = server.sent
    assert start["trailers"] is False
    assert server.header(b"grpc-status") == b"3"
    assert body["body"] == b""


async def test_size_is_limited_while_reading() -> None:
    door, _, chain = door_of(hello)
    server = EnvoyLike(*[b"x" * 300] * 10)
    await door.answer(scope(), server.receive, server.send)
    assert server.header(b"grpc-status") == b"8"
    assert server.asked == 4
    assert chain.budget.used_bytes == 0


async def test_waiting_bodies_count_against_the_budget() -> None:
    door, _, chain = door_of(hello, budget=500)
    first = EnvoyLike(b"x" * 400, complete=False)
    waiting = asyncio.ensure_future(door.answer(scope(), first.receive, first.send))
    while chain.budget.used_bytes == 0:
        await asyncio.sleep(0)
    second = EnvoyLike(b"x" * 400, b"x")
    await door.answer(scope(), second.receive, second.send)
    assert second.header(b"grpc-status") == b"8"
    first.gone = True
    await waiting
    assert (first.sent, chain.budget.used_bytes) == ([], 0)


async def test_a_body_that_never_ends_meets_the_deadline_without_a_cancelled_receive() -> None:
    door, _, _ = door_of(hello)
    server = EnvoyLike(b"\x00\x00", complete=False)
    await door.answer(scope(grpc_timeout="50m"), server.receive, server.send)
    assert server.header(b"grpc-status") == b"4"
    await asyncio.sleep(0.05)
    assert server.cancelled == 0


async def test_a_client_that_goes_away_cancels_its_handler_and_nobody_hears_of_it() -> None:
    cancelled = asyncio.Event()

    async def slow(request: StringValue, call: Call) -> StringValue:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            assert call.method == "t.S/Call"
            cancelled.set()
            raise
        return request

    door, sweeper, _ = door_of(slow)
    sweeping = asyncio.ensure_future(sweeper.run())
    server = EnvoyLike(framed("you"))
    call = asyncio.ensure_future(door.answer(scope(), server.receive, server.send))
    started = time.monotonic()
    while server.asked < 4:
        await asyncio.sleep(0.005)
    assert server.asked <= 2 + (time.monotonic() - started) / 0.01, "the sweeper asks now and then, it does not spin"
    server.gone = True
    await call
    assert cancelled.is_set()
    assert server.sent == []
    assert server.cancelled == 0
    sweeping.cancel()


async def test_a_late_word_about_an_earlier_call_is_not_taken_for_one_about_this() -> None:
    """Once a call is answered its server says "disconnected", and may say so while later calls run."""
    release, answered = asyncio.Event(), asyncio.Event()

    async def slow(request: StringValue, call: Call) -> StringValue:
        await (release if request.value == "early" else answered).wait()
        return request

    door, sweeper, _ = door_of(slow)
    sweeping = asyncio.ensure_future(sweeper.run())
    earlier = [Quiet(framed("early")) for _ in range(50)]
    calls = [asyncio.ensure_future(door.answer(scope(), server.receive, server.send)) for server in earlier]
    while not all(server.open for server in earlier):
        await asyncio.sleep(0.005)
    release.set()
    await asyncio.gather(*calls)
    del calls
    later = [EnvoyLike(framed("late")) for _ in range(50)]
    calls = [asyncio.ensure_future(door.answer(scope(), server.receive, server.send)) for server in later]
    while not all(server.asked for server in later):
        await asyncio.sleep(0.005)
    for server in earlier:
        server.open[0].set_result({"type": "http.disconnect"})
    await asyncio.sleep(0)
    answered.set()
    await asyncio.gather(*calls)
    assert all(server.sent for server in later)
    sweeping.cancel()


async def test_an_idle_sweeper_sleeps() -> None:
    _, sweeper, _ = door_of(hello)
    sweeping = asyncio.ensure_future(sweeper.run())
    await asyncio.sleep(0.03)
    before = len(asyncio.all_tasks())
    assert before == 2
    sweeping.cancel()


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), RuntimeError("secret"), MemoryError()])
async def test_whatever_a_handler_raises_stays_with_its_call(error: BaseException) -> None:
    async def failing(request: StringValue, call: Call) -> StringValue:
        raise error

    door, _, _ = door_of(failing)
    server = EnvoyLike(framed("you"))
    await door.answer(scope(), server.receive, server.send)
    assert server.header(b"grpc-status") == b"13"
    assert b"secret" not in (server.header(b"grpc-message") or b"")


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"te": ""}, b"3"), ({"grpc_timeout": "1x"}, b"3"), ({"grpc_encoding": "br"}, b"0")],
)
async def test_headers_are_checked(headers: dict[str, str], status: bytes) -> None:
    door, _, _ = door_of(hello)
    server = EnvoyLike(framed("you"))
    await door.answer(scope(**headers), server.receive, server.send)
    found = server.header(b"grpc-status") or dict(server.sent[-1].get("headers", [])).get(b"grpc-status")
    assert found == status


async def test_what_is_not_grpc_is_no_call() -> None:
    door, _, _ = door_of(hello)
    server = EnvoyLike(b"{}")
    await door.answer(scope(content_type="application/json"), server.receive, server.send)
    assert server.sent[0]["status"] == 415


async def test_a_routed_path_that_is_in_no_table_is_unimplemented() -> None:
    door, _, _ = door_of(hello)
    server = EnvoyLike(framed("you"))
    await door.answer(scope() | {"path": "/t.S/Other"}, server.receive, server.send)
    assert server.header(b"grpc-status") == b"12"
    rest = EnvoyLike(b"{}")
    await door.answer(scope(content_type="application/json") | {"path": "/v2/x"}, rest.receive, rest.send)
    assert (rest.sent[0]["status"], b'{"error"' in rest.sent[1]["body"]) == (404, True)
